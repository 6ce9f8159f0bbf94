"""The spool as the rest of the agent sees it: put, read by lane, acknowledge; one thread writes.

Rules of this file:
- ``put`` never blocks and never raises. What is durable survives power loss and kill -9; what cannot become durable is counted.
- A disk that refuses (full, read-only, failing) costs nothing but time: events wait in memory, bounded, then become gap events.
  The agent goes on: fail-open for telemetry, enforcement does not depend on it.
- A damaged file is rebuilt while running, see ``recover``; the writer never gives up and never spins.
Owns: the writer thread, retries, wake-ups.
Does not own: what a transaction does (``database``), what is sent when (``link.sender``).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import FrameError, SpoolError
from garrison.common.events import Event, Lane, encode_event
from garrison.common.frames import Batch
from garrison.minion.spool.caps import SpoolCaps
from garrison.minion.spool.database import SpoolDatabase, SpoolState
from garrison.minion.spool.intake import Intake, Work
from garrison.minion.spool.reader import DamagedSegmentError, SpoolReader
from garrison.minion.spool.recover import finish_swap, rebuild, sync_directory
from garrison.minion.spool.schema import is_damage
from garrison.minion.spool.segment import EVENTS, Cargo, Item, item_of
from garrison.minion.spool.stats import SpoolStats

__all__ = ["FILE_NAME", "Spool"]

FILE_NAME: Final = "spool.db"
_RETRY_MIN_S: Final = 0.05

_log = logging.getLogger(__name__)


class Spool:
    """An open spool; made by ``open``. All methods may be called from any thread."""

    def __init__(self, path: Path, caps: SpoolCaps, boot: str, database: SpoolDatabase, lock_fd: int, *, cargo: Cargo) -> None:
        self._path, self._caps, self._boot, self._lock_fd, self._cargo = path, caps, boot, lock_fd, cargo
        self._database: SpoolDatabase | None = database
        self._reader: SpoolReader | None = None
        self._read_lock = threading.Lock()
        self._state: SpoolState = database.state
        self._intake = Intake()
        self._done = threading.Condition()
        self._done_marks = (0, 0, 0)
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._error = self._damage = ""
        self._commits = self._committed = self._disk_errors = self._recoveries = 0
        self._writer = threading.Thread(target=self._write, name="spool", daemon=True)

    @classmethod
    def open(cls, directory: Path, caps: SpoolCaps, *, boot: str, cargo: Cargo = EVENTS) -> Spool:
        """Open the spool in ``directory``, making both when absent; a damaged file is rebuilt first.

        Args:
            directory: Its place; nothing else belongs there.
            caps: Its bounds.
            boot: Kernel boot id, for gap events.
            cargo: What it holds.

        Raises:
            SpoolError: Another process has it open, or the disk refuses.
        """
        path = directory / FILE_NAME
        lock_fd = -1
        recoveries = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = _lock(directory)
            finish_swap(path)
            try:
                database = SpoolDatabase(path, caps, boot, cargo)
            except (SpoolError, sqlite3.Error) as err:
                if isinstance(err, sqlite3.Error) and not is_damage(err):
                    raise
                rebuild(path, caps, boot, str(err), cargo)
                recoveries = 1
                database = SpoolDatabase(path, caps, boot, cargo)
            sync_directory(directory)
        except (OSError, sqlite3.Error, SpoolError) as err:
            if lock_fd >= 0:
                os.close(lock_fd)
            if isinstance(err, SpoolError):
                raise
            raise SpoolError(f"the spool in {directory} cannot be opened: {err}", hint="free or mend that disk") from err
        spool = cls(path, caps, boot, database, lock_fd, cargo=cargo)
        spool._recoveries = recoveries
        spool._writer.start()
        return spool

    # ---- in ------------------------------------------------------------------------------------------------------------
    def put(self, event: Event) -> None:
        """Take ``event``; durable within ``SPOOL_COMMIT_MAX_S`` and a disk sync. Never blocks, never raises."""
        try:
            item = item_of(event, encode_event(event))
        except (FrameError, ValueError) as err:  # ValueError: a lane that is none
            _log.warning("event=lost kind=%s error=%s", event.kind, err)
            self._intake.lose(event.lane if event.lane in set(Lane) else Lane.STATE, "it cannot be encoded or is too large")
            return
        self._intake.put(item, f"the disk refused: {self._error}" if self._error else "the queue was full")

    def offer(self, item: Item) -> int:
        """Take ``item`` if there is room; return what ``durable`` reaches once it is durable, 0 when it was not taken.

        For what may come again: not taken is not lost.
        """
        return self._intake.offer(item)

    @property
    def durable(self) -> int:
        """How many of the items taken since the opening are durable."""
        return self._done_marks[0]

    def flush(self, timeout_s: float) -> bool:
        """Wait until events put before are durable, or their loss is, and acks too; returns whether that came about."""
        wanted = self._intake.marks
        self._intake.hurry()
        with self._done:
            return self._done.wait_for(
                lambda: all(done >= mark for done, mark in zip(self._done_marks, wanted, strict=True)), timeout_s
            )

    def close(self) -> None:
        """Commit what is queued, in one attempt if the disk refuses, and close. Idempotent; later events are dropped."""
        self._intake.close()
        self._writer.join()
        with self._read_lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # ---- out -----------------------------------------------------------------------------------------------------------
    @property
    def epoch(self) -> str:
        """Current epoch, hex."""
        return self._state.epoch

    @property
    def next_seq(self) -> int:
        """The next sequence number of this epoch."""
        return self._state.next_seq

    def pending(self) -> dict[Lane, int]:
        """Return the number of durable, unacknowledged events of every lane."""
        return {lane: one.events for lane, one in self._state.lanes.items()}

    def acked(self) -> dict[Lane, tuple[int, int]]:
        """Return what was acknowledged of this epoch, by lane: the highest number, and how many events, -1 for unknown."""
        return {lane: (one.acked, one.done) for lane, one in self._state.lanes.items() if one.acked}

    def tails(self) -> dict[Lane, int]:
        """Return the highest durable number of every lane that has unacknowledged events."""
        return {lane: one.last for lane, one in self._state.lanes.items() if one.events}

    def next_batch(self, lane: Lane, after_seq: int, max_events: int, max_bytes: int) -> Batch | None:
        """Return the oldest durable events of ``lane`` after ``after_seq``; ``None`` if there are none, or none that read now.

        Args:
            lane: Which lane.
            after_seq: Number after which to begin; 0 for the oldest unacknowledged.
            max_events: At most so many.
            max_bytes: At most so many bytes of encoded events, but at least one event.
        """
        with self._read_lock:
            epoch = self._state.epoch
            try:
                if self._reader is None:
                    if self._database is None:
                        return None  # being rebuilt
                    self._reader = SpoolReader(self._path)
                seqs, events = self._reader.read(lane, after_seq, max_events, max_bytes)
            except DamagedSegmentError as err:
                _log.error("spool=damaged lane=%s first_seq=%s", err.lane.name, err.first_seq)
                self._intake.damaged(err.lane, err.first_seq)
                return None
            except sqlite3.Error as err:
                self._note_read_error(err)
                return None
        return Batch(epoch=epoch, lane=int(lane), seqs=seqs, events=events) if seqs else None

    def _note_read_error(self, err: sqlite3.Error) -> None:
        if is_damage(err):
            self._damage = str(err)
            self._intake.attend()
        else:
            self._disk_errors += 1
            self._error = str(err)

    def ack(self, epoch: str, lane: Lane, seq: int) -> None:
        """Have everything of ``lane`` up to ``seq`` deleted, durably and soon; another epoch's ack is ignored."""
        self._intake.ack(epoch, lane, seq)

    def renew(self, reason: str) -> None:
        """Begin a new epoch: the master has numbers that this spool is yet to give, so it was restored from a copy."""
        _log.error("spool=renewed reason=%s", reason)
        self._intake.renew(reason)

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called after each commit, in the writer's thread; it must not block. Returns how to end that.

        From asyncio: ``spool.subscribe(lambda: loop.call_soon_threadsafe(event.set))``. One that raises is not called again.
        """
        self._listeners = (*self._listeners, callback)

        def unsubscribe() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not callback)

        return unsubscribe

    def stats(self) -> SpoolStats:
        """Return figures; reads the oldest event of each lane."""
        state = self._state
        return SpoolStats(
            epoch=state.epoch,
            next_seq=state.next_seq,
            pending={lane.name.lower(): one.events for lane, one in state.lanes.items()},
            bytes={lane.name.lower(): one.bytes for lane, one in state.lanes.items()},
            cap_bytes=self._caps.total_bytes,
            file_bytes=sum(_size(self._path.with_name(self._path.name + suffix)) for suffix in ("", "-wal")),
            queued=len(self._intake),
            commits=self._commits,
            committed=self._committed,
            dropped=state.dropped,
            gaps=state.gaps,
            oldest_age_s=self._oldest_age_s(),
            disk_errors=self._disk_errors,
            disk_error=self._error,
            recoveries=self._recoveries,
        )

    def _oldest_age_s(self) -> float:
        stamps: list[int] = []
        for lane in self.tails():
            batch = self.next_batch(lane, 0, 1, 1)
            with suppress(FrameError):  # an event that this version cannot read has no age to show; the master keeps it as it is
                stamps += [self._cargo.stamp(raw) for raw in batch.events] if batch else []
        return max(0.0, (time.time_ns() - min(stamps)) / 1e9) if stamps else 0.0

    # ---- the writer ------------------------------------------------------------------------------------------------------
    def _write(self) -> None:
        delay_s = 0.0
        while (work := self._intake.take()) is not None:
            while not self._attempt(work):
                delay_s = min(max(delay_s * 2, _RETRY_MIN_S), limits.SPOOL_RETRY_MAX_S)
                if self._intake.wait_closed(delay_s) and not self._attempt(work):
                    _log.error("spool=closed lost=%s error=%s", len(work.items) + len(self._intake), self._error)
                    return
            delay_s = 0.0

    def _attempt(self, work: Work) -> bool:
        try:
            database = self._whole_database()
            state = database.commit(work) if work else database.state
            if not work:
                database.shrink()
        except (sqlite3.Error, OSError) as err:
            self._note_write_error(err)
            return False
        if self._error:
            _log.info("spool=recovered after=%s", self._error)
        self._error = ""
        self._state = state
        self._commits += bool(work)
        self._committed += len(work.items)
        with self._done:
            self._done_marks = work.marks
            self._done.notify_all()
        self._tell()
        return True

    def _note_write_error(self, err: Exception) -> None:
        self._disk_errors += 1
        if isinstance(err, sqlite3.Error) and is_damage(err):
            self._damage = str(err)
        if str(err) != self._error:
            _log.error("spool=stuck error=%s", err)
        self._error = str(err)

    def _whole_database(self) -> SpoolDatabase:
        if self._damage and self._database is not None:
            with self._read_lock:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                self._database.close()
                self._database = None
        if self._database is None:
            finish_swap(self._path)
            if self._damage:
                rebuild(self._path, self._caps, self._boot, self._damage, self._cargo)
                self._damage = ""
                self._recoveries += 1
            self._database = SpoolDatabase(self._path, self._caps, self._boot, self._cargo)
            self._state = self._database.state
        return self._database

    def _tell(self) -> None:
        for listener in self._listeners:
            try:
                listener()
            except RuntimeError as err:  # asyncio's word for a loop that has ended
                _log.debug("listener=gone error=%s", err)
                self._listeners = tuple(one for one in self._listeners if one is not listener)


def _lock(directory: Path) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(fd)
        raise SpoolError(f"another process has the spool in {directory} open", hint="one agent per directory") from err
    return fd


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
