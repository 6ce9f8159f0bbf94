"""Rows of a generation by who calls: the half of ``bpf/include/program_row.h`` that is in user space. Pure.

Rules of this file:
- There is one row for programs that no rule names, one for programs whose path cannot be told, one for each program and two for
  each directory that rules name as a source: for programs directly in it and for those further below.
- The kernel takes the row of the program, else of its deepest directory, else the first. So each row also holds what rules on
  directories above say: what they say of the row's *sample*, a program that it speaks for.
Owns: keys and samples. Does not own: what is in a row (``syscalls``, ``cgroup_net``).
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final

__all__ = ["KEY_BYTES", "SOURCE_DEPTH_MAX", "RowKind", "directories_above", "encode_key", "flags_of", "samples_of"]

SOURCE_DEPTH_MAX: Final = 480  # WALK_STEPS of path_hash.h, less mounts on the way
_KEY: Final = struct.Struct("=QII")
KEY_BYTES: Final = _KEY.size
_NEEDS_PATH: Final = 1
_HAS_DIRECTORIES: Final = 2
_NOBODY: Final = "\0"  # a file name that no file can have: stands for "some other program"


class RowKind(IntEnum):
    """Whom a row speaks for."""

    OTHER = 0
    UNKNOWN = 1
    PROGRAM = 2
    DIRECT = 3
    BELOW = 4


def encode_key(kind: RowKind, path_hash: int = 0, profile: int = 0) -> bytes:
    """Return a row's key."""
    return _KEY.pack(path_hash, kind, profile)


def flags_of(sources: Iterable[str]) -> int:
    """Return what the kernel must find out of a program, given all sources that rules name."""
    named = list(sources)
    return (_NEEDS_PATH if named else 0) | (_HAS_DIRECTORIES if any(source.endswith("/") for source in named) else 0)


def samples_of(sources: Iterable[str]) -> Iterator[tuple[RowKind, str, str]]:
    """Give each row's kind, the source that it is for and its sample; both are empty where there is none."""
    yield RowKind.OTHER, "", _NOBODY
    yield RowKind.UNKNOWN, "", ""
    for source in sorted(sources):
        if source.endswith("/"):
            yield RowKind.DIRECT, source, source + _NOBODY
            yield RowKind.BELOW, source, f"{source}{_NOBODY}/{_NOBODY}"
        else:
            yield RowKind.PROGRAM, source, source


def directories_above(path: str) -> Iterator[str]:
    """Give the directories that ``path`` is in, the nearest first, each with its slash."""
    directory = posixpath.dirname(path)
    while directory:
        yield directory if directory.endswith("/") else directory + "/"
        directory = posixpath.dirname(directory) if directory != "/" else ""
