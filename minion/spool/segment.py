"""Segments: runs of events of one lane, stored as one row each. Pure.

Why not a row per event: Python gives up its lock around every row that SQLite steps over, and under a flood of events from other
threads each of those costs a turn. A commit of 1,000 events is a handful of rows here, and so is a batch that is read.

Rules of this file:
- A segment holds unacknowledged events only; a partial ack rewrites its head.
- The checksum is over the body: a flipped bit becomes a counted loss, never false evidence.
- ``weight`` is what a segment stands for: its events, where a gap event counts for all that it tells of.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from garrison.common.errors import FrameError, SpoolError
from garrison.common.events import Event, Kind, Lane, decode_event
from garrison.minion.spool.caps import stored_bytes

__all__ = ["COLUMNS", "Item", "Numbered", "Segment", "cut", "item_of", "pack", "unpack"]

COLUMNS = "first_seq, last_seq, events, weight, covers, size, crc, body"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[list[int], list[bytes]])


class Item(NamedTuple):
    """An encoded event on its way into the spool.

    Attributes:
        lane: Its lane.
        raw: As ``encode_event`` made it.
        weight: 1, or for a gap event the number of events it tells of.
        covers: First number that a gap event tells of; 0 for other events and for losses that had no number.
    """

    lane: Lane
    raw: bytes
    weight: int = 1
    covers: int = 0


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


def cut(segment: Segment, lane: Lane, after_seq: int) -> list[Numbered]:
    """Return the events of ``segment`` after ``after_seq``, as items again.

    Raises:
        SpoolError: The segment is damaged.
    """
    seqs, raws = unpack(segment.crc, segment.body)
    rest = [(seq, raw) for seq, raw in zip(seqs, raws, strict=True) if seq > after_seq]
    try:
        return [Numbered(seq, item_of(decode_event(raw), raw)._replace(lane=lane)) for seq, raw in rest]
    except FrameError as err:
        raise SpoolError("a segment holds what is not an event") from err
