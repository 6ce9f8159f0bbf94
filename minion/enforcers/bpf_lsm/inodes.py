"""Which file a path leads to now, by device and inode as the kernel itself numbers them."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["Inodes"]


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
