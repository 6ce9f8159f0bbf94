"""What a relay in the wrong hands can do to a real master and to real nodes' words: keep them back, and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
import zmq

from component.test_master import Master
from fakes.peer import Peer, batch_of
from fakes.relay import HostileRelay, SignedNode
from garrison.common.events import Event, Kind, Lane, encode_event
from garrison.common.frames import (
    Ack,
    ApplyReport,
    Batch,
    Confirmed,
    ConfirmRequest,
    Job,
    JobResult,
    Refused,
    Welcome,
    decode_down,
    encode_frame,
)
from garrison.common.relay_frames import Forward, Passed, RelayNodes, Sealed, Signed
from garrison.common.trust.pair import NodeSigner, PairSecret

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


class World:
    """A master, a hostile relay ``site-1``, its node ``n1`` and another site's node ``n2``."""

    def __init__(self, work: Path) -> None:
        self.master = Master(work)
        self.master.start()
        self.n1, self.n2 = (SignedNode(name, self.master.server_key) for name in ("n1", "n2"))
        peer = self.master.peer(node="site-1")
        self.accept("site-1", peer.public, relay=True)
        self.accept("site-2", zmq.curve_keypair()[0], relay=True)
        self.accept("n1", self.n1.public, via="site-1")
        self.accept("n2", self.n2.public, via="site-2")
        peer.connect()
        self.relay = HostileRelay(peer)
        assert isinstance(self.relay.hello(), Welcome)
        assert self.relay.nodes() == {"n1"}

    def accept(self, name: str, key: bytes, **how) -> None:
        self.master.api.post(f"/v1/nodes/{name}/accept", {"key": key.decode(), **how})

    def stored(self) -> list[tuple[str, str, int, str]]:
        """Every event that is filed under a node."""
        events = self.master.events()
        return [(e["node"], e["epoch"], e["seq"], e["object"]) for e in events if e["node"] in {"n1", "n2"}]

    def refusals(self) -> list[str]:
        return [e["data"]["reason"] for e in self.master.events("--kind", "tamper", "--node", "site-1")]

    def node(self, **how) -> Peer:
        """The node n1 itself, connected with its master."""
        return self.master.peer(keypair=self.n1.keypair, node="n1", **how)


@pytest.fixture
def world():
    work = Path(tempfile.mkdtemp(prefix="gm-"))
    made = World(work)
    yield made
    made.master.close()
    shutil.rmtree(work)


def test_signed_batch_is_filed_under_its_node_once_however_often_it_comes(world):
    carried = world.n1.carried(world.n1.batch(1, 4))

    world.relay.forward(carried, carried)
    world.relay.forward(carried)

    assert world.stored() == [("n1", "e1", 1, "/1"), ("n1", "e1", 4, "/4")]
    assert world.refusals() == []


def forged(world: World):
    """A batch signed by a key that the relay made, vouched for as well as it can."""
    _, secret = zmq.curve_keypair()
    signer, pair = NodeSigner("n1", secret), PairSecret(secret, world.master.server_key)
    frame = encode_frame(world.n1.batch(1))
    vouch = pair.vouch("n1", signer.public_key)
    return world.n1.carried(
        world.n1.batch(1), frame=frame, signing_key=signer.public_key, vouch=vouch, signature=signer.sign(frame)
    )


def signed_report(world: World):
    frame = encode_frame(ApplyReport(generation=9, bundle="ab", state="applied"))
    return world.n1.carried(world.n1.batch(1), frame=frame, signature=world.n1.signer.sign(frame))


ATTACKS = {
    "altered event": lambda w: w.n1.carried(w.n1.batch(1), frame=encode_frame(w.n1.batch(1, object="/forged"))),
    "other number": lambda w: w.n1.carried(w.n1.batch(1), frame=encode_frame(w.n1.batch(2))),
    "other epoch": lambda w: w.n1.carried(w.n1.batch(1), frame=encode_frame(w.n1.batch(1, epoch="e2"))),
    "no signature": lambda w: w.n1.carried(w.n1.batch(1), signature=b""),
    "another node's batch as this one's": lambda w: msgspec.structs.replace(w.n2.carried(w.n2.batch(1)), node="n1"),
    "this node's batch as another's": lambda w: w.n1.carried(w.n1.batch(1), node="n2"),
    "node of another relay": lambda w: w.n2.carried(w.n2.batch(1)),
    "key of the relay's own making": forged,
    "something else that was signed": signed_report,
    "not an item": lambda _: b"\x91\x01",
    "nonsense": lambda _: b"\xc1nonsense",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_node_did_not_sign_is_refused_counted_and_shown_and_the_rest_goes_on(world, attack):
    item = ATTACKS[attack](world)
    if attack == "this node's batch as another's":
        world.accept("n2", world.n2.public, via="site-1")

    world.relay.forward(item, world.n1.carried(world.n1.batch(7)))

    assert world.stored() == [("n1", "e1", 7, "/7")]
    assert len(world.refusals()) == 1
    assert world.master.nodes()["site-1"]["refused"] == 1
    assert "1 batches refused" in world.master.cli("nodes", "show", "site-1").stdout


def test_batch_that_is_kept_back_is_not_deleted_by_the_node_when_it_comes_itself(world):
    """The relay passes the later batch on and holds the earlier one: the master's mark must not have the node delete that."""
    world.relay.forward(world.n1.carried(world.n1.batch(11, 12)))

    node = world.node()
    welcome = node.hello()

    assert welcome.acked == {}, "nothing may be deleted for what came by a relay"
    assert welcome.seen == 12, "but a node that was restored from a copy sees it"
    node.send(batch_of([1, 2]))
    assert node.wait_for(Ack).seq == 2
    node.send(batch_of([11, 12]))
    assert node.wait_for(Ack).seq == 12
    assert sorted(seq for _, _, seq, _ in world.stored()) == [1, 2, 11, 12]


def test_relays_own_events_are_its_own_whatever_they_say(world):
    own = encode_event(Event(ts=1, node="n1", epoch="e1", lane=Lane.SHELL, kind=Kind.GAP, object="/own"))

    world.relay.forward(own)

    assert world.stored() == []
    assert [e["node"] for e in world.master.events("--kind", "gap")] == ["site-1"]


def test_relay_cannot_send_batches_as_a_node_does(world):
    world.relay.peer.send(batch_of([1], epoch="beef"))
    assert world.relay.peer.wait_for(Ack).seq == 1

    assert world.stored() == []


def test_node_cannot_use_the_words_of_a_relay(world):
    node = world.node()
    assert isinstance(node.hello(), Welcome)

    node.send(Forward(epoch="e1", lane=1, seqs=[1], items=[b"\x90"]))

    assert node.wait_for(Refused).code == "protocol"


def test_node_that_says_it_is_a_relay_is_refused(world):
    assert world.node().hello(relay=True).code == "role"


def test_what_a_relay_says_a_node_enforces_raises_no_generation(world):
    """Assignments must be above what a node reported: a relay could otherwise lock a node out with one number."""
    world.relay.says(world.n1.hello(generation=1 << 50))
    world.master.until(lambda: world.master.nodes()["n1"]["via"] == "site-1", "the relay is heard")

    assert world.master.nodes()["n1"]["generation"] == 0


@pytest.mark.parametrize("wrong", [{"signing_key": "00" * 32}, {"vouch": "00" * 32}, {"vouch": "abc"}, {"vouch": ""}])
def test_hello_whose_key_the_node_does_not_vouch_for_does_not_count(world, wrong):
    """Nor does it cost the relay its connection: a node could otherwise cut its whole site off."""
    world.relay.says(world.n1.hello(**wrong))

    world.master.until(lambda: "node=n1 hello=refused" in world.master.log(), "it is refused")
    assert world.master.nodes()["n1"]["via"] == ""
    world.relay.says(world.n1.hello())
    world.master.until(lambda: world.master.nodes()["n1"]["via"] == "site-1", "the right one counts")


def test_report_of_a_node_counts_only_when_the_node_signed_it(world):
    world.relay.says(world.n1.hello())
    frame = encode_frame(ApplyReport(generation=3, bundle="ab", state="applied"))
    world.relay.peer.send(Passed(node="n1", frame=encode_frame(Signed(frame=frame, signature=world.n1.signer.sign(frame)))))
    world.master.until(lambda: world.master.nodes()["n1"]["generation"] == 3, "the node's own report counts")

    forged_frame = encode_frame(ApplyReport(generation=4, bundle="ab", state="applied"))
    signed = Signed(frame=forged_frame, signature=world.n2.signer.sign(forged_frame))
    world.relay.peer.send(Passed(node="n1", frame=encode_frame(signed)))

    world.master.until(lambda: "node=n1 via=site-1 words=refused" in world.master.log(), "it is refused")
    assert world.master.nodes()["n1"]["generation"] == 3


def test_confirmation_and_command_are_sealed_for_the_node_and_its_life(world):
    hello = world.n1.hello()
    world.relay.says(hello)
    world.master.until(lambda: world.master.nodes()["n1"]["via"] == "site-1", "the relay is heard")
    request = encode_frame(ConfirmRequest(generation=1, bundle="ab", nonce="cd"))
    signed = Signed(frame=request, signature=world.n1.signer.sign(request))

    world.relay.peer.send(Passed(node="n1", frame=encode_frame(signed)))
    answer = sealed_for(world.relay.peer.wait_for(Passed))
    assert isinstance(decode_down(answer.frame), Refused), "n1 is assigned nothing"
    world.n1.pair.check_seal("n1", hello.instance, answer.frame, answer.seal)

    job = world.master.api.post("/v1/jobs", {"nodes": ["n1"], "argv": ["true"], "timeout_s": 5})
    command = sealed_for(world.relay.peer.wait_for(Passed))
    assert isinstance(decode_down(command.frame), Job)
    world.n1.pair.check_seal("n1", hello.instance, command.frame, command.seal)
    result = encode_frame(JobResult(job=job["id"], exit_code=5))
    signed = Signed(frame=result, signature=world.n1.signer.sign(result))
    world.relay.peer.send(Passed(node="n1", frame=encode_frame(signed)))
    world.master.until(lambda: world.master.api.get(f"/v1/jobs/{job['id']}")["ended"], "the answer counts")


def sealed_for(passed: Passed) -> Sealed:
    assert passed.node == "n1"
    message = decode_down(passed.frame)
    assert isinstance(message, Sealed)
    assert not isinstance(message, Confirmed)
    return message


def test_retired_node_is_taken_from_the_relays_list_and_its_batches_are_refused(world):
    world.master.cli("nodes", "retire", "n1")

    assert world.relay.peer.wait_for(RelayNodes).nodes == []
    world.relay.forward(world.n1.carried(world.n1.batch(1)))
    assert world.stored() == []
    assert "may not speak for" in world.refusals()[0]


def test_node_is_let_carry_by_a_second_relay_only_when_it_is_accepted_for_it(world):
    world.relay.forward(world.n2.carried(world.n2.batch(1)))
    assert world.stored() == []

    world.master.cli("nodes", "accept", "n2", "--key", world.n2.public.decode(), "--via", "site-1")

    assert world.relay.nodes() == {"n1", "n2"}
    world.relay.forward(world.n2.carried(world.n2.batch(1)))
    assert world.stored() == [("n2", "e1", 1, "/1")]
    refused = world.master.cli("nodes", "accept", "n2", "--key", world.n2.public.decode(), "--via", "n1", ok=(2,))
    assert "is no relay" in refused.stderr


def test_batch_of_a_lane_that_is_none_is_refused(world):
    batch = Batch(epoch="e1", lane=9, seqs=[1], events=[b"\x80"])

    world.relay.forward(world.n1.carried(batch))

    assert world.stored() == []
    assert len(world.refusals()) == 1
