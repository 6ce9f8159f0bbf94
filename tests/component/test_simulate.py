"""Simulated nodes against a real master: every event is stored once, whatever is cut; real nodes are left alone."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest

from component.master_process import Master, running_master
from garrison.minion.simulator import FleetPlan, SimulatedFleet, make_keys
from garrison.minion.simulator.scenario import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NODES = 50


@pytest.fixture
def master():
    with running_master() as made:
        yield made


def simulate(master: Master, *args: str, ok: tuple[int, ...] = (0,)):
    return master.cli("simulate", "--join", str(master.join_file()), *args, ok=ok)


def stored(master: Master) -> Counter[tuple[str, int]]:
    """How often each event is in the store, by what its node wrote into it."""
    found: Counter[tuple[str, int]] = Counter()
    for event in master.events():
        _, node, seq = event["object"].split("/")
        assert (node, int(seq)) == (event["node"], event["seq"])
        found[node, int(seq)] += 1
    return found


def complete(found: Counter[tuple[str, int]], made: int) -> bool:
    """Whether all numbers of all nodes are there, each once."""
    highest: dict[str, int] = {}
    for node, seq in found:
        highest[node] = max(seq, highest.get(node, 0))
    return set(found.values()) == {1} and len(found) == sum(highest.values()) == made


def test_every_event_is_stored_once_through_a_cut_and_a_storm(master):
    done = simulate(master, "--nodes", str(NODES), "--rate", "20", "--seconds", "2", "--cut", "40", "--storm", "--json")

    figures = json.loads(done.stdout)
    assert figures["made"] == figures["acked"] > NODES * 20
    assert figures["welcomes"] >= NODES + 0.4 * NODES + NODES
    assert figures["cut_back_s"] is not None
    assert figures["storm_back_s"] is not None
    assert complete(stored(master), figures["made"])


def test_every_event_is_stored_once_when_the_master_is_killed_in_between(master):
    keys = make_keys("sim-", NODES)
    master.api.post("/v1/nodes/accept", {"nodes": {key.name: key.public.decode() for key in keys}})
    plan = FleetPlan(endpoint=master.endpoint, server_key=master.server_key, rate=20.0, processes=2)
    with SimulatedFleet(plan, keys) as fleet:
        for _ in range(3):
            acked = fleet.figures().acked
            until(fleet, "all are served", lambda f, acked=acked: f.served == NODES and f.acked > acked + NODES, patience_s=60)
            master.end(signal.SIGKILL)
            made = fleet.figures().made
            until(fleet, "events are made meanwhile", lambda f, made=made: f.made > made + NODES, patience_s=60)
            master.start()
        fleet.pace(0)
        until(fleet, "all are acknowledged", lambda f: f.served == NODES and f.acked == f.made, patience_s=60)
        figures = fleet.figures()

    assert figures.lost >= NODES
    assert complete(stored(master), figures.made)


def test_simulated_nodes_are_retired_in_the_end_and_come_again(master):
    for keep in ((), ("--keep",), ()):
        simulate(master, "--nodes", "3", "--seconds", "0", *keep)

        states = {node["state"] for node in master.nodes().values()}
        assert ("retired" in states) != bool(keep)
        assert set(master.nodes()) == {"sim-0", "sim-1", "sim-2"}


def test_master_with_a_real_node_is_left_alone_unless_told_otherwise(master):
    master.enrolled("edge-1")
    before = master.nodes()

    refused = simulate(master, "--nodes", "3", "--seconds", "0", ok=(3,))

    assert "edge-1" in refused.stderr
    assert master.nodes().keys() == before.keys()
    simulate(master, "--nodes", "3", "--seconds", "0", "--yes")
    assert master.nodes()["edge-1"]["state"] == "online"


def test_retired_simulated_nodes_are_cut_off_while_the_others_go_on(master):
    keys = make_keys("sim-", 4)
    master.api.post("/v1/nodes/accept", {"nodes": {key.name: key.public.decode() for key in keys}})
    plan = FleetPlan(endpoint=master.endpoint, server_key=master.server_key, rate=5.0)
    with SimulatedFleet(plan, keys) as fleet:
        until(fleet, "all are served", lambda f: f.served == 4, patience_s=30)

        answer = master.api.post("/v1/nodes/retire", {"nodes": [keys[0].name, keys[1].name]})

        assert answer == {"changed": 2}
        until(fleet, "two are refused", lambda f: f.served == 2 and f.refused["retired"] >= 2, patience_s=30)
    states = {name: node["state"] for name, node in master.nodes().items()}
    assert [states[key.name] == "retired" for key in keys] == [True, True, False, False]
