"""Reads errors from the log files that the settings name.

Rules of this file:
- Files are looked at twice a second: works on every file system, overlays and network mounts included, and costs a stat each.
- A file that cannot be read shows in ``error``; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from garrison.minion.observers._finding import Finding, Source, cut_middle
from garrison.minion.observers._log_lines import priority_of_line
from garrison.minion.observers._log_tail import Tail, TailPosition, decode_positions, find_renamed, open_tail
from garrison.minion.observers._worker import Stop

__all__ = ["LogFiles"]

LOOK_S: Final = 0.5
RETIRED_MAX: Final = 4  # renamed files read beside the current one; a name that changes its file faster than that is misused
RETIRED_S: Final = 30.0  # a program writes to its renamed log until it is told to reopen: logrotate does so within seconds


class _Followed:
    """One name that is followed: the file it means now, and those it meant before.

    Attributes:
        error: Why the file cannot be read; empty when it can, or does not exist.
        has_more: The last turn left something to read at once.
        rotations: How often another file took the name, or the file was written anew.
        cut_lines: Lines that were too long.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.error, self.has_more = path, "", False
        self.rotations = self.cut_lines = 0
        self._tail: Tail | None = None
        self._retired: list[tuple[Tail, float]] = []

    def open(self, positions: list[TailPosition] | None) -> None:
        """Go to the positions; ``None`` at the very first start: an existing file is followed from its end."""
        current: TailPosition | None = None
        for known in positions or ():
            if self._inode() == known.ino:
                current = known
            elif (renamed := find_renamed(self.path, known)) is not None:
                self._retire(open_tail(renamed, known, at_end=False))
        self._tail = self._open(current, at_end=positions is None)

    def _inode(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:  # renamed, and no new file yet; what else is wrong shows when it is opened
            return -1

    def _open(self, known: TailPosition | None, *, at_end: bool = False) -> Tail | None:
        self.error = ""
        try:
            return open_tail(self.path, known, at_end=at_end)
        except FileNotFoundError:  # not yet, or between renaming and making: it is looked for again
            return None
        except (OSError, ValueError) as err:
            self.error = str(err)
            return None

    def _retire(self, tail: Tail) -> None:
        self._retired.append((tail, time.monotonic() + RETIRED_S))
        self.rotations += 1

    def messages(self) -> Iterator[bytes]:
        """Yield what is new and complete, the oldest first."""
        self.has_more = False
        if self._tail is not None:
            yield from self._look_again(self._tail)
        yield from self._read_retired()
        tail = self._tail
        if tail is None:
            self._tail = tail = self._open(None)
        if tail is not None:
            yield from self._read(tail)

    def _look_again(self, tail: Tail) -> list[bytes]:
        """Put the file away when the name no longer means it; returns the message that this cut short, if any."""
        try:
            info = self.path.stat()
        except FileNotFoundError:
            info = None
        if info is None or (info.st_dev, info.st_ino) != tail.key:
            self._retire(tail)
            self._tail = None
        elif tail.is_stale(info):
            known = tail.position()
            tail.close()
            self._tail = self._open(known)
        elif not tail.is_same():  # written anew in place: what it held is gone
            messages = tail.flush(partial=True)
            tail.close()
            self._tail = None
            self.rotations += 1
            return messages
        return []

    def _read_retired(self) -> Iterator[bytes]:
        keep: list[tuple[Tail, float]] = []
        for number, (tail, until) in enumerate(self._retired):
            yield from self._read(tail)
            too_many = len(self._retired) - number > RETIRED_MAX
            if self.has_more or (time.monotonic() < until and not too_many):
                keep.append((tail, until))
            else:
                yield from tail.flush(partial=True)
                tail.close()
        self._retired = keep

    def _read(self, tail: Tail) -> Iterator[bytes]:
        before = tail.long_lines
        messages, more = tail.read()
        self.has_more |= more
        self.cut_lines += tail.long_lines - before
        yield from messages

    def position(self) -> list[TailPosition]:
        """Return the positions of the files that are open, the oldest first."""
        tails = [tail for tail, _ in self._retired] + ([self._tail] if self._tail else [])
        return [tail.position() for tail in tails]

    def close(self) -> None:
        """Close all files."""
        for tail in [*(tail for tail, _ in self._retired), *([self._tail] if self._tail else [])]:
            tail.close()
        self._retired, self._tail = [], None


class LogFiles(Source):
    """Yields error lines, tracebacks as one message.

    Args:
        paths: Files to follow, by name.
    """

    name = "files"

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._followed = [_Followed(path) for path in dict.fromkeys(paths)]

    def open(self, position: Any) -> None:
        """Open what exists."""
        known = position if isinstance(position, dict) else {}
        for followed in self._followed:
            raw = known.get(str(followed.path))
            followed.open(None if raw is None else decode_positions(raw))

    def read(self, stop: Stop, timeout_s: float) -> list[Finding]:
        """Return new error messages of all files."""
        found: list[Finding] = []
        if not any(followed.has_more for followed in self._followed):
            stop.wait(min(timeout_s, LOOK_S))
        for followed in self._followed:
            found += [_finding(followed.path, message) for message in self._messages(followed)]
        self.error = "; ".join(f.error for f in self._followed if f.error)
        self.counters = {
            "file_rotations": sum(f.rotations for f in self._followed),
            "file_lines_cut": sum(f.cut_lines for f in self._followed),
        }
        return found

    @staticmethod
    def _messages(followed: _Followed) -> Iterator[bytes]:
        try:
            yield from followed.messages()
        except OSError as err:  # this file's disk; the other files may be on another
            followed.error = f"{followed.path}: {err.strerror}"

    def position(self) -> Any:
        """Return the positions of every file by its name; an empty list for one that does not exist yet."""
        return {str(f.path): [msgspec.to_builtins(p) for p in f.position()] for f in self._followed}

    def close(self) -> None:
        """Close all files."""
        for followed in self._followed:
            followed.close()


def _finding(path: Path, message: bytes) -> Finding:
    text = cut_middle(message.decode("utf-8", "replace"))
    return Finding(source="file", message=text, priority=priority_of_line(message), object=str(path), data={"path": str(path)})
