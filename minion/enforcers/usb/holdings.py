"""What this backend has changed in sysfs, on disk, so that whoever comes next can put it back: an agent, or ``enforcer release``.

Rules of this file:
- Written before the change that it speaks of. It is in the runtime directory: a reboot makes both sysfs and it new.
- A file that cannot be read counts as none: then nothing is taken for ours, so nothing is let in that somebody else keeps out.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import KernelError
from garrison.common.trust.durable import write_durably

__all__ = ["Holdings", "HoldingsFile", "Key"]

_FILE: Final = "usb.json"
_MAX_BYTES: Final = 1 << 20

Key = tuple[str, int]

_log = logging.getLogger(__name__)


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What was changed.

    Attributes:
        defaults: What became of new devices before: by root hub, and for controllers to come (empty name).
        refused: Devices that may not be used because we said so.
        foreign: Devices that somebody else keeps from being used.
    """

    defaults: dict[str, int] = {}
    refused: frozenset[Key] = frozenset()
    foreign: frozenset[Key] = frozenset()

    def without(self, name: str) -> Holdings:
        """Return what is left when the device called ``name`` is unplugged."""
        kept, foreign = ({key for key in keys if key[0] != name} for keys in (self.refused, self.foreign))
        defaults = {hub: value for hub, value in self.defaults.items() if hub != name or not hub}
        return Holdings(defaults=defaults, refused=frozenset(kept), foreign=frozenset(foreign))


class HoldingsFile:
    """The record on disk.

    Args:
        runtime_dir: A tmpfs that outlives the agent.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self._path = runtime_dir / _FILE

    def read(self) -> Holdings:
        """Return what was changed; nothing when there is no record."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_BYTES), type=Holdings)
        except FileNotFoundError:
            return Holdings()
        except (OSError, msgspec.DecodeError) as err:
            _log.error("usb_record=unreadable file=%s error=%s", self._path, err)
            return Holdings()

    def write(self, holdings: Holdings) -> None:
        """Replace the record; remove it when there is nothing to say.

        Raises:
            KernelError: It cannot be written.
        """
        if holdings != Holdings():
            write_durably(self._path, msgspec.json.encode(holdings))
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as err:
            raise KernelError(err.errno or 0, f"remove {self._path}") from err
