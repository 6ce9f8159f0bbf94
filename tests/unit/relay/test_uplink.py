"""What a relay tells fits the wire, and a master that knows no relays is told nothing."""

import os

import pytest

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.frames import Batch, Hello, Welcome, encode_frame
from garrison.common.relay_frames import Forward, Knock, NodePresence, Sealed
from garrison.relay.uplink import RelayVoice, pieces


@pytest.mark.parametrize("size", [0, 800, limits.RELAYED_HELLO_MAX_BYTES])
def test_presence_of_a_whole_site_fits_frames_whatever_its_nodes_say(size):
    nodes = [NodePresence(node=f"node-{n}" + "x" * 50, hello=os.urandom(size), address="a" * 40) for n in range(600)]
    knocks = [Knock(key="k" * 40, address="a" * 40)] * limits.PENDING_KEYS_MAX

    told = list(pieces(nodes, knocks))

    assert [one for piece in told for one in piece.nodes] == nodes
    assert [piece.knocks for piece in told if piece.knocks] == [knocks]
    assert max(len(encode_frame(piece)) for piece in told) <= limits.FRAME_MAX_BYTES


def test_keys_that_knocked_are_told_also_when_no_node_changed():
    assert [piece.knocks for piece in pieces([], [Knock(key="k")])] == [[Knock(key="k")]]


def test_batches_of_the_spool_go_up_as_items():
    voice = RelayVoice()

    assert voice.said(Batch(epoch="ab", lane=1, seqs=[3], events=[b"x"])) == Forward(epoch="ab", lane=1, seqs=[3], items=[b"x"])
    assert voice.said(Hello(node="site-1")) == Hello(node="site-1")


def test_master_that_knows_no_relays_is_not_served():
    """It would file items as events that it cannot read, and ack them."""
    voice = RelayVoice()
    voice.check_welcome(Welcome(relays=True))

    with pytest.raises(FrameError, match="too old"):
        voice.check_welcome(Welcome())
    with pytest.raises(FrameError):
        voice.heard(Sealed(frame=b"", seal=b""), "")
