"""Questions over 30 days of stored events, at a tenth and at all of them, and inserts against a bare sqlite3 loop.

A fleet of a hundred nodes: half of what they send is commands, a third samples, a tenth alerts; one node is quiet, one policy and
one program are rare. Every question is one that `garrison events` or `garrison top` asks, for the newest hundred; the figure is
the best of some. A ratio of 1 means that ten times the events cost the question nothing.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fakes.clock import DAY_NS, Clock
from garrison.common.events import Actor, Event, Kind, Lane, encode_event
from garrison.common.frames import Batch
from garrison.common.names import NodeName
from garrison.master.store import EventFilter, Store

EVENTS: Final = int(os.environ.get("GARRISON_BENCH_EVENTS", "1000000"))
DAYS: Final = 30
NODES: Final = 100
PIECES: Final = 3_000  # of whatever size: the days and lanes are the same at a tenth
BARE_PIECE: Final = 500
TIMES: Final = 5
BARE: Final = 100_000


def _records(count: int) -> dict[Lane, list[bytes]]:
    """A piece of each lane, encoded once: what is measured is the store."""

    def some(lane: Lane, make: Callable[[int], Event]) -> list[bytes]:
        return [encode_event(make(n)) for n in range(count)]

    def shell(n: int) -> Event:
        exe = f"/usr/bin/tool-{n % 40}"
        return Event(
            lane=Lane.SHELL, kind=Kind.EXEC, operation="exec", actor=Actor(pid=n, exe=exe, args=(exe, "some", "arguments"))
        )

    def alert(n: int) -> Event:
        policy, exe = f"policy-{n % 20}", f"/usr/bin/tool-{n % 40}"
        verdict = "block" if n % 3 else "audit"
        return Event(lane=Lane.ALERT, kind=Kind.ALERT, verdict=verdict, policy=policy, object="/etc/shadow", actor=Actor(exe=exe))

    def metric(n: int) -> Event:
        return Event(
            lane=Lane.METRIC, kind=Kind.METRIC, data={"mem_total_bytes": 1 << 34, "mem_used_bytes": n, "cpu_percent": 1.5}
        )

    def error(n: int) -> Event:
        return Event(lane=Lane.ERROR, kind=Kind.ERROR, severity=6, data={"source": "journal", "message": f"it failed {n}"})

    def state(n: int) -> Event:
        return Event(lane=Lane.STATE, kind=Kind.AGENT, object=f"unit-{n}.service")

    makers = {Lane.ALERT: alert, Lane.SHELL: shell, Lane.ERROR: error, Lane.STATE: state, Lane.METRIC: metric}
    return {lane: some(lane, make) for lane, make in makers.items()}


def _rare(ts: int) -> bytes:
    actor = Actor(exe="/tmp/implant")
    return encode_event(
        Event(ts=ts, lane=Lane.ALERT, kind=Kind.ALERT, verdict="block", policy="rare", object="/etc/shadow", actor=actor)
    )


_SHARES: Final = (Lane.SHELL,) * 10 + (Lane.METRIC,) * 6 + (Lane.ALERT,) * 2 + (Lane.ERROR, Lane.STATE)


def _fill(path: Path, events: int) -> tuple[Store, Clock, float]:
    """Store so many events over the days; returns seconds of storing too."""
    piece = events // PIECES
    clock, records = Clock(), _records(piece)
    store = Store(path, clock_ns=clock)
    seqs = dict.fromkeys(range(NODES), 0)
    spent, waiting = 0.0, []
    for n in range(PIECES):
        clock.now = Clock().now + n * DAYS * DAY_NS // PIECES
        node, lane = n * 7 % (NODES - 1), _SHARES[n % len(_SHARES)]
        first = seqs[node] + 1
        seqs[node] += piece
        batch = Batch(epoch="aa", lane=int(lane), seqs=list(range(first, first + piece)), events=_at(records[lane], clock.now))
        started = time.perf_counter()
        waiting.append(store.submit_batch(NodeName(f"node-{node}"), batch))
        if len(waiting) >= 32:
            for future in waiting:
                future.result()
            waiting.clear()
        spent += time.perf_counter() - started
        if n % (PIECES // DAYS) == 0:  # one a day of what is looked for, from the quiet node
            seqs[NODES - 1] += 1
            quiet = Batch(epoch="aa", lane=int(Lane.ALERT), seqs=[seqs[NODES - 1]], events=[_rare(clock.now)])
            store.submit_batch(NodeName("quiet"), quiet).result()
    started = time.perf_counter()
    store.flush()
    return store, clock, spent + time.perf_counter() - started


def _at(records: list[bytes], now: int) -> list[bytes]:
    # The time is put into the encoded record: a map whose first key it becomes. Encoding half a million would be the bench.
    stamp = b"\xa2ts\xcf" + now.to_bytes(8, "big")
    return [_widened(record, stamp) for record in records]


def _widened(record: bytes, stamp: bytes) -> bytes:
    count = int.from_bytes(record[1:3], "big")
    assert record[0] == 0xDE, "a map of 16 bits"
    return b"\xde" + (count + 1).to_bytes(2, "big") + stamp + record[3:]


def _questions(clock: Clock) -> Iterator[tuple[str, EventFilter]]:
    yield "newest", EventFilter()
    yield "quiet_node", EventFilter(nodes=("quiet",))
    yield "node", EventFilter(nodes=("node-7",))
    yield "node_and_kind", EventFilter(nodes=("node-7",), kinds=("alert",))
    yield "lane", EventFilter(lanes=(int(Lane.ERROR),))
    yield "kind", EventFilter(kinds=("alert",))
    yield "policy", EventFilter(policies=("policy-3",))
    yield "rare_policy", EventFilter(policies=("rare",))
    yield "verdict", EventFilter(verdicts=("audit",))
    yield "rare_actor", EventFilter(exes=("/tmp/implant",))
    yield "actor_and_kind", EventFilter(exes=("/usr/bin/tool-3",), kinds=("alert",))
    yield "hour_in_the_middle", EventFilter(since_ns=clock.now - 15 * DAY_NS, until_ns=clock.now - 15 * DAY_NS + DAY_NS // 24)
    yield "nothing", EventFilter(nodes=("node-7",), policies=("rare",))


def _asked(store: Store, clock: Clock) -> dict[str, float]:
    """Return milliseconds by question, for the newest hundred; metrics of the fleet too."""

    def best(ask: Callable[[], object]) -> float:
        took = []
        for _ in range(TIMES):
            started = time.perf_counter()
            ask()
            took.append(time.perf_counter() - started)
        return min(took) * 1000

    names = [f"node-{n}" for n in range(NODES - 1)]
    times = {name: best(lambda w=wanted: store.events_page(w, limit=100)) for name, wanted in _questions(clock)}
    return {**times, "fleet_samples": best(lambda: store.newest_metrics(names))}


def _bare(path: Path, records: list[bytes]) -> float:
    """Events a second into one table with its unique index, the same pragmas and sizes of transactions."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("CREATE TABLE events (node TEXT, epoch TEXT, seq INTEGER, record BLOB)")
    conn.execute("CREATE UNIQUE INDEX ux ON events (node, epoch, seq)")
    started = time.perf_counter()
    for n in range(0, BARE, BARE_PIECE):
        conn.execute("BEGIN")
        rows = [("node-1", "aa", n + k, record) for k, record in enumerate(records)]
        conn.executemany("INSERT OR IGNORE INTO events VALUES (?,?,?,?)", rows)
        conn.execute("COMMIT")
    rate = BARE / (time.perf_counter() - started)
    conn.close()
    return rate


def run() -> dict[str, float | int | str]:
    """Return figures and ratios; ``GARRISON_BENCH_EVENTS`` says how many events, a million unless given."""
    figures: dict[str, float | int | str] = {"events": EVENTS, "days": DAYS}
    with tempfile.TemporaryDirectory() as work:
        bare = _bare(Path(work) / "bare.db", _records(BARE_PIECE)[Lane.SHELL])
        asked: dict[int, dict[str, float]] = {}
        for events in (EVENTS // 10, EVENTS):
            folder = Path(work) / str(events)
            folder.mkdir()
            store, clock, seconds = _fill(folder / "store.db", events)
            asked[events] = _asked(store, clock)
            info = store.keeper.info()
            rate = info.events / seconds
            store.close()
        figures |= {
            "bytes_per_event": info.bytes / info.events,
            "inserts_per_s": rate,
            "bare_sqlite_inserts_per_s": bare,
            "inserts_to_bare_ratio": rate / bare,
        }
    few, many = asked[EVENTS // 10], asked[EVENTS]
    for name, took in many.items():
        figures |= {f"{name}_ms": took, f"{name}_ratio": took / few[name]}
    figures["slowest_ms"] = max(many.values())
    return figures
