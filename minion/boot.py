"""Counts boots and says which stored generation this one may start with: a policy that breaks a node ends after a few reboots.

    SOUND ── three boots in a row never became healthy ──► PREVIOUS ── one more ──► NOTHING
      ▲                                                       │                       │
      └────────── confirmed by a person, or a new assignment was applied ─────────────┘

Rules of this file:
- A boot is counted before anything is enforced, so one that dies of it is counted too. It counts once, by the kernel's boot id,
  however often the agent starts.
- A boot is good when the agent applied what it had to and then turned for ``BOOT_HEALTHY_S``; an orderly stop before is none.
- Safe mode (``PREVIOUS``, ``NOTHING``) is left by a decision alone, never by a good boot: that boot was good *because* of it.
- The record is replaced durably in one step. One that cannot be read counts as none; one that cannot be written leaves the
  boot uncounted, and policy is enforced all the same (closed): a full disk must not switch enforcement off.
Owns: the count, the file. Does not own: what is enforced (``last_good``, ``agent``).
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import KernelError
from garrison.common.trust.durable import write_durably

__all__ = ["BootLog", "BootRecord", "Footing", "applied", "begin", "confirmed", "healthy"]

_FILE: Final = "boot.json"
_LOCK: Final = "boot.lock"

_log = logging.getLogger(__name__)


class Footing(StrEnum):
    """Which stored generation a node starts with."""

    SOUND = "sound"  # the newest one
    PREVIOUS = "previous"  # safe mode: the one before it, nothing if there is none
    NOTHING = "nothing"  # safe mode: none


class BootRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this boot and those before it.

    Attributes:
        v: Version of the format.
        boot: Kernel boot id of the boot counted last; empty before the first.
        healthy: That boot became healthy.
        failed: Boots in a row before it that did not.
        footing: What this boot starts with.
    """

    v: int = 1
    boot: str = ""
    healthy: bool = False
    failed: int = 0
    footing: Footing = Footing.SOUND

    @property
    def safe_mode(self) -> bool:
        """Whether the newest generation is not trusted."""
        return self.footing is not Footing.SOUND


def begin(record: BootRecord, boot: str) -> BootRecord:
    """Return the record of the boot ``boot``, which begins now or has begun."""
    if record.boot == boot:
        return record
    failed = 0 if record.healthy or not record.boot else record.failed + 1
    footing = record.footing
    if record.safe_mode and failed:
        footing = Footing.NOTHING
    elif failed >= limits.BOOT_FAILURES_MAX:
        footing = Footing.PREVIOUS
    return BootRecord(boot=boot, failed=failed, footing=footing)


def healthy(record: BootRecord) -> BootRecord:
    """Return the record after this boot proved good."""
    return msgspec.structs.replace(record, healthy=True)


def confirmed(record: BootRecord) -> BootRecord:
    """Return the record after a person said that the newest generation is to be tried again."""
    return msgspec.structs.replace(record, failed=0, footing=Footing.SOUND, healthy=False)


def applied(record: BootRecord) -> BootRecord:
    """Return the record after a new generation was applied: it has nothing to answer for, and has to prove itself."""
    return confirmed(record)


class BootLog:
    """The record on disk, shared by early enforcement, the agent and ``garrison minion confirm``.

    Args:
        directory: The minion's data directory.
    """

    def __init__(self, directory: Path) -> None:
        self._path, self._lock = directory / _FILE, directory / _LOCK

    def read(self) -> BootRecord:
        """Return the record; an empty one when there is none or it cannot be understood."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(limits.BOOT_FILE_MAX_BYTES), type=BootRecord)
        except FileNotFoundError:
            return BootRecord()
        except (OSError, msgspec.DecodeError) as err:
            _log.error("boot_record=unreadable file=%s error=%s", self._path, err)
            return BootRecord()

    def change(self, step: Callable[[BootRecord], BootRecord]) -> BootRecord:
        """Read, take ``step`` and write, as one; nothing is written when nothing changes.

        Raises:
            KernelError: The new record could not be written; the old one stands.
        """
        with self._alone():
            before = self.read()
            after = step(before)
            if after != before:
                write_durably(self._path, msgspec.json.encode(after) + b"\n")
            return after

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as err:
            raise KernelError(err.errno or 0, f"open {self._lock}") from err
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
