"""A line from ``garrison enforcer release`` to the agent: who took kernel enforcement away, so that an event can say so.

Rules of this file:
- Written durably before anything is released; told once, then removed. One that cannot be removed is told again, never swallowed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from garrison.minion.note import leave_note, take_note

__all__ = ["ReleaseNote", "leave", "take"]

_FILE: Final = "released.json"


class ReleaseNote(msgspec.Struct, frozen=True, kw_only=True):
    """Who did it, and when.

    Attributes:
        at_ns: ns since 1970 UTC.
        uid: User id.
        login_uid: Login (audit) user id, which ``sudo`` does not change; -1 for none.
        ordered: An order of the policy's authors was shown.
    """

    at_ns: int
    uid: int
    login_uid: int = -1
    ordered: bool = False


def leave(directory: Path, *, ordered: bool = False) -> None:
    """Leave a note that names the calling user, and whether authors had ordered it.

    Raises:
        KernelError: It cannot be written.
    """
    note = ReleaseNote(at_ns=time.time_ns(), uid=os.getuid(), login_uid=_login_uid(), ordered=ordered)
    leave_note(directory / _FILE, note)


def take(directory: Path) -> ReleaseNote | None:
    """Return the note and remove it; ``None`` when there is none. One that cannot be read names nobody."""
    return take_note(directory / _FILE, ReleaseNote, unreadable=ReleaseNote(at_ns=0, uid=-1))


def _login_uid() -> int:
    try:
        number = int(Path("/proc/self/loginuid").read_text(encoding="ascii"))
    except (OSError, ValueError):  # a kernel without audit
        return -1
    return -1 if number == (1 << 32) - 1 else number
