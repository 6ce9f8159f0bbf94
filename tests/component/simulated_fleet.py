"""Simulated nodes on a real master of their own, for tests and benches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from component.master_process import Master, running_master
from garrison.minion.simulator import FleetPlan, NodeKey, SimulatedFleet, make_keys

__all__ = ["fleet_of"]


@contextmanager
def fleet_of(nodes: int, rate: float, processes: int = 2) -> Iterator[tuple[Master, SimulatedFleet, list[NodeKey]]]:
    """Start a master and so many accepted nodes."""
    with running_master("--log-level", "warning") as master:
        keys = make_keys("sim-", nodes)
        master.api.post("/v1/nodes/accept", {"nodes": {key.name: key.public.decode() for key in keys}})
        plan = FleetPlan(endpoint=master.endpoint, server_key=master.server_key, rate=rate, processes=processes)
        with SimulatedFleet(plan, keys) as fleet:
            yield master, fleet, keys
