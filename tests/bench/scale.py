"""One master under 10,000 simulated nodes: memory, CPU at an event a second each, storms, revocation; settings: minions, seconds.

The nodes run beside the master and take CPU from it, as clients elsewhere would not.

- ``connect_s``: from the first attempt until all were welcomed.
- ``master_kb_per_minion``: what the master's PSS grew by, divided by the nodes; idle, after all were welcomed.
- ``storm_idle_s``, ``storm_s``: all connections are cut and all nodes come back in the same instant, until all are served
  again; without events, and while each node makes one a second and brings what it made meanwhile.
- ``cpu_percent``: of one core, all threads of the master, at one event a second of each node. ``sim_cpu_percent``: of the nodes.
- ``ack_p50_ms``, ``ack_p99_ms``: from the making of an event to its ack, meanwhile.
- ``revoke_s``: from the order to retire a node until it is cut off, meanwhile.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from component.simulated_fleet import fleet_of
from garrison.minion.simulator.scenario import until

PATIENCE_S = 300.0
RETIRED = "retired"


def _pss_kb(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def _cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def run(minions: int = 10_000, seconds: int = 30) -> dict[str, float | int | str]:
    """Measure all of it; takes a few minutes."""
    with fleet_of(minions, 0) as (master, fleet, keys):
        assert master.process is not None
        pid = master.process.pid
        before_kb = _pss_kb(pid)

        def back() -> float:
            return until(fleet, "all nodes are served", lambda f: f.served == f.nodes, patience_s=PATIENCE_S)

        connect_s = back()
        grown_kb = _pss_kb(pid) - before_kb
        fleet.cut()
        storm_idle_s = back()

        first = fleet.pace(1.0)
        cpu_s, sim_cpu_s, began = _cpu_s([pid]), _cpu_s(fleet.pids), time.monotonic()
        time.sleep(seconds)
        steady = fleet.figures()
        took_s = time.monotonic() - began
        cpu_percent, sim_cpu_percent = (
            (now - then) * 100 / took_s for now, then in ((_cpu_s([pid]), cpu_s), (_cpu_s(fleet.pids), sim_cpu_s))
        )
        fleet.cut()
        storm_s = back()

        began = time.monotonic()
        with ThreadPoolExecutor() as orders:
            order = orders.submit(master.api.post, f"/v1/nodes/{keys[0].name}/retire")
            until(fleet, "the node is cut off", lambda f: f.refused[RETIRED] > 0, patience_s=PATIENCE_S)
            revoke_s = time.monotonic() - began
            order.result()
        fleet.pace(0)
        end = fleet.figures()
    return {
        "minions": minions,
        "connect_s": connect_s,
        "storm_idle_s": storm_idle_s,
        "storm_s": storm_s,
        "revoke_s": revoke_s,
        "master_kb_per_minion": grown_kb / minions,
        "cpu_percent": cpu_percent,
        "sim_cpu_percent": sim_cpu_percent,
        "acked_per_s": (steady.acked - first.acked) / took_s,
        "ack_p50_ms": steady.latencies.percentile(50) * 1000,
        "ack_p99_ms": steady.latencies.percentile(99) * 1000,
        "unanswered": end.unanswered,
        "lost": end.lost,
        "told_to_wait": end.told_to_wait,
    }


def table(figures: Mapping[str, float | int | str]) -> str:
    """Return the figures as Markdown."""
    shown = {name: f"{value:,.1f}" if isinstance(value, float) else value for name, value in figures.items()}
    return "\n".join(["| figure | |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in shown.items())])
