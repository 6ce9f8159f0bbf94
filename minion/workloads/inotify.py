"""The kernel's inotify, by ctypes: directories in, names of what appeared and went out.

Source: inotify(7).
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from garrison.common.errors import KernelError

__all__ = ["ATTRIB", "CLOSE_WRITE", "CREATE", "DELETE", "IGNORED", "IS_DIR", "MOVED", "ONLY_DIR", "OVERFLOW", "Inotify", "Notice"]

ATTRIB, CLOSE_WRITE, MOVED, CREATE, DELETE = 0x4, 0x8, 0xC0, 0x100, 0x200
OVERFLOW, IGNORED, ONLY_DIR, IS_DIR = 0x4000, 0x8000, 0x1000000, 0x40000000
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_HEAD: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name with its padding
_READ_BYTES: Final = 256 << 10  # about 5,000 events at once; the kernel's queue holds 16,384 by default

_libc: Final = c.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (c.c_int, c.c_char_p, c.c_uint32)


class Notice(NamedTuple):
    """One event: the watch's number (-1 for the queue itself), what happened, to which name in the directory."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One queue.

    Raises:
        KernelError: The kernel gives none: too many instances.
    """

    def __init__(self) -> None:
        self.fd = _libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self.fd < 0:
            raise KernelError(c.get_errno(), "make an inotify queue; see fs.inotify.max_user_instances")

    def add(self, path: Path, mask: int) -> int:
        """Watch the directory ``path`` and return the watch's number, the same one if it is watched already.

        Raises:
            OSError: It is gone or no directory, or (ENOSPC) there are too many watches.
        """
        number: int = _libc.inotify_add_watch(self.fd, os.fsencode(path), mask | ONLY_DIR)
        if number < 0:
            code = c.get_errno()
            raise OSError(code, os.strerror(code), str(path))
        return number

    def remove(self, watch: int) -> None:
        """Stop watching; nothing happens when the directory is gone."""
        _libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Notice]:
        """Return what has happened since; empty when nothing has."""
        try:
            raw = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as err:
            raise KernelError(err.errno or errno.EIO, "read the inotify queue") from err
        found, at = [], 0
        while at < len(raw):
            watch, mask, _, size = _HEAD.unpack_from(raw, at)
            name = raw[at + _HEAD.size : at + _HEAD.size + size].partition(b"\0")[0]
            found.append(Notice(watch, mask, os.fsdecode(name)))
            at += _HEAD.size + size
        return found

    def close(self) -> None:
        """Give the queue back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
