"""Events into the store: one batch, durable, each event once.

Rules of this file:
- An event is ``(node, epoch, seq)``; a repeat is ignored, so sending again is always safe.
- Node, epoch and seq come from the authenticated key and the batch, never from the event's own bytes.
- What cannot be read is kept as it came, counted and acked: refusing it would have the node send it forever.
Owns: the ``events``, ``spools`` and ``acks`` tables. Does not own: the transaction (``writer``), questions (``query``).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import decode_event
from garrison.common.frames import Batch
from garrison.common.names import NodeName

__all__ = ["QUARANTINED", "Stored", "acked", "insert_batch"]

QUARANTINED: Final = "quarantined"  # kind of events whose record cannot be read

_INSERT: Final = (
    "INSERT OR IGNORE INTO events (spool, seq, node, ts, lane, kind, severity, operation, object, verdict, policy, rule, exe, "
    "received_at, quarantine, record) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_Row = tuple[int, int, str, int, int, str, int, str, str, str, str, str, str, int, str | None, bytes]


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


def insert_batch(conn: sqlite3.Connection, node: NodeName, batch: Batch) -> Stored:
    """Store a batch in the open transaction.

    Args:
        conn: The writing connection.
        node: Whose key the batch came under.
        batch: As ``decode_up`` checked it; its lane and numbers are within the store's range.
    """
    spool = _spool(conn, node, batch.epoch)
    rows, quarantined = _rows(spool, node, batch)
    before = conn.total_changes
    conn.executemany(_INSERT, rows)
    new = conn.total_changes - before
    (highest,) = conn.execute(
        "INSERT INTO acks (spool, lane, seq) VALUES (?, ?, ?) "
        "ON CONFLICT (spool, lane) DO UPDATE SET seq = max(seq, excluded.seq) RETURNING seq",
        (spool, batch.lane, batch.seqs[-1]),
    ).fetchone()
    return Stored(int(highest), new, len(batch.seqs) - new, quarantined)


def acked(conn: sqlite3.Connection, node: NodeName, epoch: str) -> dict[int, int]:
    """Return the highest durable seq by lane of one epoch of a node; empty when nothing came yet."""
    rows: Iterable[tuple[int, int]] = conn.execute(
        "SELECT lane, seq FROM acks WHERE spool = (SELECT id FROM spools WHERE node = ? AND epoch = ?)", (node, epoch)
    )
    return dict(rows)


def _spool(conn: sqlite3.Connection, node: str, epoch: str) -> int:
    found = conn.execute("SELECT id FROM spools WHERE node = ? AND epoch = ?", (node, epoch)).fetchone()
    if found is None:
        found = conn.execute("INSERT INTO spools (node, epoch) VALUES (?, ?) RETURNING id", (node, epoch)).fetchone()
    return int(found[0])


def _rows(spool: int, node: str, batch: Batch) -> tuple[list[_Row], int]:
    now, lane, quarantined = time.time_ns(), batch.lane, 0
    rows: list[_Row] = []
    for seq, raw in zip(batch.seqs, batch.events, strict=True):
        try:
            e = decode_event(raw)
        except FrameError as err:
            quarantined += 1
            why = f"{err} ({len(raw)} bytes)"
            kept = raw[: limits.EVENT_MAX_BYTES]
            rows.append((spool, seq, node, now, lane, QUARANTINED, 1, "", "", "", "", "", "", now, why, kept))
            continue
        exe = e.actor.exe if e.actor else ""
        rows.append(
            (
                spool,
                seq,
                node,
                e.ts,
                lane,
                e.kind,
                e.severity,
                e.operation,
                e.object,
                e.verdict,
                e.policy,
                e.rule,
                exe,
                now,
                None,
                raw,
            )
        )
    return rows, quarantined
