"""What a simulated fleet goes through, and what came of it: connect, run, cut, storm, drain."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from garrison.common.errors import LinkError
from garrison.minion.simulator.figures import Figures
from garrison.minion.simulator.fleet import SimulatedFleet

__all__ = ["Outcome", "Scenario", "run_scenario", "until"]

_LOOK_S: Final = 0.1
_TOLD_S: Final = 5.0  # between lines that say how far it is
_clock = time.monotonic

Say = Callable[[str], None]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens, in this order.

    Attributes:
        run_s: After all nodes were welcomed, go on for so long.
        cut_share: Then drop the connections of this share of the nodes, 0 to 1; 0 for none.
        storm: Then drop all connections; all nodes come back in the same instant.
        away_s: Dropped nodes come back after so long.
        patience_s: Each wait for all nodes, or all acks, may take so long.
    """

    run_s: float = 10.0
    cut_share: float = 0.0
    storm: bool = False
    away_s: float = 0.0
    patience_s: float = 300.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a scenario. Seconds unless the name says otherwise; ``None``: was not part of it.

    Attributes:
        nodes: Simulated.
        processes: Over which they were spread.
        connect_s: From the first attempt until all were welcomed.
        run_s: Went on for so long.
        acked_per_s: Events acknowledged a second meanwhile.
        ack_p50_ms: From making an event to its ack, before cut and storm: half were faster.
        ack_p99_ms: 99 % were faster.
        cut_back_s: From the cut's end until all were welcomed again.
        storm_back_s: From the storm's instant until all were welcomed again.
        drain_s: From the last event made until all were acknowledged.
        made: Events made.
        sent: Events sent, repeats included.
        acked: Events acknowledged.
        welcomes: How often nodes were welcomed.
        lost: Connections that ended without our doing.
        unanswered: Attempts without an answer in time.
        told_to_wait: How often the master said that a node's turn would come.
        refused: Refusals by code.
    """

    nodes: int
    processes: int
    connect_s: float
    run_s: float
    acked_per_s: float
    ack_p50_ms: float
    ack_p99_ms: float
    cut_back_s: float | None
    storm_back_s: float | None
    drain_s: float
    made: int
    sent: int
    acked: int
    welcomes: int
    lost: int
    unanswered: int
    told_to_wait: int
    refused: dict[str, int]


def until(
    fleet: SimulatedFleet, what: str, true_of: Callable[[Figures], bool], *, patience_s: float, say: Say | None = None
) -> float:
    """Wait until ``true_of`` the fleet's figures; return the seconds that took.

    Raises:
        LinkError: It did not come about in time; the figures are in the text.
    """
    began = told = _clock()
    while not true_of(figures := fleet.figures()):
        now = _clock()
        if now - began > patience_s:
            raise LinkError(
                f"not within {patience_s:g} s: {what}; {figures.served} of {figures.nodes} nodes are welcomed, "
                f"{figures.acked} of {figures.made} events acknowledged, refused {dict(figures.refused)}"
            )
        if say is not None and now - told >= _TOLD_S:
            told = now
            say(f"{figures.served} of {figures.nodes} nodes, {figures.acked} of {figures.made} events acknowledged")
        time.sleep(_LOOK_S)
    return _clock() - began


def run_scenario(fleet: SimulatedFleet, scenario: Scenario, say: Say) -> Outcome:
    """Put ``fleet`` through ``scenario``.

    Args:
        fleet: Just started.
        scenario: What happens.
        say: Told of each step.

    Raises:
        LinkError: Nodes or acks did not come in time.
    """
    patience_s, served = scenario.patience_s, _all_served
    connect_s = until(fleet, "all nodes welcomed", served, patience_s=patience_s, say=say)
    say(f"all nodes are welcomed after {connect_s:.1f} s")
    before, began = fleet.figures(), _clock()
    _pass_time(fleet, scenario.run_s, say)
    steady, run_s = fleet.figures(), _clock() - began
    cut_back_s = storm_back_s = None
    if scenario.cut_share:
        cut_back_s = _drop(fleet, scenario.cut_share, scenario, say)
    if scenario.storm:
        storm_back_s = _drop(fleet, 1.0, scenario, say)
    fleet.pace(0)
    drain_s = until(fleet, "all events acknowledged", lambda f: f.acked == f.made, patience_s=patience_s, say=say)
    end = fleet.figures()
    return Outcome(
        nodes=end.nodes,
        processes=len(fleet.pids),
        connect_s=connect_s,
        run_s=run_s,
        acked_per_s=(steady.acked - before.acked) / run_s if run_s else 0.0,
        ack_p50_ms=steady.latencies.percentile(50) * 1000,
        ack_p99_ms=steady.latencies.percentile(99) * 1000,
        cut_back_s=cut_back_s,
        storm_back_s=storm_back_s,
        drain_s=drain_s,
        made=end.made,
        sent=end.sent,
        acked=end.acked,
        welcomes=end.welcomes,
        lost=end.lost,
        unanswered=end.unanswered,
        told_to_wait=end.told_to_wait,
        refused=dict(end.refused),
    )


def _all_served(figures: Figures) -> bool:
    return figures.served == figures.nodes


def _pass_time(fleet: SimulatedFleet, seconds: float, say: Say) -> None:
    end = _clock() + seconds
    while (left := end - _clock()) > 0:
        time.sleep(min(left, _TOLD_S))
        figures = fleet.figures()
        say(f"{figures.served} of {figures.nodes} nodes, {figures.acked} of {figures.made} events acknowledged")


def _drop(fleet: SimulatedFleet, share: float, scenario: Scenario, say: Say) -> float:
    say(f"{share:.0%} of the connections are dropped")
    fleet.cut(share, scenario.away_s)
    took_s = until(fleet, "all nodes back", _all_served, patience_s=scenario.patience_s + scenario.away_s, say=say)
    back_s = max(0.0, took_s - scenario.away_s)
    say(f"all nodes are back after {back_s:.1f} s")
    return back_s
