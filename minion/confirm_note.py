"""A line from ``garrison confirm`` to the agent: a person at the node says that the policy on trial is to stay.

Rules of this file:
- It names a digest: what is on trial may have changed since somebody looked.
- Taken once. One that cannot be read confirms nothing.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.names import Digest
from garrison.common.trust.durable import write_durably

__all__ = ["ConfirmNote", "leave_confirmation", "take_confirmation"]

_FILE: Final = "confirmed.json"

_log = logging.getLogger(__name__)


class ConfirmNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is confirmed, and by which user."""

    digest: Digest
    uid: int


def leave_confirmation(directory: Path, digest: Digest) -> None:
    """Confirm the bundle ``digest`` in the name of the calling user.

    Raises:
        KernelError: The note cannot be written.
    """
    write_durably(directory / _FILE, msgspec.json.encode(ConfirmNote(digest=digest, uid=os.getuid())))


def take_confirmation(directory: Path) -> ConfirmNote | None:
    """Return the note and remove it; ``None`` when there is none."""
    path = directory / _FILE
    try:
        with path.open("rb") as file:
            note = msgspec.json.decode(file.read(limits.BOOT_FILE_MAX_BYTES), type=ConfirmNote)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as err:
        _log.error("confirm_note=unreadable error=%s", err)
        note = None
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        _log.error("confirm_note=not-removed error=%s", err)
    return note
