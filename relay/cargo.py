"""What a relay's spool holds: signed batches of nodes, and the relay's own events.

Rules of this file:
- How far the relay has each node's lane is written in the transaction that stores the batch: what was acked to a node is there,
  and what is there is not taken twice.
- A loss is told exactly, as an event of the relay: node, epoch, lane, first and last number, count. A gap event that is itself
  lost is counted in the next one.
- A damaged spool loses its marks: nodes send again what they still have, and the master knows what it has.
- The relay believes the head of an item that it wrote itself; it need not unpack batches to count them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from garrison.common.errors import FrameError, SpoolError
from garrison.common.events import Event, Kind, Lane
from garrison.common.relay_frames import Carried, decode_item, encode_item
from garrison.minion.spool import Item
from garrison.minion.spool.segment import Lost, Mark, gap_item, item_of, unpack

__all__ = ["RelayCargo", "carried_item"]

_MARK: Final = (
    "INSERT INTO marks (node, epoch, lane, seq) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (node, epoch, lane) DO UPDATE SET seq = max(seq, excluded.seq)"
)


def carried_item(lane: Lane, carried: Carried) -> Item:
    """Return the item for a batch of ``lane``."""
    mark = Mark(carried.node, carried.epoch, carried.last_seq)
    return Item(lane, encode_item(carried), max(1, carried.events), 0, mark)


@dataclass(slots=True)
class _Loss:
    count: int = 0
    first: int = 0
    last: int = 0

    def add(self, count: int, first: int, last: int) -> None:
        self.count += count
        self.first = min(self.first or first, first or self.first)
        self.last = max(self.last, last)


class RelayCargo:
    """Cargo of a relay's spool.

    Attributes:
        marks: How far each node's lanes were held when the spool was opened: ``(node, epoch, lane)`` → number.
    """

    def __init__(self) -> None:
        self.marks: dict[tuple[str, str, int], int] = {}

    def prepare(self, conn: sqlite3.Connection) -> None:
        """Make the table of marks, and read it."""
        conn.execute(
            "CREATE TABLE IF NOT EXISTS marks (node TEXT NOT NULL, epoch TEXT NOT NULL, lane INTEGER NOT NULL, "
            "seq INTEGER NOT NULL, PRIMARY KEY (node, epoch, lane)) WITHOUT ROWID"
        )
        rows = conn.execute("SELECT node, epoch, lane, seq FROM marks")
        self.marks = {(node, epoch, lane): seq for node, epoch, lane, seq in rows}

    def item(self, lane: Lane, raw: bytes) -> Item:
        """Return the item for stored bytes.

        Raises:
            FrameError: They are none.
        """
        found = decode_item(raw)
        return carried_item(lane, found) if isinstance(found, Carried) else item_of(found, raw)._replace(lane=lane)

    def stamp(self, raw: bytes) -> int:
        """Return when the relay took a batch, or when its own event came about.

        Raises:
            FrameError: The bytes are neither.
        """
        found = decode_item(raw)
        return found.at if isinstance(found, Carried) else found.ts

    def taken(self, conn: sqlite3.Connection, items: Sequence[Item]) -> None:
        """Move the marks of the nodes whose batches become durable; marks of their earlier epochs go."""
        marks = [(int(item.lane), item.mark) for item in items if item.mark is not None]
        conn.executemany(_MARK, [(mark.node, mark.epoch, lane, mark.seq) for lane, mark in marks])
        newest = {mark.node: mark.epoch for _, mark in marks}
        conn.executemany("DELETE FROM marks WHERE node = ? AND epoch != ?", sorted(newest.items()))

    def losses(self, lane: Lane, lost: Lost) -> Sequence[Item]:
        """Return a gap event for each node and epoch that loses something, and one for the relay's own events."""
        told: dict[tuple[str, str], _Loss] = {}
        for crc, body in lost.bodies:
            try:
                seqs, raws = unpack(crc, body)
                for seq, raw in zip(seqs, raws, strict=True):
                    _count(told, seq, raw)
            except (SpoolError, FrameError):
                told.setdefault(("", ""), _Loss())  # damaged: what it held cannot be told apart any more
        known = sum(loss.count for loss in told.values())
        if ("", "") in told and lost.weight > known:
            told["", ""].add(lost.weight - known, lost.first_seq, lost.last_seq)
        return [
            gap_item(
                lane,
                loss.count,
                lost.reason,
                first_seq=loss.first,
                last_seq=loss.last,
                boot=lost.boot,
                epoch=epoch,
                of_node=node,
            )
            for (node, epoch), loss in sorted(told.items())
            if loss.count
        ]


def _count(told: dict[tuple[str, str], _Loss], seq: int, raw: bytes) -> None:
    item = decode_item(raw)
    if isinstance(item, Carried):
        told.setdefault((item.node, item.epoch), _Loss()).add(item.events, item.first_seq, item.last_seq)
    elif item.kind == Kind.GAP:
        told.setdefault((_text(item, "of_node"), _text(item, "of_epoch")), _Loss()).add(
            max(1, _number(item, "count")), _number(item, "first_seq"), _number(item, "last_seq")
        )
    else:
        told.setdefault(("", ""), _Loss()).add(1, seq, seq)


def _text(event: Event, key: str) -> str:
    value = event.data.get(key, "")
    return value if isinstance(value, str) else ""


def _number(event: Event, key: str) -> int:
    value = event.data.get(key, 0)
    return value if isinstance(value, int) else 0
