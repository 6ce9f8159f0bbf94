"""Events a second from the kernel's shape to the master's disk, by spool, link and store; settings: events, idle_s.

One node and one master, processes of their own, over TCP with CURVE. Every event is made, encoded and put one by one; the clock
stops when the last one is acknowledged: durable at both ends, and deleted from the spool.

- ``cpu_us_per_event``: of both processes, all threads; ``node_cpu_us_per_event``: of the node alone, making the events included.
- ``vs_bare_sqlite``: against the shortest program that makes the store's rows durable, once: the same rows from memory into
  the same table with the same indexes, ``synchronous=FULL``, 1,000 a commit. ``vs_bare_unindexed``: into that table with its
  unique index alone.
- ``vs_rsyslog_sync``, ``vs_rsyslog_async``: events a second against JSON lines of the same events through two rsyslogs with
  RELP, as durable as events are, and as fast as it gets (``_rsyslog.py``); only where rsyslog is installed.
- ``wire_bytes_per_event``: bytes of TCP payload both ways, by the kernel's count of the connection.
- ``idle_mb_per_day``: payload both ways of the connected link with nothing to say, over ``idle_s``, a day of it;
  ``idle_with_headers_mb_per_day``: IPv4 and TCP headers of all segments counted in.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import _rsyslog
import zmq
from _path_node import kernel_event

from component.master_process import Master, running_master
from garrison.common.events import event_to_json

NODE = Path(__file__).with_name("_path_node.py")
GROUP = 1_000
DAY_S = 86_400
SYNC_PART = 100  # part of the events for the one that is a hundred times slower
_MADE = "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'events' AND sql IS NOT NULL ORDER BY type DESC"  # table first


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _path(master: Master, events: int, idle_s: int, directory: Path) -> dict[str, float]:
    public, secret = zmq.curve_keypair()
    master.api.post("/v1/nodes/accept", {"nodes": {"path-1": public.decode()}})
    assert master.process is not None
    before = _cpu_s(master.process.pid)
    argv = [sys.executable, NODE, master.endpoint, master.server_key, secret, directory, str(events), str(idle_s)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        figures = json.loads(node.stdout.readline())
        figures["master_cpu_s"] = _cpu_s(master.process.pid) - before
        node.stdin.write("\n")
        node.stdin.flush()
        figures |= json.loads(node.stdout.readline())
    assert node.returncode == 0
    return figures


def _bare(directory: Path, work: Path, *, indexed: bool) -> tuple[int, float]:
    """Return how many rows the store's files of events have, and how long the bare loop takes for them."""
    made: list[str] = []
    rows: list[tuple[object, ...]] = []
    for path in sorted(directory.rglob("*.shell.db")):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as conn:
            made = [sql for name, sql in conn.execute(_MADE) if indexed or name == "events" or "UNIQUE" in sql]
            rows += conn.execute("SELECT * FROM events")
    bare = sqlite3.connect(work / f"bare-{indexed}.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute("PRAGMA synchronous=FULL")
    for sql in made:
        bare.execute(sql)
    insert = f"INSERT INTO events VALUES ({','.join('?' * len(rows[0]))})"  # noqa: S608
    began = time.perf_counter()
    for start in range(0, len(rows), GROUP):
        bare.execute("BEGIN")
        bare.executemany(insert, rows[start : start + GROUP])
        bare.execute("COMMIT")
    took_s = time.perf_counter() - began
    bare.close()
    return len(rows), took_s


def _rsyslogs(events: int, work: Path) -> dict[str, float | int | str]:
    if not _rsyslog.available():
        return {"rsyslog": "not installed: apt-get install rsyslog rsyslog-relp"}
    chance, now_ns = random.Random(1), time.time_ns()  # noqa: S311 - repeatable, hides nothing
    lines = [event_to_json(kernel_event(chance, number, now_ns)) for number in range(events)]
    figures: dict[str, float | int | str] = {}
    for name, part in (("sync", lines[: max(1_000, events // SYNC_PART)]), ("async", lines)):
        (work / name).mkdir()
        figures[f"rsyslog_{name}_lines_per_s"] = _rsyslog.lines_per_s(part, work / name, sync=name == "sync")
    return figures


def run(events: int = 200_000, idle_s: int = 60) -> dict[str, float | int | str]:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="bench-path-") as name, running_master("--log-level", "warning") as master:
        figures = _path(master, events, idle_s, Path(name) / "spool")
        assert master.end() == 0
        stored, bare_s = _bare(master.directory, Path(name), indexed=True)
        rsyslogs = _rsyslogs(events, Path(name))
        _, unindexed_s = _bare(master.directory, Path(name), indexed=False)
    assert stored == events, f"{stored} of {events} events are stored, {figures['dropped']} were dropped"
    took_s = figures["took_s"]
    rates = {name: value for name, value in rsyslogs.items() if isinstance(value, float)}
    ratios = {f"vs_{name.removesuffix('_lines_per_s')}": events / took_s / value for name, value in rates.items()}
    return {
        "events": events,
        "events_per_s": events / took_s,
        "cpu_us_per_event": (figures["cpu_s"] + figures["master_cpu_s"]) / events * 1e6,
        "node_cpu_us_per_event": figures["cpu_s"] / events * 1e6,
        "bare_sqlite_events_per_s": events / bare_s,
        "vs_bare_sqlite": bare_s / took_s,
        "vs_bare_unindexed": unindexed_s / took_s,
        **rsyslogs,
        **ratios,
        "wire_bytes_per_event": figures["wire_bytes"] / events,
        "idle_mb_per_day": figures["idle_bytes"] / idle_s * DAY_S / 1e6,
        "idle_with_headers_mb_per_day": figures["idle_with_headers_bytes"] / idle_s * DAY_S / 1e6,
    }


def table(figures: Mapping[str, float | int | str]) -> str:
    """Return the figures as Markdown."""
    shown = {name: f"{value:,.2f}" if isinstance(value, float) else value for name, value in figures.items()}
    return "\n".join(["| figure | |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in shown.items())])
