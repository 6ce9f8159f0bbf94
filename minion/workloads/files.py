"""Opens and reads files that others write, so that none of them can hold up or mislead the reader.

Rules of this file:
- Only regular files of the owner that is expected; never a link in the last place, a pipe or a device, and never more than a
  limit.
- Whoever can make a reader *wait* (a user's own file system below a home directory) is dealt with by ``patience``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from garrison.common import limits

__all__ = ["open_regular", "read_regular"]


def open_regular(path: Path, *, owner: int | None = None) -> int:
    """Return a descriptor of the regular file ``path``.

    Args:
        path: The last part must not be a symbolic link.
        owner: User id that must own it, if not root; ``None``: the user that this process runs as, which is root on a node.

    Raises:
        OSError: It cannot be opened, is something else, or is somebody else's.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    owner = os.geteuid() if owner is None else owner
    if stat.S_ISREG(found.st_mode) and found.st_uid in {0, owner}:
        return fd
    os.close(fd)
    raise OSError(f"{path} is not a regular file of user {owner}")


def read_regular(path: Path, *, owner: int | None = None, max_bytes: int = limits.WORKLOAD_FILE_MAX_BYTES) -> bytes:
    """Return the content of ``path``; see ``open_regular``.

    Raises:
        OSError: As there, or it is longer than ``max_bytes``.
    """
    with os.fdopen(open_regular(path, owner=owner), "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise OSError(f"{path} is longer than {max_bytes} bytes")
    return raw
