"""Notes that a command on the node leaves for the agent: written durably, taken once.

Rules of this file:
- A note that cannot be read says nothing, but is removed and logged. One that cannot be removed is taken again, never swallowed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import msgspec

from garrison.common import limits
from garrison.common.trust.durable import write_durably

__all__ = ["leave_note", "take_note"]

_log = logging.getLogger(__name__)
_Note = TypeVar("_Note", bound=msgspec.Struct)


def leave_note(path: Path, note: msgspec.Struct) -> None:
    """Leave ``note`` at ``path``, instead of one that lies there.

    Raises:
        KernelError: It cannot be written.
    """
    write_durably(path, msgspec.json.encode(note))


def take_note(path: Path, kind: type[_Note], *, unreadable: _Note | None = None) -> _Note | None:
    """Return the note at ``path`` and remove it; ``None`` when there is none, ``unreadable`` when it says nothing."""
    try:
        with path.open("rb") as file:
            note: _Note | None = msgspec.json.decode(file.read(limits.BOOT_FILE_MAX_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as err:
        _log.error("note=%s unreadable=%s", path.name, err)
        note = unreadable
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        _log.error("note=%s not-removed=%s", path.name, err)
    return note
