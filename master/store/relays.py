"""Relays in the store: which nodes are relays, and which nodes each may speak for. Their messages go to ``lane``."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from garrison.common.frames import Batch
from garrison.common.names import NodeName
from garrison.common.relay_frames import Forward

__all__ = ["Delivery", "forget", "note_relay", "relays"]


class Delivery(NamedTuple):
    """A message of a relay, judged.

    Attributes:
        relay: Whose.
        forward: As it came.
        batches: Verified batches in it, all of its lane, with the node of each.
        own: Events of the relay itself, and of the master about what it refused: number and record.
    """

    relay: NodeName
    forward: Forward
    batches: Sequence[tuple[NodeName, Batch]]
    own: Sequence[tuple[int, bytes]]


def note_relay(conn: sqlite3.Connection, node: NodeName, *, is_relay: bool, via: NodeName | None) -> bool:
    """Keep that ``node`` is a relay, or may be spoken for by the relay ``via``; return whether that changed anything."""
    changes = 0
    if is_relay:
        changes += conn.execute("INSERT OR IGNORE INTO relays (name) VALUES (?)", (node,)).rowcount
    if via is not None:
        changes += conn.execute("INSERT OR IGNORE INTO relay_nodes (relay, node) VALUES (?, ?)", (via, node)).rowcount
    return changes > 0


def forget(conn: sqlite3.Connection, name: str) -> None:
    """Forget that a retired node was a relay, or behind one: accepted again, it is what it is accepted as."""
    conn.execute("DELETE FROM relays WHERE name = ?", (name,))
    conn.execute("DELETE FROM relay_nodes WHERE relay = ? OR node = ?", (name, name))


def relays(conn: sqlite3.Connection) -> dict[NodeName, list[NodeName]]:
    """Return all relays with the nodes that each may speak for."""
    found: dict[NodeName, list[NodeName]] = {NodeName(row[0]): [] for row in conn.execute("SELECT name FROM relays")}
    for relay, node in conn.execute("SELECT relay, node FROM relay_nodes ORDER BY node"):
        found.setdefault(NodeName(relay), []).append(NodeName(node))
    return found
