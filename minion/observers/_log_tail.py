"""Follows one log file by name, through renaming, truncation and absence.

Rules of this file:
- The file may not exist yet: when it appears it is read from its beginning.
- Renamed (logrotate): what the old file still gets is read for ``RETIRED_S`` more, then the new one goes on alone.
- Truncated or written anew in place (copytruncate): known by its size or its first bytes; read from the beginning.
- A position is the offset of the first byte not yet handed over; after a restart a file that was renamed meanwhile is found by
  its inode in the same directory.
Owns: descriptors and offsets. Does not own: which lines matter (``_log_lines``).
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Final

import msgspec

from garrison.common import limits
from garrison.minion.observers._log_lines import Joiner

__all__ = ["Tail", "TailPosition", "decode_positions", "find_renamed", "open_tail"]

HEAD_BYTES: Final = 256  # of the beginning of a file, to know it again: inode numbers are used again at once
_RENAMED_LOOK_MAX: Final = 1_000  # directory entries looked at for a renamed file


class TailPosition(msgspec.Struct, frozen=True):
    """How far a file was read, and how to know it again.

    Attributes:
        dev: Device number.
        ino: Inode number.
        offset: First byte not yet handed over.
        head_bytes: How many of its first bytes ``head`` is over.
        head: Their digest.
    """

    dev: int
    ino: int
    offset: int
    head_bytes: int
    head: str


class Tail:
    """One open file.

    Attributes:
        long_lines: Lines cut so far.
    """

    def __init__(self, fd: int, offset: int) -> None:
        info = os.fstat(fd)
        self.fd, self.key = fd, (info.st_dev, info.st_ino)
        self.long_lines = 0
        self._joiner = Joiner()
        self._read_to = self._handed_to = offset
        self._buffer, self._skipping = b"", False
        self._head_bytes, self._head = self._take_head(offset)

    def _take_head(self, upto: int) -> tuple[int, str]:
        raw = os.pread(self.fd, min(upto, HEAD_BYTES), 0)
        return len(raw), hashlib.blake2s(raw, digest_size=16).hexdigest()

    def is_stale(self, info: os.stat_result) -> bool:
        """Return whether the name now leads to other bytes than this descriptor, though inode numbers agree.

        That is what a copy-up on an overlay does: the descriptor stays on the lower file and never grows again.

        Args:
            info: Of the name, taken before this call: a file that merely grew is longer here, not shorter.
        """
        return info.st_size > os.fstat(self.fd).st_size

    def is_same(self) -> bool:
        """Return whether what was read is still there: not truncated, not written anew."""
        if os.fstat(self.fd).st_size < self._read_to:
            return False
        return self._take_head(self._head_bytes) == (self._head_bytes, self._head)

    def read(self) -> tuple[list[bytes], bool]:
        """Return messages that are complete, and whether there may be more to read at once."""
        raw = os.pread(self.fd, limits.LOG_READ_MAX_BYTES, self._read_to)
        if not raw:
            return self.flush(), False
        *lines, rest = (self._buffer + raw).split(b"\n")
        at = self._read_to - len(self._buffer)
        self._read_to += len(raw)
        if self._head_bytes < HEAD_BYTES:
            self._head_bytes, self._head = self._take_head(self._read_to)
        messages: list[bytes] = []
        for line in lines:
            messages += self._line(line, at, at + len(line) + 1)
            at += len(line) + 1
            self._skipping = False
        if self._skipping or len(rest) > limits.LOG_LINE_MAX_BYTES:
            messages += self._line(rest, at, self._read_to)
            rest, self._skipping = b"", True
        self._buffer = rest
        return messages, len(raw) == limits.LOG_READ_MAX_BYTES

    def _line(self, line: bytes, begin: int, end: int) -> list[bytes]:
        """Take the line from ``begin`` to ``end``; returns the message that it ended, if any."""
        if self._skipping:  # the rest of a line that was cut
            if not self._joiner.pending:
                self._handed_to = end
            return []
        if len(line) > limits.LOG_LINE_MAX_BYTES:
            self.long_lines += 1
        message = self._joiner.feed(line[: limits.LOG_LINE_MAX_BYTES].rstrip(b"\r"))
        if not self._joiner.pending:
            self._handed_to = end
        elif len(self._joiner.pending) == 1:  # a message begins with this line
            self._handed_to = begin
        return [] if message is None else [message]

    def flush(self, *, partial: bool = False) -> list[bytes]:
        """Return the message that waits for more lines; with ``partial`` also a last line without an end."""
        messages = []
        if partial and self._buffer:
            messages.append(self._joiner.feed(self._buffer))
            self._buffer = b""
        messages.append(self._joiner.flush())
        self._handed_to = self._read_to - len(self._buffer)
        return [message for message in messages if message is not None]

    def position(self) -> TailPosition:
        """Return where everything handed over ends."""
        size, head = self._take_head(min(self._handed_to, self._head_bytes))
        return TailPosition(*self.key, self._handed_to, size, head)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def open_tail(path: Path, known: TailPosition | None, *, at_end: bool) -> Tail:
    """Open ``path`` at ``known``, if that is this very file, else at its end or beginning.

    Raises:
        OSError: It does not exist or cannot be read.
        ValueError: It is no regular file.
    """
    fd, info = _open_regular(path)
    try:
        if known is not None:
            return Tail(fd, known.offset if _is_known(fd, info, known) else 0)
        return Tail(fd, info.st_size if at_end else 0)
    except BaseException:
        os.close(fd)
        raise


def _open_regular(path: Path) -> tuple[int, os.stat_result]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise ValueError(f"{path} is not a regular file")
    return fd, info


def _is_known(fd: int, info: os.stat_result, known: TailPosition) -> bool:
    if (info.st_dev, info.st_ino) != (known.dev, known.ino) or not 0 <= known.offset <= info.st_size:
        return False
    raw = os.pread(fd, max(0, min(known.head_bytes, HEAD_BYTES)), 0)
    return hashlib.blake2s(raw, digest_size=16).hexdigest() == known.head


def find_renamed(path: Path, known: TailPosition) -> Path | None:
    """Return where the file of ``known`` is now, when it is no longer ``path`` but still beside it under a longer name."""
    try:
        with os.scandir(path.parent) as entries:
            for number, entry in enumerate(entries):
                if number >= _RENAMED_LOOK_MAX:
                    return None
                if entry.name.startswith(path.name) and entry.name != path.name and entry.inode() == known.ino:
                    return Path(entry.path)
    except OSError:  # the directory is gone: so is the file
        return None
    return None


def decode_positions(raw: Any) -> list[TailPosition] | None:
    """Return the positions in what a file on disk held; ``None`` when there are none that can be used."""
    try:
        return msgspec.convert(raw, list[TailPosition])
    except msgspec.ValidationError:
        return None
