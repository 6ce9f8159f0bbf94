"""Events a second from put to durable, against a bare sqlite3 loop with the same durability, and back out again."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from pathlib import Path

from garrison.common import limits
from garrison.common.events import Actor, Event, Lane, encode_event
from garrison.minion.spool import Spool, SpoolCaps

_EVENTS = 100_000
_GROUP = 1_000


def _event(number: int) -> Event:
    actor = Actor(
        pid=number, ppid=1, exe="/usr/bin/cat", args=("cat", "/etc/passwd"), cwd="/root", uid=0, tty="pts/0", unit="ssh"
    )
    return Event(
        ts=1_700_000_000_000_000_000 + number,
        mono=number,
        boot="0123456789abcdef0123456789abcdef",
        lane=Lane.SHELL,
        kind="exec",
        severity=2,
        actor=actor,
        object="/usr/bin/cat",
        operation="exec",
        result="passed",
        backend="fanotify",
        data={"exit_code": 0, "session": "c3", "from": "10.0.0.7"},
    )


def _bare(directory: Path, raws: list[bytes]) -> float:
    # The shortest program with the same promise: WAL, FULL, one commit per group.
    conn = sqlite3.connect(directory / "bare.db", isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, lane INTEGER, event BLOB)")
    began = time.perf_counter()
    for start in range(0, len(raws), _GROUP):
        conn.execute("BEGIN")
        conn.executemany("INSERT INTO events (lane, event) VALUES (1, ?)", [(raw,) for raw in raws[start : start + _GROUP]])
        conn.execute("COMMIT")
    took = time.perf_counter() - began
    conn.close()
    return len(raws) / took


def _put_all(spool: Spool, events: list[Event]) -> float:
    began = time.perf_counter()
    for number, event in enumerate(events):
        spool.put(event)
        if number % _GROUP == 0 and spool.stats().queued > limits.SPOOL_QUEUE_MAX_EVENTS // 2:
            spool.flush(30)  # the queue is bounded: measure what becomes durable, not what is dropped
    spool.flush(60)
    return len(events) / (time.perf_counter() - began)


def _drain(spool: Spool) -> float:
    began, after, count = time.perf_counter(), 0, 0
    while batch := spool.next_batch(Lane.SHELL, after, limits.BATCH_MAX_EVENTS, limits.BATCH_MAX_BYTES):
        after = batch.seqs[-1]
        count += len(batch.seqs)
        spool.ack(batch.epoch, Lane.SHELL, after)
    spool.flush(60)
    return count / (time.perf_counter() - began)


def _latency_ms(spool: Spool) -> float:
    durable = threading.Event()
    leave = spool.subscribe(durable.set)
    took = []
    for number in range(50):
        durable.clear()
        began = time.perf_counter()
        spool.put(_event(number))
        durable.wait(5)
        took.append(time.perf_counter() - began)
    leave()
    return sorted(took)[len(took) // 2] * 1000


def run() -> dict[str, float | int | str]:
    """Return the figures; ratios are within this run."""
    events = [_event(number) for number in range(_EVENTS)]
    raws = [encode_event(event) for event in events]
    with tempfile.TemporaryDirectory(prefix="bench-spool-") as name:
        directory = Path(name)
        bare = _bare(directory, raws)
        spool = Spool.open(directory / "spool", SpoolCaps.of_total(512 << 20), boot="boot")
        put = _put_all(spool, events)
        lost = spool.stats().dropped
        drained = _drain(spool)
        latency_ms = _latency_ms(spool)
        spool.close()
    return {
        "event_bytes": len(raws[0]),
        "bare_sqlite_events_per_s": bare,
        "put_to_durable_events_per_s": put,
        "put_to_durable_per_bare": put / bare,
        "read_and_ack_events_per_s": drained,
        "lone_event_durable_ms_median": latency_ms,
        "dropped_events": lost,
    }
