"""Which file a path leads to now, by device and inode as the kernel itself numbers them."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Final

__all__ = ["Inodes", "interpreter", "packed_inode"]

_INODE: Final = struct.Struct("=QI4x")  # struct inode_key
_PT_INTERP: Final = 3
_HEAD_BYTES: Final = 4096  # an ELF file has its program headers right behind its header
_PATH_MAX: Final = 4096


class Inodes:
    """Looks paths up; knows the mounts of the moment when it was made."""

    def __init__(self) -> None:
        self._devices: dict[bytes, int] = {}  # mount id → device; ``st_dev`` is another on btrfs
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            mount, _, device, _ = line.split(maxsplit=3)
            major, minor = map(int, device.split(b":"))
            self._devices[mount] = major << 20 | minor

    def of(self, path: str) -> tuple[int, int] | None:
        """Return (device, inode) of what is at ``path``, with a final slash only of a directory; ``None``: nothing is there."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (os.O_DIRECTORY if path.endswith("/") else 0))
        except (OSError, ValueError):
            return None  # not there: the rule holds by path alone, which is what it says
        try:
            mount = re.search(rb"^mnt_id:\t(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_bytes(), re.MULTILINE)
            device = self._devices.get(mount[1]) if mount else None
            return None if device is None else (device, os.fstat(fd).st_ino)
        finally:
            os.close(fd)


def packed_inode(found: tuple[int, int]) -> bytes:
    """Return what ``Inodes.of`` found as a key of the kernel's tables."""
    device, number = found
    return _INODE.pack(number, device)


def interpreter(program: Path) -> str:
    """Return the path of the dynamic linker that an ELF program of this machine asks for; empty when it asks for none."""
    with program.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head[:5] != b"\x7fELF\x02":
            return ""
        at, size, count = struct.unpack_from("=Q", head, 32)[0], *struct.unpack_from("=HH", head, 54)
        for number in range(count):
            kind, _, offset, _, _, length = struct.unpack_from("=IIQQQQ", head, at + number * size)
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(min(length, _PATH_MAX)).rstrip(b"\0").decode(errors="surrogateescape")
    return ""
