"""What a node and its master share across a relay: signatures, vouchers and seals hold for what they were made for alone."""

import pytest
import zmq
from zmq.utils import z85

from garrison.common.errors import SignatureError
from garrison.common.trust.pair import NodeSigner, PairSecret, verify_signed

NODE, MASTER, OTHER = (zmq.curve_keypair() for _ in range(3))


def test_both_sides_have_the_same_secret_and_nobody_else():
    node, master = PairSecret(NODE[1], MASTER[0]), PairSecret(MASTER[1], NODE[0])

    master.check_vouch("n1", b"k" * 32, node.vouch("n1", b"k" * 32))
    node.check_seal("n1", "life", b"frame", master.seal("n1", "life", b"frame"))
    for stranger in (PairSecret(OTHER[1], NODE[0]), PairSecret(OTHER[1], MASTER[0])):
        with pytest.raises(SignatureError):
            node.check_seal("n1", "life", b"frame", stranger.seal("n1", "life", b"frame"))
        with pytest.raises(SignatureError):
            master.check_vouch("n1", b"k" * 32, stranger.vouch("n1", b"k" * 32))


@pytest.mark.parametrize(
    "change", [{"node": "n2"}, {"instance": "other"}, {"frame": b"other"}, {"seal": b""}, {"instance": "lifef", "frame": b"rame"}]
)
def test_seal_holds_for_one_message_to_one_life_of_one_node(change):
    pair = PairSecret(NODE[1], MASTER[0])
    said = {"node": "n1", "instance": "life", "frame": b"frame", "seal": pair.seal("n1", "life", b"frame")}

    with pytest.raises(SignatureError):
        pair.check_seal(**{**said, **change})


def test_voucher_is_no_seal():
    pair = PairSecret(NODE[1], MASTER[0])

    with pytest.raises(SignatureError):
        pair.check_seal("n1", "", b"k" * 32, pair.vouch("n1", b"k" * 32))


def test_signing_key_follows_from_the_nodes_key_alone():
    again = NodeSigner("n1", NODE[1])

    assert NodeSigner("n1", NODE[1]).public_key == again.public_key
    assert NodeSigner("n1", OTHER[1]).public_key != again.public_key
    assert again.public_key not in {z85.decode(NODE[0]), z85.decode(NODE[1])}


@pytest.mark.parametrize(
    "change", [{"node": "n2"}, {"frame": b"frames"}, {"signature": b"\0" * 64}, {"signature": b""}, {"signing_key": b"short"}]
)
def test_signature_holds_for_one_frame_of_one_node(change):
    signer = NodeSigner("n1", NODE[1])
    said = {"node": "n1", "signing_key": signer.public_key, "frame": b"frame", "signature": signer.sign(b"frame")}
    verify_signed(**said)

    with pytest.raises(SignatureError):
        verify_signed(**{**said, **change})


def test_key_that_shares_no_secret_is_refused():
    """With a point of low order as the other key, the secret would be known to everybody."""
    with pytest.raises(SignatureError, match="shares no secret"):
        PairSecret(NODE[1], z85.encode(bytes(32)))
