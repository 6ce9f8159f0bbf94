"""Bounds a storm of error messages: some of each kind pass, the rest are counted exactly.

Rules of this file:
- Pure but for the clock that is passed in; one instance per source, one thread.
- Every message that goes in comes out: singly, or in exactly one event whose ``count`` holds it.
- Memory is bounded: beyond ``ERROR_GROUPS_MAX`` kinds in a window, messages share one count.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.events import Event, Scalar
from garrison.minion.observers._finding import Finding, event_of

__all__ = ["Repeats", "fingerprint_of"]

# What differs between two messages of one kind: times, ids, addresses, counters, quoted values, path components.
_VARIABLE: Final = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]{8,}\b|\d+|\"[^\"]{0,200}\"|'[^']{0,200}'|(?<=/)[^/\s]{1,255}")
_FINGERPRINT_CHARS: Final = 512  # enough to tell kinds apart; keeps the cost of a long message small
_OTHERS: Final = "others"


def fingerprint_of(finding: Finding) -> str:
    """Return what all messages of one kind share: 16 hex digits over source, object and the invariable part of the text."""
    text = _VARIABLE.sub("#", finding.message[:_FINGERPRINT_CHARS])
    return hashlib.blake2s(f"{finding.source}\0{finding.object}\0{text}".encode("utf-8", "replace"), digest_size=8).hexdigest()


class _Group(msgspec.Struct):
    passed: int = 0
    suppressed: int = 0
    last: Finding | None = None


class Repeats:
    """Decides what passes singly.

    Attributes:
        suppressed: Messages told in a count so far, or still to be told.
    """

    def __init__(self) -> None:
        self.suppressed = 0
        self._groups: dict[str, _Group] = {}
        self._passed, self._waiting = 0, 0
        self._ends_at = 0.0

    @property
    def outstanding(self) -> bool:
        """Whether messages are counted that no event has told yet."""
        return self._waiting > 0

    def take(self, finding: Finding, now: float) -> list[Event]:
        """Return the events to emit for ``finding``: those of a window that has ended, then its own unless it is suppressed.

        Args:
            finding: A message.
            now: Monotonic clock, seconds.
        """
        events = self.tick(now)
        if not self._groups:
            self._ends_at = now + limits.ERROR_WINDOW_S
        key = fingerprint_of(finding)
        if key not in self._groups and len(self._groups) >= limits.ERROR_GROUPS_MAX:
            key = _OTHERS
        group = self._groups.setdefault(key, _Group())
        if group.passed < limits.ERROR_REPEATS_MAX and self._passed < limits.ERROR_PASSES_MAX:
            group.passed += 1
            self._passed += 1
            events.append(event_of(finding))
        else:
            group.suppressed += 1
            group.last = finding
            self._waiting += 1
            self.suppressed += 1
        return events

    def tick(self, now: float) -> list[Event]:
        """Return the counts of a window that has ended by ``now``; call it at least every second."""
        return self.flush() if self._groups and now >= self._ends_at else []

    def flush(self) -> list[Event]:
        """End the window now and return its counts: one event per kind with the last message and ``data.count``."""
        told = [(key, group) for key, group in self._groups.items() if group.last is not None]
        self._groups, self._passed, self._waiting = {}, 0, 0
        return [event_of(g.last, count=g.suppressed, more=_folded(key)) for key, g in told if g.last is not None]


def _folded(key: str) -> dict[str, Scalar]:
    return {"folded": True, "group": key}
