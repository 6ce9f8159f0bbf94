"""What a running process says of itself, as one JSON file for people on the machine.

Rules of this file:
- Replaced atomically, readable by root alone: it names rules and keys.
- Not synced: it is in a runtime directory, and of no use after a power cut. What must outlive one is ``trust/durable``'s.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from garrison.common.errors import ConfigError

__all__ = ["read_status_file", "replace_status_file"]

_T = TypeVar("_T", bound=msgspec.Struct)


def replace_status_file(path: Path, status: msgspec.Struct) -> None:
    """Replace the file. Errors (``OSError``) are the caller's to log: a full tmpfs must not stop anything."""
    part = path.with_name(f"{path.name}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(status))
    part.replace(path)


def read_status_file(path: Path, as_type: type[_T], *, absent: ConfigError, hint: str) -> _T:
    """Return what was written last.

    Args:
        path: The file.
        as_type: What it holds.
        absent: Raised when there is none.
        hint: What to do when it cannot be read.

    Raises:
        ConfigError: ``absent``, or it cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=as_type)
    except FileNotFoundError as err:
        raise absent from err
    except (OSError, msgspec.DecodeError) as err:
        raise ConfigError(f"{path} cannot be read: {err}", hint=hint) from err
