"""Events of one lane into the file of the day: each once, durable with its mark in one transaction.

Rules of this file:
- An event is ``(node, epoch, seq)``. Node, epoch and seq come from the authenticated key and the batch, never from the event's
  own bytes; what cannot be read is kept as it came, counted and acked.
- A number above the highest that came in its lane is new. One at or below it may be there: it is looked for in the files of all
  days, not only the last. So a batch that comes again after midnight, or by another way, is stored once, and no other is dropped.
- Once a batch of a connection failed, later ones of it are refused: an ack covers all before it, and must not cover that one.
- The day is that of the master's clock. When it changes, marks are carried into the next file before anything is written there.
Owns: the lane's writing connection, marks, words. Does not own: the thread (``writer``), questions (``query``).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from garrison.common import limits
from garrison.common.errors import FrameError, StoreError
from garrison.common.events import Event, Kind, Lane, decode_event, encode_event
from garrison.common.frames import Batch
from garrison.common.names import NodeName
from garrison.master.store import dayfile
from garrison.master.store.arrivals import Arrivals
from garrison.master.store.catalogue import Catalogue
from garrison.master.store.dayfile import DayFile, Facts, Mark, Row, day_of
from garrison.master.store.relays import Delivery
from garrison.master.store.writer import OneFile, connect

__all__ = ["MASTER_EPOCH", "QUARANTINED", "Inflow", "LaneLog", "Restored", "Stored"]

QUARANTINED: Final = "quarantined"  # kind of events whose record cannot be read
MASTER_EPOCH: Final = "master"  # of what the master itself records; a node's epochs are hexadecimal
_WORDS_KEPT: Final = 50_000  # numbers of texts known without asking the file


class Stored(NamedTuple):
    """What became of a batch.

    Attributes:
        acked: Highest durable seq of the batch's epoch and lane.
        new: Events stored.
        repeated: Events that were there already.
        quarantined: Events whose record cannot be read, among the batch's.
    """

    acked: int
    new: int
    repeated: int
    quarantined: int


class Restored(NamedTuple):
    """What a node had been acked and this store does not hold.

    Attributes:
        last_seq: The highest number the node was acked.
        held_seq: The highest number the store has.
        missing: How many events; -1 when nobody can know.
    """

    last_seq: int
    held_seq: int
    missing: int


class Inflow:
    """What came on one connection. ``broken``: a batch of it was not stored, so no later one may be."""

    __slots__ = ("broken",)

    def __init__(self) -> None:
        self.broken = False


class LaneLog:
    """One lane's events; the target of its writer.

    Args:
        lane: Which.
        catalogue: The files.
        arrivals: Gives numbers of arrival.
        clock_ns: The master's clock.
    """

    def __init__(self, lane: Lane, catalogue: Catalogue, arrivals: Arrivals, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.lane = lane
        self._catalogue, self._arrivals, self._clock_ns = catalogue, arrivals, clock_ns
        self.file: DayFile | None = None  # the one that is written
        self._conn: sqlite3.Connection | None = None
        self._facts, self._new_facts = Facts(), Facts()
        self._marks: dict[tuple[str, str], Mark] = {}
        self._new_marks: dict[tuple[str, str], Mark] = {}
        self._words: dict[str, int] = {}
        self._new_words: dict[str, int] = {}
        self._turn = 0
        for file, facts in catalogue.files(lane):
            if facts.turn > self._turn:
                self._turn = facts.turn
                with catalogue.reading(file) as conn:
                    self._marks = dayfile.read_marks(conn)

    # ---- the target of the writer --------------------------------------------------------------------------------------
    def connection(self) -> sqlite3.Connection:
        """Return the connection to the file of today.

        Raises:
            StoreError: It cannot be made.
        """
        today = DayFile(day_of(self._clock_ns()), self.lane)
        if self._conn is None or self.file != today:
            self._conn = self._turn_to(today)
        return self._conn

    def committed(self) -> None:
        """Make known what is durable now."""
        self._marks.update(self._new_marks)
        self._words.update(self._new_words)
        if len(self._words) > _WORDS_KEPT:
            self._words.clear()
        if self.file is not None and self._new_facts != self._facts:
            self._facts = self._new_facts
            self._catalogue.update(self.file, self._facts)
        self._forget()

    def undone(self) -> None:
        """Forget what is not durable."""
        self._forget()

    def _forget(self) -> None:
        self._new_marks, self._new_words, self._new_facts = {}, {}, self._facts
        self._arrivals.settle(self.lane)

    def close(self) -> None:
        """Checkpoint and close."""
        if self._conn is not None:
            OneFile(self._conn).close()
            self._conn = None

    def _turn_to(self, file: DayFile) -> sqlite3.Connection:
        path = self._catalogue.path(file)
        conn = connect(path, read_only=False)
        try:
            path.chmod(0o600)
            conn.execute("BEGIN IMMEDIATE")
            dayfile.make_tables(conn)
            facts = dayfile.read_facts(conn) or Facts()
            if not facts.turn or facts.turn < self._turn:
                base = facts.base_id if facts.turn else self._arrivals.settled
                facts = msgspec.structs.replace(facts, turn=self._turn + 1, base_id=base)
                dayfile.carry(conn, self._marks.items())
                dayfile.write_facts(conn, facts)
            conn.execute("COMMIT")
            dayfile.sync_directory(self._catalogue.directory)
            marks = dayfile.read_marks(conn)  # their numbers are this file's own
        except (sqlite3.Error, OSError) as err:
            conn.close()
            raise StoreError(f"{path} cannot be begun") from err
        before, self.file = self._conn, file
        self._catalogue.write(file)
        if before is not None:
            # Readers would keep the old file from standing alone: those that are not at work let go of it.
            self._catalogue.close_idle()
            dayfile.seal(before)
        self._marks, self._words, self._turn = marks, {}, facts.turn
        self._facts = self._new_facts = facts
        self._catalogue.update(file, facts)
        return conn

    # ---- what is stored --------------------------------------------------------------------------------------------------
    def acked(self, node: str, epoch: str) -> int:
        """Return the highest durable number; 0 for none. Any thread."""
        mark = self._marks.get((node, epoch))
        return mark.acked if mark else 0

    def highest(self, node: str, epoch: str) -> int:
        """Return the highest number that came, by whatever way; 0 for none. Any thread."""
        mark = self._marks.get((node, epoch))
        return mark.highest if mark else 0

    def insert(self, conn: sqlite3.Connection, node: NodeName, batch: Batch, inflow: Inflow, *, relayed: bool = False) -> Stored:
        """Store a batch in the open transaction.

        Args:
            conn: The writing connection.
            node: Whose key the batch came under.
            batch: As ``decode_up`` checked it; its lane and numbers are within the store's range.
            inflow: Of the connection it came on.
            relayed: It came by another way than the node's own link, which may still hold earlier ones: what may be acked to
                the node stays as it is.

        Raises:
            StoreError: An earlier batch of the connection was not stored.
        """
        if inflow.broken:
            raise StoreError("an earlier batch of this connection was not stored")
        try:
            return self._insert(conn, node, batch, relayed=relayed)
        except BaseException:
            inflow.broken = True
            raise

    def insert_forward(self, conn: sqlite3.Connection, delivery: Delivery) -> Stored:
        """Store everything in a relay's message in the open transaction, or nothing; ``acked`` is the relay's own number.

        What came by a relay never moves the mark that a node deletes by: a relay that held something back must not have a node
        delete it.
        """
        before = self._new_words.copy(), self._new_marks.copy(), self._new_facts
        try:
            return self._insert_forward(conn, delivery)
        except BaseException:
            self._new_words, self._new_marks, self._new_facts = before
            raise

    def _insert_forward(self, conn: sqlite3.Connection, delivery: Delivery) -> Stored:
        stored = [self._insert(conn, node, batch, relayed=True) for node, batch in delivery.batches]
        forward, key = delivery.forward, (str(delivery.relay), delivery.forward.epoch)
        if delivery.own:
            seqs, records = [seq for seq, _ in delivery.own], [raw for _, raw in delivery.own]
            own = Batch(epoch=forward.epoch, lane=forward.lane, seqs=seqs, events=records)
            stored.append(self._insert(conn, delivery.relay, own, relayed=True))
        mark, last = self._mark(conn, key), forward.seqs[-1]
        raised = Mark(mark.spool, max(mark.acked, last), max(mark.highest, last), mark.stored)
        _raise(conn, raised)
        self._new_marks[key] = raised
        return Stored(
            raised.acked,
            new=sum(part.new for part in stored),
            repeated=sum(part.repeated for part in stored),
            quarantined=sum(part.quarantined for part in stored),
        )

    def _insert(self, conn: sqlite3.Connection, node: NodeName, batch: Batch, *, relayed: bool) -> Stored:
        key, seqs = (str(node), batch.epoch), batch.seqs
        mark = self._mark(conn, key)
        held = self._held(conn, key, mark, seqs) if seqs[0] <= mark.highest else frozenset[int]()
        words = _Words(conn, self._words, self._new_words)
        first = self._arrivals.take(self.lane, len(seqs))
        rows, quarantined = _rows(mark.spool, batch, first, self._clock_ns(), words)
        wanted = [row for row in rows if row[2] not in held] if held else rows
        before = conn.total_changes
        conn.executemany(dayfile.INSERT, wanted)
        new = conn.total_changes - before
        highest = max(mark.highest, seqs[-1])
        raised = Mark(mark.spool, mark.acked if relayed else max(mark.acked, seqs[-1]), highest, mark.stored + new)
        _raise(conn, raised)
        facts = self._new_facts
        if new:
            times = [row[3] for row in wanted]
            facts = facts.with_events(new, (first, first + len(seqs) - 1), (min(times), max(times)))
            dayfile.write_facts(conn, facts)
        # Nothing of this is known before all of it went well: a batch that fails is undone alone.
        self._new_words |= words.new
        self._new_marks[key], self._new_facts = raised, facts
        return Stored(raised.acked, new, len(seqs) - new, quarantined)

    def _mark(self, conn: sqlite3.Connection, key: tuple[str, str]) -> Mark:
        if (mark := self._new_marks.get(key) or self._marks.get(key)) is not None:
            return mark
        (spool,) = conn.execute(
            "INSERT INTO spools (node, epoch, acked, highest, stored) VALUES (?, ?, 0, 0, 0) RETURNING id", key
        ).fetchone()
        return Mark(spool)

    def _held(self, conn: sqlite3.Connection, key: tuple[str, str], mark: Mark, seqs: Sequence[int]) -> frozenset[int]:
        """Return which of these numbers are in files of other days."""
        low = {seq for seq in seqs if seq <= mark.highest}
        between = "SELECT e.seq FROM events e WHERE e.spool = ? AND e.seq BETWEEN ? AND ?"
        missing = low - {seq for (seq,) in conn.execute(between, (mark.spool, min(low), max(low)))}
        held: set[int] = set()
        for file, facts in reversed(self._catalogue.files(self.lane)):
            if not missing:
                break
            if file == self.file or not facts.events:
                continue
            try:
                with self._catalogue.reading(file) as other:
                    found = {seq for (seq,) in other.execute(_ELSEWHERE, (*key, min(missing), max(missing)))}
            except StoreError:
                if self._catalogue.facts(file) is None:  # dropped or set aside at this moment
                    continue
                raise
            held |= found & missing
            missing -= found
        return frozenset(held)

    # ---- what the master itself has to say -----------------------------------------------------------------------------
    def record(self, conn: sqlite3.Connection, event: Event) -> int:
        """Store an event of the master's own, about ``event.node``; return its number of arrival."""
        key = (event.node, MASTER_EPOCH)
        mark = self._mark(conn, key)
        number = self._arrivals.take(self.lane, 1)
        words = _Words(conn, self._words, self._new_words)
        batch = Batch(epoch=MASTER_EPOCH, lane=int(self.lane), seqs=[number], events=[encode_event(event)])
        rows, _ = _rows(mark.spool, batch, number, self._clock_ns(), words)
        conn.executemany(dayfile.INSERT, rows)
        raised = Mark(mark.spool, number, number, mark.stored + 1)
        _raise(conn, raised)
        facts = self._new_facts.with_events(1, (number, number), (event.ts, event.ts))
        dayfile.write_facts(conn, facts)
        self._new_words |= words.new
        self._new_marks[key], self._new_facts = raised, facts
        return number

    def note_acked(self, conn: sqlite3.Connection, node: NodeName, epoch: str, last_seq: int, events: int) -> Restored | None:
        """Compare with what a node was acked; what is missing here is recorded as a gap, once.

        Args:
            conn: The writing connection.
            node: Whose.
            epoch: Of its spool.
            last_seq: The highest number it was acked in this lane.
            events: How many events of the epoch and lane it was acked; -1 when it does not know.
        """
        key = (str(node), epoch)
        mark = self._new_marks.get(key) or self._marks.get(key) or Mark(0)
        if last_seq <= mark.acked:
            return None
        missing = max(0, events - mark.stored) if events >= 0 else -1
        reason = f"restored from an older copy: the node had been acked up to {last_seq}, this store has up to {mark.acked}"
        gap = Event(
            node=node,
            ts=self._clock_ns(),
            lane=self.lane,
            kind=Kind.GAP,
            severity=7,
            data={
                "first_seq": mark.acked + 1,
                "last_seq": last_seq,
                "count": max(0, missing),
                "reason": reason,
                "of_epoch": epoch,
            },
        )
        spool = self._mark(conn, key).spool
        raised = Mark(spool, last_seq, mark.highest, max(mark.stored, events))
        _raise(conn, raised)
        self.record(conn, gap)
        self._new_marks[key] = raised
        return Restored(last_seq, mark.acked, missing)


_ELSEWHERE: Final = (
    "SELECT e.seq FROM events e WHERE e.spool = (SELECT id FROM spools WHERE node = ? AND epoch = ?) AND e.seq BETWEEN ? AND ?"
)


def _raise(conn: sqlite3.Connection, mark: Mark) -> None:
    conn.execute(
        "UPDATE spools SET acked = ?, highest = ?, stored = ? WHERE id = ?", (mark.acked, mark.highest, mark.stored, mark.spool)
    )


class _Words:
    """Numbers of texts in the file of today, given in a transaction that may still be undone."""

    def __init__(self, conn: sqlite3.Connection, *known: dict[str, int]) -> None:
        self._conn, self._known, self.new = conn, known, dict[str, int]()

    def number(self, text: str) -> int:
        if not text:
            return 0
        for known in (*self._known, self.new):
            if (found := known.get(text)) is not None:
                return found
        row = self._conn.execute("SELECT id FROM words WHERE text = ?", (text,)).fetchone()
        if row is None:
            row = self._conn.execute("INSERT INTO words (text) VALUES (?) RETURNING id", (text,)).fetchone()
        self.new[text] = int(row[0])
        return self.new[text]


def _rows(spool: int, batch: Batch, first: int, now: int, words: _Words) -> tuple[list[Row], int]:
    number, rows, quarantined = words.number, list[Row](), 0
    for id_, (seq, raw) in enumerate(zip(batch.seqs, batch.events, strict=True), first):
        try:
            e = decode_event(raw)
        except FrameError as err:
            quarantined += 1
            why = f"{err} ({len(raw)} bytes)"
            rows.append((id_, spool, seq, now, number(QUARANTINED), 0, 0, 0, now, why, raw[: limits.EVENT_MAX_BYTES]))
            continue
        exe = number(e.actor.exe) if e.actor else 0
        rows.append((id_, spool, seq, e.ts, number(e.kind), number(e.verdict), number(e.policy), exe, now, None, raw))
    return rows, quarantined
