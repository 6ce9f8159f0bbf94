"""A store of one table becomes files by day and lane: everything is there, each once, also when the upgrade is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from sqlite_utils import Database

from fakes.clock import Clock
from fakes.peer import batch_of, event
from fakes.store_child import open_and_close
from garrison.common.events import Actor, Lane, encode_event
from garrison.common.names import NodeName
from garrison.master.store import EventFilter, Store
from garrison.master.store.schema import _version_1

N1 = NodeName("n1")


def old_store(path: Path, events: int, clock: Clock) -> None:
    """Write a store as version 1 did: alternating lanes, two nodes, an event a minute up to now."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    _version_1(Database(conn))
    conn.executemany("INSERT INTO spools VALUES (?, ?, 'e1')", [(1, "n1"), (2, "n2")])
    raw = {
        lane: encode_event(event(lane=lane, ts=5, policy="p", verdict="block", actor=Actor(exe="/bin/sh")))
        for lane in (Lane.ALERT, Lane.SHELL)
    }
    first_ns = clock() - events * 60 * 10**9
    conn.execute("BEGIN")
    conn.executemany(
        "INSERT INTO events (id, spool, seq, node, ts, lane, kind, severity, operation, object, verdict, policy, rule, exe, "
        "received_at, quarantine, record) VALUES (?, ?, ?, ?, 5, ?, 'exec', 1, '', '', 'block', 'p', '', '/bin/sh', ?, NULL, ?)",
        (
            (2 * n, 1 + n % 2, n, f"n{1 + n % 2}", n // 2 % 2, first_ns + n * 60 * 10**9, raw[Lane(n // 2 % 2)])
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


def test_every_event_keeps_its_number_its_day_and_what_it_is_found_by(tmp_path):
    clock = Clock()
    old_store(tmp_path / "store.db", 4_000, clock)

    store = Store(tmp_path / "store.db", clock_ns=clock)

    assert everything(store) == expected(4_000)
    days = {file.day for file, _ in store.event_log.catalogue.files()}
    assert days == {"2026-04-28", "2026-04-29", "2026-04-30", "2026-05-01"}
    wanted = EventFilter(nodes=("n2",), exes=("/bin/sh",), policies=("p",), verdicts=("block",), kinds=("exec",))
    assert len(store.events_page(wanted, after=0)) == 2_000
    store.close()


def test_what_nodes_were_acked_is_known_and_repeats_are_too(tmp_path):
    clock = Clock()
    old_store(tmp_path / "store.db", 4_000, clock)
    store = Store(tmp_path / "store.db", clock_ns=clock)

    assert store.acked(N1, "e1") == {0: 4_000, 1: 3_998}
    again = store.submit_batch(N1, batch_of([2, 3_998, 4_002], lane=Lane.SHELL)).result(10)

    assert (again.new, again.repeated) == (1, 2)
    ((number, _),) = store.events_page(EventFilter(), limit=1)
    assert number > 8_000, "arrival goes on"
    assert store.note_acked(N1, "e1", {Lane.ALERT: (4_010, 1_005)})[Lane.ALERT].missing == 5, "1,000 of them were stored"
    store.close()


def test_upgraded_store_gives_its_space_back_and_is_not_upgraded_again(tmp_path):
    clock = Clock()
    path = tmp_path / "store.db"
    old_store(path, 20_000, clock)
    before = path.stat().st_size
    Store(path, clock_ns=clock).close()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "events").iterdir()}

    Store(path, clock_ns=clock).close()

    assert path.stat().st_size < before / 10
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "events").iterdir()} == files


def test_store_without_events_is_upgraded_too(tmp_path):
    clock = Clock()
    old_store(tmp_path / "store.db", 0, clock)

    store = Store(tmp_path / "store.db", clock_ns=clock)

    assert store.submit_batch(N1, batch_of([1])).result(10).new == 1
    store.close()


@pytest.mark.parametrize("files", [1, 20, 60], ids=["at its beginning", "in the middle", "near its end"])
def test_upgrade_that_is_killed_goes_on_and_loses_and_repeats_nothing(tmp_path, files):
    clock, path = Clock(), tmp_path / "store.db"
    old_store(path, 50_000, clock)
    child = multiprocessing.get_context("spawn").Process(target=open_and_close, args=(path,))
    child.start()
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "events").glob("*.db"))) < files:
        assert time.monotonic() < deadline, "the upgrade goes on"
        assert child.is_alive(), "killed before its end"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert path.stat().st_size > 1 << 20, "the old table is there still"

    store = Store(path, clock_ns=clock)

    assert everything(store) == expected(50_000)
    assert sum(facts.events for _, facts in store.event_log.catalogue.files()) == 50_000
    assert store.acked(N1, "e1") == {0: 50_000, 1: 49_998}
    store.close()
