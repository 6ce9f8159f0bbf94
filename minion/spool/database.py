"""The spool's file as its one writer sees it: every change is one transaction, in memory and on disk alike.

Rules of this file:
- Numbers are given here, at commit, over all lanes, and written with the events: none is ever given twice, also after everything
  was acked and deleted. Each opening skips ``SPOOL_REOPEN_SKIP``: a disk that lost the log's end cannot make one come twice.
- The mark of an ack and what it deletes are one transaction; so are a loss and its gap event.
- A gap's count is exact: events that are gone and were not acknowledged. Its numbers are the first and last of them; between them
  may be events that did arrive, when a gap that was itself dropped is counted in.
- A transaction that fails changes nothing: not the file, not the state here.
Owns: the writing connection, which alone checkpoints. Does not own: threads, retries (``spool``), damage (``recover``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import SpoolError
from garrison.common.events import Lane
from garrison.minion.spool.caps import PAGE_BYTES, SpoolCaps
from garrison.minion.spool.intake import Work
from garrison.minion.spool.schema import connect_writer, migrate, new_epoch, table, wal_bytes
from garrison.minion.spool.segment import COLUMNS, EVENTS, Cargo, Item, Lost, Numbered, Segment, cut, gap_item, pack

__all__ = ["LaneState", "SpoolDatabase", "SpoolState"]

_VACUUM_PAGES: Final = 256  # given back to the file system per idle commit: 1 MiB


class LaneState(msgspec.Struct):
    """Counters of a lane.

    Attributes:
        acked: Highest acknowledged number of the epoch.
        last: Highest number given.
        events: Stored.
        weight: Of what is stored.
        bytes: Space of what is stored.
        done: Events of the epoch that were acknowledged; -1 when they were not counted from its beginning on.
    """

    acked: int = 0
    last: int = 0
    events: int = 0
    weight: int = 0
    bytes: int = 0
    done: int = 0


class SpoolState(msgspec.Struct):
    """Where a spool stands. ``gaps`` and ``dropped`` count since it was opened."""

    epoch: str
    next_seq: int
    lanes: dict[Lane, LaneState]
    gaps: int = 0
    dropped: int = 0


class SpoolDatabase:
    """An open spool file.

    Args:
        path: The file; made when absent.
        caps: Its bounds.
        boot: Kernel boot id, for gap events.
        cargo: What it holds.

    Raises:
        SpoolError: A newer agent made it.
        sqlite3.Error: It cannot be opened, or is damaged.
    """

    def __init__(self, path: Path, caps: SpoolCaps, boot: str, cargo: Cargo = EVENTS) -> None:
        self.path, self._caps, self._boot, self._cargo = path, caps, boot, cargo
        if path.exists() and path.stat().st_size < PAGE_BYTES:
            # SQLite takes it for a new file; ours had events, or was interrupted while being made, which is as good as damaged.
            raise sqlite3.DatabaseError(f"the file has {path.stat().st_size} bytes")
        self._conn = connect_writer(path, wal_bytes(caps.total_bytes))
        try:
            migrate(self._conn)
            if path.stat().st_size <= limits.SPOOL_CHECK_MAX_BYTES:
                self._check()
            cargo.prepare(self._conn)
            self.state = self._load()
            self._skip_numbers()
        except BaseException:
            self._conn.close()
            raise

    def close(self) -> None:
        """Close; the readers must be closed before. Whatever is committed stays."""
        self._conn.close()

    def _check(self) -> None:
        (verdict,) = self._conn.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"quick_check: {verdict}")

    def _load(self) -> SpoolState:
        row = self._conn.execute("SELECT epoch, next_seq FROM spool WHERE id = 1").fetchone()
        if row is None:
            raise sqlite3.DatabaseError("the spool has no epoch")
        rows = self._conn.execute("SELECT lane, acked, last, events, weight, bytes, done FROM lanes").fetchall()
        lanes = {Lane(lane): LaneState(*rest) for lane, *rest in rows if lane in set(Lane)}
        if set(lanes) != set(Lane):
            raise sqlite3.DatabaseError("the spool misses a lane")
        return SpoolState(str(row[0]), int(row[1]), lanes)

    def _skip_numbers(self) -> None:
        if self.state.next_seq > 1:
            self.state.next_seq += limits.SPOOL_REOPEN_SKIP
        self._conn.execute("UPDATE spool SET next_seq = ? WHERE id = 1", (self.state.next_seq,))

    # ---- the transaction -------------------------------------------------------------------------------------------------
    def commit(self, work: Work) -> SpoolState:
        """Do ``work`` durably, or nothing of it; returns the new state.

        Raises:
            sqlite3.Error: The disk refused or is damaged.
        """
        change = _Transaction(self._conn, self.state, self._caps, self._boot, self._cargo)
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            change.run(work)
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise
        self.state = change.state
        return self.state

    def adopt(self, items: Iterable[tuple[Lane, Segment]], next_seq: int, gaps: Iterable[Item]) -> None:
        """Fill a new file with segments of a damaged one; their numbers are kept, in this file's epoch.

        Raises:
            sqlite3.Error: The disk refused.
        """
        change = _Transaction(self._conn, self.state, self._caps, self._boot, self._cargo)
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            change.adopt(items, next_seq)
            change.run(Work(items=list(gaps)))
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise
        self.state = change.state

    def shrink(self) -> None:
        """Give free pages back to the file system when they are a quarter of the file; called when there is nothing to do.

        Raises:
            sqlite3.Error: The disk refused.
        """
        (free,), (pages,) = (self._conn.execute(f"PRAGMA {p}").fetchone() for p in ("freelist_count", "page_count"))
        if free > _VACUUM_PAGES and free * 4 > pages:
            self._conn.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()


class _Transaction:
    """The changes of one transaction, on a copy of the state."""

    def __init__(self, conn: sqlite3.Connection, state: SpoolState, caps: SpoolCaps, boot: str, cargo: Cargo) -> None:
        self._conn, self._caps, self._boot, self._cargo = conn, caps, boot, cargo
        lanes = {lane: msgspec.structs.replace(one) for lane, one in state.lanes.items()}
        self.state = msgspec.structs.replace(state, lanes=lanes)

    def run(self, work: Work) -> None:
        if work.renew:
            self.state.epoch = new_epoch()
            for one in self.state.lanes.values():
                one.acked = one.done = 0
        for (epoch, lane), seq in work.acks.items():
            if epoch == self.state.epoch:
                self._ack(lane, seq)
        for lane, first_seq in work.damaged:
            self._give_up(lane, first_seq)
        self._store(work.items)
        self._cargo.taken(self._conn, work.items)
        for (lane, reason), count in work.losses.items():
            self._tell([gap_item(lane, count, reason, boot=self._boot)], count)
        self._overflow()
        self._save()

    def adopt(self, items: Iterable[tuple[Lane, Segment]], next_seq: int) -> None:
        last = next_seq - 1
        for lane, segment in items:
            self._insert(lane, segment)
            last = max(last, segment.last_seq)
        self.state.next_seq = max(self.state.next_seq, last + 1)

    def _store(self, items: Iterable[Item]) -> None:
        by_lane: dict[Lane, list[Numbered]] = {}
        seq = self.state.next_seq
        for item in items:
            by_lane.setdefault(item.lane, []).append(Numbered(seq, item))
            seq += 1
        self.state.next_seq = seq
        for lane, numbered in by_lane.items():
            for segment in pack(numbered, self._caps.segment_bytes):
                self._insert(lane, segment)

    def _insert(self, lane: Lane, segment: Segment) -> None:
        self._conn.execute(f"INSERT INTO {table(lane)} ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?)", segment)  # noqa: S608
        one = self.state.lanes[lane]
        one.last = max(one.last, segment.last_seq)
        one.events += segment.events
        one.weight += segment.weight
        one.bytes += segment.size

    def _delete(self, lane: Lane, first: int, last: int) -> None:
        # Removes whole segments.
        where = f"FROM {table(lane)} WHERE first_seq BETWEEN ? AND ? AND last_seq <= ?"
        events, weight, size = self._conn.execute(
            f"SELECT sum(events), sum(weight), sum(size) {where}",
            (first, last, last),
        ).fetchone()
        if events is None:
            return
        self._conn.execute(f"DELETE {where}", (first, last, last))
        one = self.state.lanes[lane]
        one.events -= events
        one.weight -= weight
        one.bytes -= size

    def _ack(self, lane: Lane, seq: int) -> None:
        one = self.state.lanes[lane]
        seq = min(seq, one.last)  # nobody can have what was never stored
        if seq <= one.acked:
            return
        before = one.events
        self._delete(lane, 0, seq)
        one.acked = seq
        gone = before - one.events
        row = self._conn.execute(
            f"SELECT {COLUMNS} FROM {table(lane)} WHERE first_seq <= ? LIMIT 1",  # noqa: S608
            (seq,),
        ).fetchone()
        if row is not None:
            gone += self._shorten(lane, Segment(*row), seq)
        if one.done >= 0:
            one.done += gone

    def _shorten(self, lane: Lane, segment: Segment, seq: int) -> int:
        # Returns how many events went because they were acknowledged.
        try:
            rest = cut(segment, lane, seq, self._cargo)
        except SpoolError:
            self._give_up(lane, segment.first_seq)
            return 0
        before = self.state.lanes[lane].events
        self._delete(lane, segment.first_seq, segment.last_seq)
        for shorter in pack(rest, self._caps.segment_bytes):
            self._insert(lane, shorter)
        return before - self.state.lanes[lane].events

    def _give_up(self, lane: Lane, first_seq: int) -> None:
        row = self._conn.execute(f"SELECT last_seq FROM {table(lane)} WHERE first_seq = ?", (first_seq,)).fetchone()  # noqa: S608
        if row is not None:
            self._lose(lane, first_seq, row[0], "the stored events were damaged")

    def _overflow(self) -> None:
        for lane, need in self._caps.surplus({lane: one.bytes for lane, one in self.state.lanes.items()}).items():
            freed = last = 0
            for size, last_seq in self._conn.execute(f"SELECT size, last_seq FROM {table(lane)} ORDER BY first_seq"):  # noqa: S608
                freed, last = freed + size, last_seq
                if freed >= need:
                    break
            self._lose(lane, 0, last, "the spool was full")

    def _lose(self, lane: Lane, first: int, last: int, reason: str) -> None:
        where = f"FROM {table(lane)} WHERE first_seq BETWEEN ? AND ? AND last_seq <= ?"
        weight, covers = self._conn.execute(f"SELECT sum(weight), min(covers) {where}", (first, last, last)).fetchone()
        if weight is None:
            return
        bodies = self._conn.execute(f"SELECT crc, body {where} ORDER BY first_seq", (first, last, last))
        lost = Lost(weight, covers, last, reason, self._boot, bodies)
        gaps = self._cargo.losses(lane, lost)
        bodies.close()
        self._delete(lane, first, last)
        self._tell(gaps, weight)

    def _tell(self, gaps: Sequence[Item], count: int) -> None:
        self._store(gaps)
        self.state.gaps += len(gaps)
        self.state.dropped += count

    def _save(self) -> None:
        state = self.state
        self._conn.execute("UPDATE spool SET epoch = ?, next_seq = ? WHERE id = 1", (state.epoch, state.next_seq))
        self._conn.executemany(
            "UPDATE lanes SET acked = ?, last = ?, events = ?, weight = ?, bytes = ?, done = ? WHERE lane = ?",
            [(one.acked, one.last, one.events, one.weight, one.bytes, one.done, int(lane)) for lane, one in state.lanes.items()],
        )
