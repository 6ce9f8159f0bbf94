"""Nodes in the store: their accepted keys, what they last said of themselves, what they enforce.

Rules of this file:
- A key belongs to one node for ever; a name may get a new key only after its old one was retired.
- What a node reports is kept as reported. A generation that is higher than assigned is shown, never lowered.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from garrison.common.errors import ConfigError, StoreError
from garrison.common.frames import ApplyReport, Hello, RuleReport
from garrison.common.names import KeyFingerprint, NodeName, fingerprint
from garrison.master.records import NodeBrief

__all__ = ["ACCEPTED", "RETIRED", "NodeRow", "accept", "all_nodes", "node_briefs", "reject", "rejected", "retire", "rules_of"]

ACCEPTED: Final = "accepted"
RETIRED: Final = "retired"

_COLUMNS: Final = (
    "name, key, fingerprint, state, last_seen, address, hello, generation, bundle, apply_state, apply_error, apply_generation"
)
_hello: Final = msgspec.msgpack.Decoder(Hello)
_rules: Final = msgspec.msgpack.Decoder(list[RuleReport])
_encode: Final = msgspec.msgpack.encode


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A node as stored.

    Attributes:
        name: Its name.
        key: Z85 CURVE public key.
        fingerprint: Of ``key``.
        state: ``accepted`` or ``retired``.
        last_seen: ns since 1970 UTC; 0 for never.
        address: Where it last came from.
        hello: What it last said of itself; ``None`` before its first connection.
        generation: What it enforces by its last word; 0 for nothing.
        bundle: Digest of the bundle it enforces.
        apply_state: What became of its last assignment: ``applied`` ``refused`` ``failed``, or empty.
        apply_error: Why, for the latter two.
        apply_generation: The generation that ``apply_state`` speaks of.
    """

    name: NodeName
    key: str
    fingerprint: KeyFingerprint
    state: str
    last_seen: int
    address: str
    hello: Hello | None
    generation: int
    bundle: str
    apply_state: str
    apply_error: str
    apply_generation: int


def all_nodes(conn: sqlite3.Connection, name: str | None = None) -> list[NodeRow]:
    """Return all nodes, or the one named, by name."""
    where, values = ("WHERE name = ?", (name,)) if name is not None else ("", ())
    rows = conn.execute(f"SELECT {_COLUMNS} FROM nodes {where} ORDER BY name", values)  # noqa: S608 - constants
    return [_row(row) for row in rows]


def accept(conn: sqlite3.Connection, name: NodeName, key: str) -> bool:
    """Accept ``key`` as the key of ``name``; return whether that changed anything.

    Raises:
        ConfigError: The key is another node's, or the name has another accepted key.
    """
    print_ = fingerprint(key.encode("ascii"))
    owner = conn.execute("SELECT name, state FROM nodes WHERE key = ?", (key,)).fetchone()
    if owner is not None and owner[0] != name:
        raise ConfigError(f"the key {print_} is that of node {owner[0]}", hint="each node has a key of its own")
    holder = conn.execute("SELECT fingerprint, state FROM nodes WHERE name = ?", (name,)).fetchone()
    if holder is not None and holder[1] == ACCEPTED and holder[0] != print_:
        raise ConfigError(
            f"node {name} has another key: {holder[0]}", hint=f"if the node was set up anew: garrison nodes retire {name}"
        )
    if owner is not None and owner[1] == ACCEPTED:
        return False
    conn.execute(
        "INSERT INTO nodes (name, key, fingerprint, state, accepted_at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET key = excluded.key, fingerprint = excluded.fingerprint, state = excluded.state, "
        "accepted_at = excluded.accepted_at, last_seen = 0, hello = NULL, generation = 0, bundle = '', apply_state = '', "
        "apply_error = '', apply_generation = 0, rules = NULL",
        (name, key, print_, ACCEPTED, time.time_ns()),
    )
    conn.execute("DELETE FROM rejected_keys WHERE key = ?", (key,))
    return True


def retire(conn: sqlite3.Connection, name: str) -> bool:
    """Retire a node; return whether that changed anything.

    Raises:
        StoreError: There is no such node.
    """
    changed = conn.execute("UPDATE nodes SET state = ? WHERE name = ? AND state = ?", (RETIRED, name, ACCEPTED)).rowcount
    if not changed and conn.execute("SELECT 1 FROM nodes WHERE name = ?", (name,)).fetchone() is None:
        raise StoreError(f"there is no node {name}", hint="garrison nodes lists them")
    return bool(changed)


def reject(conn: sqlite3.Connection, key: str) -> None:
    """Remember that a key is not wanted, so that it is not shown as pending again."""
    conn.execute("INSERT OR IGNORE INTO rejected_keys (key, at) VALUES (?, ?)", (key, time.time_ns()))


def rejected(conn: sqlite3.Connection) -> set[str]:
    """Return the keys that were rejected."""
    return {str(row[0]) for row in conn.execute("SELECT key FROM rejected_keys")}


def note_hello(conn: sqlite3.Connection, name: str, hello: Hello, address: str) -> None:
    """Keep what a node says of itself."""
    conn.execute(
        "UPDATE nodes SET hello = ?, address = ?, last_seen = ?, generation = ?, bundle = ?, "
        "reported_generation = max(reported_generation, ?) WHERE name = ?",
        (_encode(hello), address, time.time_ns(), hello.generation, hello.bundle, hello.generation, name),
    )


def note_words(conn: sqlite3.Connection, name: str, hello: Hello, address: str) -> None:
    """Keep what somebody else says that a node said of itself: nothing follows from it for assignments."""
    conn.execute(
        "UPDATE nodes SET hello = ?, address = ?, last_seen = ? WHERE name = ?", (_encode(hello), address, time.time_ns(), name)
    )


def note_report(conn: sqlite3.Connection, name: str, report: ApplyReport) -> None:
    """Keep what became of an assignment. A refused or failed one leaves generation, bundle and rules as they were."""
    conn.execute(
        "UPDATE nodes SET apply_state = ?, apply_error = ?, apply_generation = ? WHERE name = ?",
        (report.state, report.error, report.generation, name),
    )
    if report.state == "applied":
        conn.execute(
            "UPDATE nodes SET generation = ?, bundle = ?, rules = ?, reported_generation = max(reported_generation, ?) "
            "WHERE name = ?",
            (report.generation, report.bundle, _encode(report.rules), report.generation, name),
        )


def note_seen(conn: sqlite3.Connection, seen: Iterable[tuple[str, int]]) -> None:
    """Keep when nodes were last heard of: pairs of name and ns."""
    conn.executemany("UPDATE nodes SET last_seen = max(last_seen, ?) WHERE name = ?", [(at, name) for name, at in seen])


def rules_of(conn: sqlite3.Connection, name: str) -> Sequence[RuleReport]:
    """Return the compile report of what a node enforces; empty when it sent none."""
    row = conn.execute("SELECT rules FROM nodes WHERE name = ?", (name,)).fetchone()
    return _rules.decode(row[0]) if row is not None and row[0] is not None else []


def node_briefs(conn: sqlite3.Connection) -> list[NodeBrief]:
    """Return all accepted nodes."""
    rows = conn.execute("SELECT name, fingerprint, reported_generation FROM nodes WHERE state = ? ORDER BY name", (ACCEPTED,))
    return [NodeBrief(name=name, fingerprint=print_, reported_generation=reported) for name, print_, reported in rows]


def _row(row: tuple[str, str, str, str, int, str, bytes | None, int, str, str, str, int]) -> NodeRow:
    name, key, print_, state, last_seen, address, hello, generation, bundle, apply_state, apply_error, apply_generation = row
    return NodeRow(
        name=NodeName(name),
        key=key,
        fingerprint=KeyFingerprint(print_),
        state=state,
        last_seen=last_seen,
        address=address,
        hello=None if hello is None else _hello.decode(hello),
        generation=generation,
        bundle=bundle,
        apply_state=apply_state,
        apply_error=apply_error,
        apply_generation=apply_generation,
    )
