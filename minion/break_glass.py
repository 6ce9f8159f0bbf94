"""The emergency exit: a file or a word on the kernel's command line, and nothing is enforced any more.

    /etc/garrison/break-glass      empty, or TOML: expires = 2026-11-25T18:00:00Z, reason = "…"
    garrison.enforce=0             on the kernel's command line

Rules of this file:
- It works with the agent alone: no master, no network, no policy, no intact data directory.
- Only root may break the glass: a file that somebody else owns or may write does not count, and is told.
- Text that cannot be understood counts as a reason without an end: who is locked out must not fail at syntax (fail-open).
- An expiry is wall-clock time. A clock that is behind keeps the glass broken for longer (fail-open, and loud all the while).
Owns: finding it. Does not own: what follows from it (``agent``).
"""

from __future__ import annotations

import os
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits

__all__ = ["BREAK_GLASS_FILE", "KERNEL_SWITCH", "Glass", "look_for_glass"]

BREAK_GLASS_FILE: Final = Path("/etc/garrison/break-glass")
KERNEL_SWITCH: Final = "garrison.enforce=0"
_CMDLINE: Final = Path("/proc/cmdline")
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


class Glass(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        broken: Nothing is to be enforced.
        why: By what, and until when; or why what is there does not count. Empty when there is nothing.
    """

    broken: bool = False
    why: str = ""


def look_for_glass(*, file: Path = BREAK_GLASS_FILE, cmdline: Path = _CMDLINE, now: datetime | None = None) -> Glass:
    """Return whether the glass is broken, now.

    Args:
        file: The break-glass file.
        cmdline: The kernel's command line.
        now: Wall clock, UTC.
    """
    try:
        if KERNEL_SWITCH in cmdline.read_text(encoding="ascii", errors="replace").split():
            return Glass(broken=True, why=f"{KERNEL_SWITCH} on the kernel's command line; lasts until a boot without it")
    except OSError as err:
        return Glass(why=f"{cmdline} cannot be read: {err.strerror}")
    return _of_file(file, now or datetime.now(UTC))


def _of_file(path: Path, now: datetime) -> Glass:
    try:
        # Not followed, not waited for: a link or a pipe in that place is no decision of anybody.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Glass()
    except OSError as err:
        return Glass(why=f"{path} does not count: {err.strerror}")
    try:
        if reason := _why_not(os.fstat(fd)):
            return Glass(why=f"{path} does not count: {reason}")
        raw = os.read(fd, limits.BOOT_FILE_MAX_BYTES)
    except OSError as err:
        return Glass(broken=True, why=f"{path} cannot be read ({err.strerror}); lasts until the file is removed")
    finally:
        os.close(fd)
    return _of_text(path, raw.decode(errors="replace"), now)


def _why_not(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_uid != 0:
        return f"it belongs to user {found.st_uid}, not to root"
    if found.st_mode & _WRITABLE:
        return f"others than root may write it (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _of_text(path: Path, text: str, now: datetime) -> Glass:
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        said = {"reason": " ".join(text.split())}
    reason = f": {said['reason']}"[:500] if said.get("reason") else ""
    expires = said.get("expires")
    if not isinstance(expires, datetime):
        return Glass(broken=True, why=f"{path}{reason}; lasts until the file is removed")
    expires = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
    if expires <= now:
        return Glass(why=f"{path} does not count: it expired at {expires.isoformat()}")
    return Glass(broken=True, why=f"{path}{reason}; lasts until {expires.isoformat()}, or until the file is removed")
