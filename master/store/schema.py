"""The store's tables, in versions. A version is never edited after a release: a change is a new one.

Rules of this file:
- ``PRAGMA user_version`` says which version a file has; a file newer than this program is refused, not guessed at.
- A step can be run again after a crash in the middle of it.
- Events are in files of their own (``dayfile``) since version 2; ``upgrade`` brings them there before this drops the old table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from sqlite_utils import Database

from garrison.common.errors import StoreError

__all__ = ["SCHEMA_VERSION", "migrate", "version"]


def _version_1(db: Database) -> None:
    _nodes(db)
    _events(db)
    _bundles(db)
    _jobs(db)


def _nodes(db: Database) -> None:
    db.table("nodes").create(
        {
            "name": str,
            "key": str,  # Z85 CURVE public key
            "fingerprint": str,
            "state": str,  # accepted | retired
            "accepted_at": int,  # ns, like every time in this file
            "last_seen": int,
            "address": str,
            "hello": bytes,  # msgpack Hello: what the node last said of itself
            "generation": int,  # what it enforces, by its last word
            "reported_generation": int,  # the highest it ever said it enforces: new assignments must be above it
            "bundle": str,
            "apply_state": str,
            "apply_error": str,
            "apply_generation": int,  # what apply_state speaks of
            "rules": bytes,  # msgpack list of RuleReport of the last applied generation
        },
        pk="name",
        not_null={"key", "fingerprint", "state"},
        defaults={
            "last_seen": 0,
            "address": "",
            "generation": 0,
            "reported_generation": 0,
            "bundle": "",
            "apply_state": "",
            "apply_error": "",
            "apply_generation": 0,
        },
        if_not_exists=True,
    )
    db.table("nodes").create_index(["key"], unique=True, if_not_exists=True)
    db.table("rejected_keys").create({"key": str, "at": int}, pk="key", if_not_exists=True)


def _events(db: Database) -> None:
    # Node and epoch are long and few: events carry the number of their spool instead, so the unique index stays small.
    db.table("spools").create({"id": int, "node": str, "epoch": str}, pk="id", not_null={"node", "epoch"}, if_not_exists=True)
    db.table("spools").create_index(["node", "epoch"], unique=True, if_not_exists=True)
    db.table("acks").create({"spool": int, "lane": int, "seq": int}, pk=("spool", "lane"), if_not_exists=True)
    db.table("events").create(
        {
            "id": int,  # order of arrival
            "spool": int,
            "seq": int,
            "node": str,
            "ts": int,
            "lane": int,
            "kind": str,
            "severity": int,
            "operation": str,
            "object": str,
            "verdict": str,
            "policy": str,
            "rule": str,
            "exe": str,
            "received_at": int,
            "quarantine": str,  # why the record cannot be read; NULL for all others
            "record": bytes,  # the event as the node encoded it
        },
        pk="id",
        not_null={"spool", "seq", "node", "ts", "lane", "kind", "received_at", "record"},
        if_not_exists=True,
    )
    db.table("events").create_index(["spool", "seq"], unique=True, if_not_exists=True)
    for column in ("node", "kind", "lane", "ts"):
        db.table("events").create_index([column], if_not_exists=True)
    for column in ("policy", "verdict"):  # most events have neither
        db.execute(f"CREATE INDEX IF NOT EXISTS idx_events_{column} ON events ({column}) WHERE {column} != ''")


def _bundles(db: Database) -> None:
    db.table("blobs").create({"digest": str, "data": bytes}, pk="digest", not_null={"data"}, if_not_exists=True)
    db.table("bundles").create(
        {"digest": str, "version": int, "at_ns": int}, pk="digest", not_null={"version", "at_ns"}, if_not_exists=True
    )
    db.table("bundles").create_index(["version"], if_not_exists=True)
    db.table("assignments").create(
        {"node": str, "generation": int, "bundle": str, "metadata": bytes, "at_ns": int},
        pk="node",
        not_null={"generation", "bundle", "metadata", "at_ns"},
        if_not_exists=True,
    )


def _jobs(db: Database) -> None:
    db.table("jobs").create(
        {"id": str, "spec": bytes, "created_at": int, "deadline": int, "cancelled": int},
        pk="id",
        not_null={"spec", "created_at", "deadline"},
        defaults={"cancelled": 0},
        if_not_exists=True,
    )
    db.table("jobs").create_index(["created_at"], if_not_exists=True)
    db.table("job_nodes").create(
        {
            "job": str,
            "node": str,
            "status": str,
            "exit_code": int,
            "error": str,
            "outputs": int,
            "dropped_bytes": int,
            "duration_ms": int,
            "ended_at": int,
        },
        pk=("job", "node"),
        not_null={"status"},
        if_not_exists=True,
    )
    db.table("job_nodes").create_index(["node", "status"], if_not_exists=True)
    db.table("job_output").create(
        {"id": int, "job": str, "node": str, "n": int, "stream": int, "data": bytes}, pk="id", if_not_exists=True
    )
    db.table("job_output").create_index(["job", "node", "n"], unique=True, if_not_exists=True)


def _version_2(db: Database) -> None:
    for table in ("events", "acks", "spools"):
        db.execute(f"DROP TABLE IF EXISTS {table}")
    db.table("notes").create({"name": str, "text": str}, pk="name", not_null={"text"}, if_not_exists=True)


def _relays(db: Database) -> None:
    db.table("relays").create({"name": str}, pk="name", if_not_exists=True)
    db.table("relay_nodes").create({"relay": str, "node": str}, pk=("relay", "node"), if_not_exists=True)


_STEPS: Final[tuple[Callable[[Database], None], ...]] = (_version_1, _version_2, _relays)
SCHEMA_VERSION: Final = len(_STEPS)


def version(conn: sqlite3.Connection) -> int:
    """Return the version of a store, 0 for a new one.

    Raises:
        StoreError: The file is of a newer garrison, or no database.
    """
    try:
        have = int(conn.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as err:
        raise StoreError("the store cannot be read") from err
    if have > SCHEMA_VERSION:
        raise StoreError(
            f"the store has version {have}, this garrison knows up to {SCHEMA_VERSION}",
            hint="install the garrison that wrote it, or a newer one",
        )
    return have


def migrate(conn: sqlite3.Connection) -> None:
    """Bring a store to ``SCHEMA_VERSION``.

    Raises:
        StoreError: The file is of a newer garrison, or no database, or cannot be changed.
    """
    try:
        for number in range(version(conn), SCHEMA_VERSION):
            _STEPS[number](Database(conn))
            conn.execute(f"PRAGMA user_version={number + 1}")
    except sqlite3.Error as err:
        raise StoreError("the store cannot be brought up to date") from err
