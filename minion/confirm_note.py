"""A line from ``garrison confirm`` to the agent: a person at the node says that the policy on trial is to stay.

Rules of this file:
- It names a digest: what is on trial may have changed since somebody looked.
- Taken once. One that cannot be read confirms nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.names import Digest
from garrison.minion.note import leave_note, take_note

__all__ = ["ConfirmNote", "leave_confirmation", "take_confirmation"]

_FILE: Final = "confirmed.json"


class ConfirmNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is confirmed, and by which user."""

    digest: Digest
    uid: int


def leave_confirmation(directory: Path, digest: Digest) -> None:
    """Confirm the bundle ``digest`` in the name of the calling user.

    Raises:
        KernelError: The note cannot be written.
    """
    leave_note(directory / _FILE, ConfirmNote(digest=digest, uid=os.getuid()))


def take_confirmation(directory: Path) -> ConfirmNote | None:
    """Return the note and remove it; ``None`` when there is none, or none that can be read."""
    return take_note(directory / _FILE, ConfirmNote)
