"""A master's store as its first version wrote it, and what has to be found in it after an upgrade."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database

from fakes.clock import Clock
from fakes.peer import event
from garrison.common.events import Actor, Lane, encode_event
from garrison.master.store import EventFilter, Store
from garrison.master.store.schema import _version_1

__all__ = ["everything", "expected", "old_store"]


def old_store(path: Path, events: int, clock: Clock, every_s: int = 60) -> None:
    """Write a store as version 1 did: alternating lanes, two nodes, an event every minute, or so many seconds, up to now."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    _version_1(Database(conn))
    conn.executemany("INSERT INTO spools VALUES (?, ?, 'e1')", [(1, "n1"), (2, "n2")])
    raw = {
        lane: encode_event(event(lane=lane, ts=5, policy="p", verdict="block", actor=Actor(exe="/bin/sh")))
        for lane in (Lane.ALERT, Lane.SHELL)
    }
    first_ns = clock() - events * every_s * 10**9
    conn.execute("BEGIN")
    conn.executemany(
        "INSERT INTO events (id, spool, seq, node, ts, lane, kind, severity, operation, object, verdict, policy, rule, exe, "
        "received_at, quarantine, record) VALUES (?, ?, ?, ?, 5, ?, 'exec', 1, '', '', 'block', 'p', '', '/bin/sh', ?, NULL, ?)",
        (
            (2 * n, 1 + n % 2, n, f"n{1 + n % 2}", n // 2 % 2, first_ns + n * every_s * 10**9, raw[Lane(n // 2 % 2)])
            for n in range(1, events + 1)
        ),
    )
    conn.execute("INSERT INTO acks SELECT spool, lane, max(seq) FROM events GROUP BY spool, lane")
    conn.execute("PRAGMA user_version=1")
    conn.execute("COMMIT")
    conn.close()


def everything(store: Store) -> list[tuple[int, str, int, int]]:
    found, cursor = [], 0
    while page := store.events_page(EventFilter(), after=cursor, limit=50_000):
        found += [(number, e.node, int(e.lane), e.seq) for number, e in page]
        cursor = page[-1][0]
    return found


def expected(events: int) -> list[tuple[int, str, int, int]]:
    return [(2 * n, f"n{1 + n % 2}", n // 2 % 2, n) for n in range(1, events + 1)]
