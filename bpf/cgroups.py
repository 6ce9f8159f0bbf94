"""Names of cgroups: from the number that a program reports to the path, and from the path to unit and container.

Rules of this file:
- A cgroup's number is its directory's inode; the kernel opens it by number (a file handle), also when it was renamed.
- A cgroup that is gone has no name any more; the names of those seen, or told of, before are kept for a while: the first event of
  a container may be read when the container has ended.
"""

from __future__ import annotations

import ctypes as c
import os
import re
import struct
import threading
from pathlib import Path
from typing import Final

from garrison.common.errors import BackendUnsupportedError

__all__ = ["CgroupNames", "cgroup2_root", "container_of", "unit_of"]

_KERNFS_HANDLE: Final = 0xFE  # FILEID_KERNFS of exportfs.h: the handle is the 64-bit number
_UNIT: Final = re.compile(r"[^/]+\.(?:service|scope|socket|mount|swap|timer)(?=/|$)")
_CONTAINER: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_CACHED: Final = 4096

_libc: Final = c.CDLL(None, use_errno=True)
_libc.open_by_handle_at.argtypes, _libc.open_by_handle_at.restype = (c.c_int, c.c_char_p, c.c_int), c.c_int


def cgroup2_root() -> Path:
    """Return where cgroup v2 is mounted.

    Raises:
        BackendUnsupportedError: It is not.
    """
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise BackendUnsupportedError("cgroup v2 is not mounted", hint="mount it: mount -t cgroup2 none /sys/fs/cgroup")


def unit_of(path: str) -> str:
    """Return the innermost systemd unit in a cgroup path, the path itself when it has none, empty for the root."""
    units = _UNIT.findall(path)
    return units[-1] if units else path.rstrip("/")


def container_of(path: str) -> str:
    """Return the container id (64 hex digits) in a cgroup path; empty when there is none."""
    found = _CONTAINER.search(path)
    return found[0] if found else ""


class CgroupNames:
    """Paths of cgroups by number, below one mount."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._known: dict[int, str] = {}
        self._lock = threading.Lock()

    def path(self, cgroup_id: int) -> str:
        """Return the path below the mount, ``/`` for the root, empty when the cgroup is gone and was not known."""
        known = self._known.get(cgroup_id)
        if known is None:
            known = self._look_up(cgroup_id)
            self.remember(cgroup_id, known)
        return known

    def remember(self, cgroup_id: int, path: str) -> None:
        """Take somebody's word for a cgroup that was just made. Any thread."""
        with self._lock:
            self._known[cgroup_id] = path
            if len(self._known) > _CACHED:
                del self._known[next(iter(self._known))]

    def close(self) -> None:
        """Give back the mount's descriptor. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _look_up(self, cgroup_id: int) -> str:
        handle = struct.pack("=IiQ", 8, _KERNFS_HANDLE, cgroup_id)
        fd = _libc.open_by_handle_at(self._fd, handle, os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            return ""
        try:
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
        finally:
            os.close(fd)
        root = str(self._root)
        return (path.removeprefix(root) or "/") if path.startswith(root) else path
