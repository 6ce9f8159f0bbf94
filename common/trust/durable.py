"""Files that are whole or absent, whatever ends the process or the power.

Rules of this file:
- Content goes to a part file in the same directory, is synced, takes its name in one step, and then the directory is synced.
- A private file is never readable by others, not even for a moment.
Owns: the order of system calls. Does not own: what the bytes mean, or what to do about an error.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from garrison.common.errors import ConfigError, KernelError

__all__ = ["PART_SUFFIX", "read_private", "sync_directory", "write_durably"]

PART_SUFFIX = ".part"  # what an interrupted write leaves behind; safe to delete


def write_durably(path: Path, content: bytes, *, mode: int = 0o600, exclusive: bool = False) -> None:
    """Write ``content`` to ``path``; afterwards a power cut cannot undo it, before that ``path`` is as it was.

    Args:
        path: The file. Its directory exists.
        content: All of it.
        mode: Permissions of the new file.
        exclusive: Refuse to replace a file that exists.

    Raises:
        KernelError: A system call failed (errno ``EEXIST`` for ``exclusive``); ``path`` is as it was before.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(content)
            file.flush()
            os.fsync(fd)
        if exclusive:
            os.link(part, path)  # unlike rename, link refuses an existing name
            part.unlink()
        else:
            part.replace(path)
        sync_directory(path.parent)
    except OSError as err:
        part.unlink(missing_ok=True)
        raise KernelError(err.errno or 0, f"write {path}") from err


def sync_directory(path: Path) -> None:
    """Make names in ``path`` survive a power cut.

    Raises:
        OSError: The directory cannot be opened or synced.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_private(path: Path, max_bytes: int, what: str) -> bytes:
    """Return the content of a file that holds a secret.

    Args:
        path: The file.
        max_bytes: More is refused.
        what: What it is, for the error: ``the author's key``.

    Raises:
        ConfigError: Absent, not a regular file, readable by others, too large, or of another user.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        raise ConfigError(f"{what} cannot be read: {path}: {err.strerror}") from err
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise ConfigError(f"{what} is no regular file: {path}")
    with os.fdopen(fd, "rb") as file:
        if found.st_mode & 0o077:
            raise ConfigError(
                f"{what} is open to others (mode {stat.S_IMODE(found.st_mode):04o}): {path}",
                hint=f"chmod 600 {path}; if somebody else could have read it, make a new key",
            )
        if found.st_uid not in {0, os.geteuid()}:
            raise ConfigError(
                f"{what} belongs to user {found.st_uid}: {path}", hint=f"chown it to the user that runs this: {path}"
            )
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ConfigError(f"{what} is over {max_bytes} bytes: {path}")
    return content
