"""Simulated nodes on a real master through a cut and a storm, every event counted in the store; settings: nodes, rate, seconds.

``garrison simulate`` does the same against any master. Names of figures are those of its ``--json`` (docs/reliability.md);
``stored`` and ``twice`` are what the store says.
"""

from __future__ import annotations

import json
from collections import Counter

import msgspec

from component.simulated_fleet import fleet_of
from garrison.minion.simulator.scenario import Scenario, run_scenario


def run(nodes: int = 500, rate: int = 5, seconds: int = 10) -> dict[str, float | int | str]:
    """Drop 30 % for two seconds, then all at once."""
    with fleet_of(nodes, rate) as (master, fleet, _):
        scenario = Scenario(run_s=seconds, cut_share=0.3, storm=True, away_s=2.0)
        outcome = run_scenario(fleet, scenario, lambda _: None)
        ids = Counter((event["node"], event["seq"]) for event in map(json.loads, master.api.lines("/v1/events")))
    figures = msgspec.to_builtins(outcome)
    refused = sum(figures.pop("refused").values())
    return {**figures, "refused": refused, "stored": len(ids), "twice": sum(ids.values()) - len(ids)}
