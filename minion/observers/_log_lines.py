"""Which lines of a log file are errors, and which lines after them belong to the same message.

Rules of this file:
- Pure: bytes of complete lines in, findings out.
- The pattern errs to the side of telling: a line with an error level in any of the usual forms counts.
- A block (a traceback, indented continuation) is one message of at most ``LOG_BLOCK_MAX_LINES`` lines.
"""

from __future__ import annotations

import re
from typing import Final

from garrison.common import limits

__all__ = ["Joiner", "is_error", "priority_of_line"]

_PATTERN: Final = re.compile(
    rb"\b(?:ERROR|ERR|FATAL|CRITICAL|CRIT|SEVERE|ALERT|EMERG|PANIC)\b"  # a level in capitals, anywhere
    rb"|\[(?:[\w-]+:)?(?:error|crit|critical|alert|emerg|fatal|panic)\]"  # [error], [core:error]
    rb"|\b(?:level|lvl|severity|levelname|log\.level)[\"']?\s*[=:]\s*[\"']?(?i:error|err|fatal|critical|crit|panic|alert|emerg)\b"
    rb"|^(?:[\w./-]+: )?(?:error|fatal|panic): "  # make: error: …, panic: …
    rb"|^Traceback \(most recent call last\):"
    rb"|^Exception in thread "
    rb"|^(?:[a-z][\w$]*\.)+[A-Z][\w$]*(?:Exception|Error)\b"  # java.lang.IllegalStateException: …
    rb"|\bsegfault at\b|\bOut of memory:|\bcore dumped\b"
)
# Each alternative above has one of these in it, in lower case: looking for them first makes the usual line ten times cheaper.
_HINTS: Final = (
    *(b"err", b"fatal", b"crit", b"severe", b"alert", b"emerg", b"panic", b"traceback", b"exception"),
    *(b"segfault", b"out of memory", b"core dumped"),
)
_WORST: Final = re.compile(
    rb"\b(?:FATAL|CRITICAL|CRIT|ALERT|EMERG|PANIC)\b"
    rb"|\[(?:[\w-]+:)?(?:crit|critical|alert|emerg|fatal|panic)\]"
    rb"|[=:]\s*[\"']?(?i:fatal|critical|crit|panic|alert|emerg)\b"
    rb"|^(?:[\w./-]+: )?(?:fatal|panic): "
)
_TRACEBACK: Final = b"Traceback (most recent call last):"
_CONTINUES: Final = re.compile(rb"\s+\S|Caused by: |\s*\.\.\. \d+ (?:more|common frames)")


def is_error(line: bytes) -> bool:
    """Return whether a line, without its end, tells an error."""
    lower = line.lower()
    return any(hint in lower for hint in _HINTS) and _PATTERN.search(line) is not None


def priority_of_line(line: bytes) -> int:
    """Return the syslog priority of an error line: 2 when it speaks of a critical or fatal state, else 3."""
    return 2 if _WORST.search(line) else 3


class Joiner:
    """Puts lines together to messages. Feed it every line in order.

    Attributes:
        pending: Lines of a message that may still go on.
    """

    def __init__(self) -> None:
        self.pending: list[bytes] = []
        self._in_traceback = False

    def feed(self, line: bytes) -> bytes | None:
        """Take one line without its end; returns the message that it ended, if any."""
        if self.pending and self._belongs(line):
            if len(self.pending) < limits.LOG_BLOCK_MAX_LINES:
                self.pending.append(line)
            else:
                self.pending[-1] = line  # the last line of a traceback is the one that says what went wrong
            return None
        done = self.flush()
        if is_error(line):
            self.pending, self._in_traceback = [line], _TRACEBACK in line
        return done

    def flush(self) -> bytes | None:
        """End the message that is pending and return it, if any: its file has not grown for a while."""
        done = b"\n".join(self.pending) if self.pending else None
        self.pending, self._in_traceback = [], False
        return done

    def _belongs(self, line: bytes) -> bool:
        if _TRACEBACK in line and not self._in_traceback and len(self.pending) == 1:
            self._in_traceback = True  # logging.exception: the level's line comes first
            return True
        if _CONTINUES.match(line):
            return True
        if self._in_traceback and line.strip():
            self._in_traceback = False  # "ValueError: …" at the left margin is its last line
            return True
        return False
