"""Segments: runs of events of one lane, stored as one row each. Pure.

Why not a row per event: Python gives up its lock around every row that SQLite steps over, and under a flood of events from other
threads each of those costs a turn. A commit of 1,000 events is a handful of rows here, and so is a batch that is read.

Rules of this file:
- A segment holds unacknowledged events only; a partial ack rewrites its head.
- The checksum is over the body: a flipped bit becomes a counted loss, never false evidence.
- ``weight`` is what a segment stands for: its events, where a gap event counts for all that it tells of.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from garrison.common.errors import FrameError, SpoolError
from garrison.common.events import Event, Kind, Lane, Scalar, decode_event, encode_event
from garrison.minion.spool.caps import stored_bytes

__all__ = [
    "COLUMNS",
    "EVENTS",
    "Cargo",
    "EventCargo",
    "Item",
    "Lost",
    "Mark",
    "Numbered",
    "Segment",
    "cut",
    "gap_item",
    "item_of",
    "pack",
    "unpack",
]

COLUMNS = "first_seq, last_seq, events, weight, covers, size, crc, body"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[list[int], list[bytes]])


class Mark(NamedTuple):
    """How far a relay has a node's lane with an item: whose, epoch, number."""

    node: str
    epoch: str
    seq: int


class Item(NamedTuple):
    """An encoded event on its way into the spool.

    Attributes:
        lane: Its lane.
        raw: As ``encode_event`` made it.
        weight: 1, or for a gap event the number of events it tells of.
        covers: First number that a gap event tells of; 0 for other events and for losses that had no number.
        mark: In a relay's spool, what it is of a node's; ``None`` for all else.
    """

    lane: Lane
    raw: bytes
    weight: int = 1
    covers: int = 0
    mark: Mark | None = None


class Numbered(NamedTuple):
    """An item and the sequence number it got."""

    seq: int
    item: Item


class Segment(NamedTuple):
    """A row; ``COLUMNS`` in this order."""

    first_seq: int
    last_seq: int
    events: int
    weight: int
    covers: int
    size: int
    crc: int
    body: bytes


def item_of(event: Event, raw: bytes) -> Item:
    """Return the item for ``event``, whose encoding is ``raw``.

    Raises:
        ValueError: Its lane is none of ours.
    """
    lane = Lane(event.lane)
    if event.kind != Kind.GAP:
        return Item(lane, raw)
    count, first = event.data.get("count", 0), event.data.get("first_seq", 0)
    return Item(
        lane,
        raw,
        count if isinstance(count, int) and count > 0 else 1,
        first if isinstance(first, int) and first > 0 else 0,
    )


class Cargo(Protocol):
    """What a spool holds: events of a node, or what a relay carries. Called in the writer's transaction."""

    def prepare(self, conn: sqlite3.Connection) -> None:
        """Make tables of its own, if it needs any; called at each opening."""

    def item(self, lane: Lane, raw: bytes) -> Item:
        """Return the item for stored bytes.

        Raises:
            FrameError: They are none.
        """

    def stamp(self, raw: bytes) -> int:
        """Return when stored bytes came about, ns since 1970 UTC.

        Raises:
            FrameError: They are none.
        """

    def taken(self, conn: sqlite3.Connection, items: Sequence[Item]) -> None:
        """Note that ``items`` become durable with this transaction."""

    def losses(self, lane: Lane, lost: Lost) -> Sequence[Item]:
        """Return the gap events for what is deleted without having been acknowledged."""


class Lost(NamedTuple):
    """Segments that are deleted without having been acknowledged.

    Attributes:
        weight: How many events they stand for.
        first_seq: The first number they stand for.
        last_seq: The last one.
        reason: Why, for a person.
        boot: Kernel boot id.
        bodies: Their checksums and bodies, one by one.
    """

    weight: int
    first_seq: int
    last_seq: int
    reason: str
    boot: str
    bodies: Iterable[tuple[int, bytes]]


class EventCargo:
    """Events of one node."""

    def prepare(self, conn: sqlite3.Connection) -> None:
        """Need nothing."""

    def item(self, lane: Lane, raw: bytes) -> Item:
        """Return the item for an encoded event."""
        return item_of(decode_event(raw), raw)._replace(lane=lane)

    def stamp(self, raw: bytes) -> int:
        """Return the event's own time."""
        return decode_event(raw).ts

    def taken(self, conn: sqlite3.Connection, items: Sequence[Item]) -> None:
        """Note nothing."""

    def losses(self, lane: Lane, lost: Lost) -> Sequence[Item]:
        """Return one gap event over all that is lost."""
        first, last = lost.first_seq, lost.last_seq
        return [gap_item(lane, lost.weight, lost.reason, first_seq=first, last_seq=last, boot=lost.boot)]


EVENTS: Final = EventCargo()


def gap_item(
    lane: Lane, count: int, reason: str, *, first_seq: int = 0, last_seq: int = 0, boot: str, epoch: str = "", of_node: str = ""
) -> Item:
    """Return the gap event for ``count`` lost events; numbers are 0 when the events had none yet.

    Args:
        lane: The lane that lost them.
        count: How many; 0 when nobody can know.
        reason: Why, for a person.
        first_seq: First number lost.
        last_seq: Last number lost.
        boot: Kernel boot id.
        epoch: Epoch of the numbers, when it is not the gap's own.
        of_node: Whose events they were, when they are not the gap's own node's.
    """
    data: dict[str, Scalar | list[Scalar]] = {
        "first_seq": first_seq,
        "last_seq": last_seq,
        "count": count,
        "reason": reason[:500],
    }
    data |= {"of_epoch": epoch} if epoch else {}
    data |= {"of_node": of_node} if of_node else {}
    event = Event(ts=time.time_ns(), mono=time.monotonic_ns(), boot=boot, lane=lane, kind=Kind.GAP, severity=7, data=data)
    return item_of(event, encode_event(event))


def pack(numbered: Iterable[Numbered], max_bytes: int) -> Iterator[Segment]:
    """Yield the segments of events of one lane in rising order, each of at most ``max_bytes`` of events or one event."""
    part: list[Numbered] = []
    size = 0
    for one in numbered:
        if part and size + len(one.item.raw) > max_bytes:
            yield _segment(part)
            part, size = [], 0
        part.append(one)
        size += len(one.item.raw)
    if part:
        yield _segment(part)


def _segment(part: list[Numbered]) -> Segment:
    body = _encoder.encode(([one.seq for one in part], [one.item.raw for one in part]))
    return Segment(
        first_seq=part[0].seq,
        last_seq=part[-1].seq,
        events=len(part),
        weight=sum(one.item.weight for one in part),
        covers=min(one.item.covers or one.seq for one in part),
        size=stored_bytes(len(body)),
        crc=zlib.crc32(body),
        body=body,
    )


def unpack(crc: int, body: bytes) -> tuple[list[int], list[bytes]]:
    """Return sequence numbers and encoded events of a body.

    Raises:
        SpoolError: The body is not what was written.
    """
    if zlib.crc32(body) != crc:
        raise SpoolError("a segment's checksum does not fit its content")
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as err:
        raise SpoolError("a segment is not a list of events") from err


def cut(segment: Segment, lane: Lane, after_seq: int, cargo: Cargo = EVENTS) -> list[Numbered]:
    """Return the events of ``segment`` after ``after_seq``, as items again.

    Raises:
        SpoolError: The segment is damaged.
    """
    seqs, raws = unpack(segment.crc, segment.body)
    rest = [(seq, raw) for seq, raw in zip(seqs, raws, strict=True) if seq > after_seq]
    try:
        return [Numbered(seq, cargo.item(lane, raw)) for seq, raw in rest]
    except FrameError as err:
        raise SpoolError("a segment holds what is not an event") from err
