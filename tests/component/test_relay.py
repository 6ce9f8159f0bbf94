"""A site behind a relay: what its nodes recorded reaches the master once, whatever happens to relay, uplink or nodes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from component.relay_site import Site
from fakes.peer import Peer, batch_of
from fakes.relay import SignedNode
from garrison.common.frames import Ack, Refused, Welcome, encode_frame
from garrison.common.relay_frames import Signed

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

KILLS = 20  # rounds; a thousand were not needed to find what a dozen finds, and the bench can do more
NODES = ("edge-1", "edge-2")


@pytest.fixture
def work():
    path = Path(tempfile.mkdtemp(prefix="gr-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def site(work):
    made = Site(work)
    for node in NODES:
        made.accept(node)
    made.start_relay()
    yield made
    made.close()


def test_events_of_a_site_reach_the_master_once_under_their_own_names(site):
    for node in NODES:
        site.start_source(node, 1_000)

    for node in NODES:
        site.all_there(node, 1_000)

    site.accept("edge-3")
    assert site.master.nodes()["edge-3"]["state"] == "offline", "one that never came"
    shown = site.master.nodes()
    assert {shown[node]["via"] for node in NODES} == {"site-1"}
    assert {shown[node]["state"] for node in NODES} == {"online"}
    assert shown["site-1"]["relay"]
    assert shown["site-1"]["refused"] == 0
    assert "via site-1" in site.cli("nodes").stdout


def test_site_goes_on_while_its_master_is_gone_and_everything_arrives_later(site):
    for node in NODES:
        site.start_source(node, 3_000)
    for node in NODES:
        site.all_put(node, 500)
        site.until(lambda node=node: site.numbers(node), f"events of {node} go up", 60)

    site.master.end(signal.SIGKILL)
    for node in NODES:
        site.all_put(node, 3_000)
        site.until(lambda node=node: site.told(node)["pending"] == 0, f"{node} was acked everything by the relay", 60)
    site.until(lambda: "cannot reach" in site.relay_status()["uplink"], "the relay says that it is cut off")
    site.until(lambda: sum(site.relay_status()["spool"]["pending"].values()) > 0, "it waits at the relay")

    site.start_master()
    for node in NODES:
        site.all_there(node, 3_000)
    site.until(lambda: sum(site.relay_status()["spool"]["pending"].values()) == 0, "nothing is left at the relay")


def test_relay_that_is_killed_again_and_again_loses_nothing_and_doubles_nothing(site):
    dice = random.Random(4)  # noqa: S311 - the same kills each time
    for node in NODES:
        site.start_source(node, 1_000_000, per_s=300)

    for _ in range(KILLS):
        before = {node: site.told(node)["put"] for node in NODES}
        wanted = dice.randrange(5, 200)
        site.until(lambda: all(site.told(n)["put"] >= before[n] + wanted for n in NODES), "events go on", 60)  # noqa: B023
        site.end("relay", signal.SIGKILL)
        site.start_relay()

    for node in NODES:
        assert site.end(node) == 0
        site.start_source(node, 0)
        site.all_there(node, site.told(node)["put"])


def test_master_that_is_killed_again_and_again_gets_everything_once(site):
    dice = random.Random(5)  # noqa: S311 - the same kills each time
    for node in NODES:
        site.start_source(node, 1_000_000, per_s=300)

    for _ in range(KILLS // 4):
        before = site.told(NODES[0])["put"]
        wanted = dice.randrange(5, 200)
        site.until(lambda: site.told(NODES[0])["put"] >= before + wanted, "events go on", 60)  # noqa: B023
        site.master.end(signal.SIGKILL)
        site.start_master()

    for node in NODES:
        assert site.end(node) == 0
        site.start_source(node, 0)
        site.all_there(node, site.told(node)["put"])


def test_node_that_moves_between_relay_and_master_loses_and_doubles_nothing(site):
    expected = 0
    for join in (site.by_relay, site.direct, site.by_relay, site.direct):
        site.start_source("edge-1", 400, per_s=2_000, join=join)
        expected += 400
        site.all_put("edge-1", expected)
        assert site.end("edge-1") == 0, "it is moved with events still under way"

    site.start_source("edge-1", 0, join=site.direct)

    site.all_there("edge-1", expected)
    assert site.master.nodes()["edge-1"]["via"] == ""


def test_node_may_move_while_the_relay_that_has_its_events_is_cut_off(site):
    site.start_source("edge-1", 500, per_s=5_000)
    site.all_there("edge-1", 500)
    site.master.end(signal.SIGKILL)
    assert site.end("edge-1") == 0
    site.start_source("edge-1", 500, per_s=5_000)
    site.all_put("edge-1", 1_000)
    site.until(lambda: site.told("edge-1")["pending"] == 0, "the relay has them")
    site.end("relay", signal.SIGKILL)
    site.start_master()

    assert site.end("edge-1") == 0
    site.start_source("edge-1", 500, per_s=5_000, join=site.direct)
    site.all_put("edge-1", 1_500)
    site.until(lambda: len(site.numbers("edge-1")) == 1_000, "the later ones come first")
    site.start_relay()

    site.all_there("edge-1", 1_500)


def test_what_a_full_relay_gave_up_is_told_to_the_event(work):
    site = Site(work)
    site.accept("edge-1")
    site.start_relay("spool_max_bytes = 4_194_304\n")
    try:
        site.start_source("edge-1", 200, per_s=5_000)
        site.all_there("edge-1", 200)
        site.master.end(signal.SIGKILL)
        site.all_put("edge-1", 200)
        assert site.end("edge-1") == 0
        site.start_source("edge-1", 12_000, per_s=4_000, pad_bytes=600)
        site.until(lambda: site.relay_status()["spool"]["gaps"] > 0, "the relay gives up the least precious", 120)
        assert site.end("edge-1") == 0
        site.start_source("edge-1", 0)
        site.until(lambda: site.told("edge-1")["pending"] == 0, "the relay has taken everything", 120)

        site.start_master()

        site.until(lambda: sum(site.relay_status()["spool"]["pending"].values()) == 0, "all is up", 120)
        put, numbers = site.told("edge-1")["put"], site.numbers("edge-1")
        gaps = [e["data"] for e in site.master.events("--kind", "gap", "--node", "site-1")]
        assert {gap["of_node"] for gap in gaps} == {"edge-1"}
        assert sum(gap["count"] for gap in gaps) == put - len(numbers)
        assert set(numbers.values()) == {1}
    finally:
        site.close()


# ---- who may what ------------------------------------------------------------------------------------------------------
def test_unknown_key_at_a_relay_is_shown_at_the_master_and_accepted_for_that_relay(site):
    site.start_source("edge-3", 10)
    site.until((site.work / "edge-3/curve.key").exists, "it has a key")
    shown = site.fingerprint("edge-3")
    site.until(lambda: shown in site.cli("nodes", "pending").stdout, "its key is pending")
    assert {key["via"] for key in json.loads(site.cli("nodes", "pending", "--json").stdout)["pending"]} == {"site-1"}

    site.cli("nodes", "accept", "edge-3", "--key", shown)

    site.all_there("edge-3", 10)
    assert site.master.nodes()["edge-3"]["relays"] == ["site-1"]


def test_retired_node_is_cut_off_at_its_relay_also_after_a_restart_without_the_master(site):
    site.start_source("edge-1", 100)
    site.all_there("edge-1", 100)

    site.cli("nodes", "retire", "edge-1")

    site.until(lambda: "edge-1" not in site.relay_status()["nodes"], "the relay knows", 10)
    site.until(lambda: "key not accepted" in site.told("edge-1")["cause"], "it is refused")
    site.master.end(signal.SIGKILL)
    site.end("relay", signal.SIGKILL)
    site.start_relay()
    site.start_source("edge-2", 10)
    site.until(lambda: site.told("edge-2")["put"] == 10 and site.told("edge-2")["pending"] == 0, "the other node is served")
    site.until(lambda: "key not accepted" in site.told("edge-1")["cause"], "it is refused all the same")


def test_key_of_a_relay_is_refused_to_a_node(site):
    site.until(lambda: site.relay_status()["uplink"] == "connected", "it was a relay's")
    site.end("relay")
    shutil.copytree(site.directory, site.work / "site-1")

    site.start_source("site-1", 1, join=site.direct)

    site.until(lambda: "refused: role" in site.told("site-1")["cause"], "it is refused")


@pytest.fixture
def peer(site):
    """A connection with the relay under the key of edge-3, and the node's own words."""
    node = SignedNode("edge-3", site.master.server_key)
    site.cli("nodes", "accept", "edge-3", "--key", node.public.decode(), "--via", "site-1")
    site.until(lambda: "edge-3" in site.relay_status()["nodes"], "the relay knows it")
    made = Peer(f"tcp://127.0.0.1:{site.port}", site.relay_key, keypair=node.keypair, node="edge-3")
    yield made, node
    made.close()


def test_node_that_does_not_sign_is_refused_before_anything_is_taken(site, peer):
    made, node = peer
    assert made.hello().code == "role", "an agent without the relay's join file"

    made.connect()
    made.send(node.hello())
    assert isinstance(made.next(), Welcome)
    made.send(batch_of([1]))

    assert made.wait_for(Refused).code == "protocol"


@pytest.mark.parametrize("wrong", ["signature", "key", "content", "kind"])
def test_wrong_signature_is_refused_at_the_relay_so_that_the_node_keeps_its_events(site, peer, wrong):
    made, node = peer
    made.send(node.hello())
    assert isinstance(made.next(), Welcome)
    frame = encode_frame(batch_of([1]))
    said = {
        "signature": Signed(frame=frame, signature=b"\0" * 64),
        "key": Signed(frame=frame, signature=SignedNode("edge-3", site.master.server_key).signer.sign(frame)),
        "content": Signed(frame=encode_frame(batch_of([2])), signature=node.signer.sign(frame)),
        "kind": Signed(frame=b"\x00\x80", signature=node.signer.sign(b"\x00\x80")),
    }[wrong]

    made.send(said)

    assert made.wait_for(Refused).code == "protocol", "and no ack before it"
    made.connect()
    made.send(node.hello())
    assert made.wait_for(Welcome).acked == {}
    made.send(Signed(frame=frame, signature=node.signer.sign(frame)))
    assert made.wait_for(Ack).seq == 1, "the right one is taken"
    site.until(lambda: [e["seq"] for e in site.master.events("--node", "edge-3")] == [1], "and arrives")


def test_hello_that_would_choke_the_uplink_is_refused(site, peer):
    made, node = peer

    made.send(node.hello(grains={str(n): os.urandom(400).hex() for n in range(200)}))

    assert made.wait_for(Refused).code == "protocol"
    site.until(lambda: site.relay_status()["uplink"] == "connected", "the relay goes on")


def test_second_agent_under_a_key_is_refused_while_the_first_lives(site, peer):
    made, node = peer
    made.send(node.hello())
    assert isinstance(made.next(), Welcome)
    clone = Peer(f"tcp://127.0.0.1:{site.port}", site.relay_key, keypair=node.keypair, node="edge-3")
    clone.send(node.hello(instance="cd" * 16))

    def refused():
        made.next(0.2)  # answers the relay's ping
        return clone.next(0.2)

    assert site.until(refused, "the clone is answered").code == "clone"
    clone.close()
