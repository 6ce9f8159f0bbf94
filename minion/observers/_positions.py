"""Remembers how far each source was read, durably, so that a restart neither skips nor repeats.

Rules of this file:
- At least once: after a crash a position may be up to two ``SETTLE_S`` old and some messages come twice; none is skipped. A
  position is written only when the events before it have had time to become durable in the spool.
- The file is replaced atomically and synced. A damaged file counts as none: sources then begin at their ends.
- Fail-open: when it cannot be written, observing goes on; ``error`` says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

__all__ = ["SETTLE_S", "Positions"]

# The spool commits within milliseconds; this covers a disk that stalls, and spares flash: a busy log costs a sync each time.
SETTLE_S: Final = 5.0
_VERSION: Final = 1

_log = logging.getLogger(__name__)


class Positions:
    """The position of one source, in a file of its own. Used by one thread.

    Args:
        path: The file; its directory is made when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.error = ""
        self._path = path
        self._saved: Any = None
        self._settling: tuple[float, Any] | None = None

    @property
    def settling(self) -> bool:
        """Whether a position waits to be written."""
        return self._settling is not None

    def load(self) -> Any:
        """Return the position of an earlier life; ``None`` when there is none, or none that can be read."""
        try:
            document = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as err:
            _log.warning("positions=unreadable path=%s error=%s", self._path, err)
            return None
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            _log.warning("positions=unreadable path=%s error=%s", self._path, "not a document of this version")
            return None
        self._saved = document.get("position")
        return self._saved

    def note(self, position: Any, now: float) -> None:
        """Take note that everything before ``position`` was emitted by ``now``; writes what was noted ``SETTLE_S`` ago."""
        if self._settling is None:
            if position != self._saved:
                self._settling = (now, position)
        elif now - self._settling[0] >= SETTLE_S:
            self._save(self._settling[1])
            self._settling = (now, position) if position != self._saved else None

    def settle(self, position: Any) -> None:
        """Write ``position`` now: at a clean stop, after which the spool is flushed, and where nothing came before it."""
        self._settling = None
        if position != self._saved:
            self._save(position)

    def _save(self, position: Any) -> None:
        part = self._path.with_name(self._path.name + ".part")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump({"version": _VERSION, "position": position}, file)
                file.flush()
                os.fsync(fd)
            part.replace(self._path)
            _sync_directory(self._path.parent)
        except OSError as err:
            with contextlib.suppress(OSError):
                part.unlink()
            if not self.error:
                _log.warning("positions=unwritten path=%s error=%s", self._path, err)
            self.error = f"{self._path} cannot be written: {err.strerror}"
            return
        self.error = ""
        self._saved = position


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
