"""Messages of relays survive the wire, and hold their limits; an item is a batch, an event, or refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import Event, encode_event
from garrison.common.frames import Hello, Welcome, decode_down, decode_up, encode_frame, plain_bytes
from garrison.common.relay_frames import (
    Carried,
    Forward,
    Knock,
    NodePresence,
    Passed,
    Presence,
    RelayAssignment,
    RelayNode,
    RelayNodes,
    Sealed,
    Signed,
    decode_item,
    encode_item,
)

CARRIED = Carried(
    node="n1", epoch="ab", first_seq=3, last_seq=9, events=2, at=5, signing_key=b"k", vouch=b"v", frame=b"f", signature=b"s"
)
MANY = limits.FORWARD_MAX_ITEMS + 1
UP = [
    Signed(frame=b"f", signature=b"s"),
    Forward(epoch="ab", lane=1, seqs=[2, 5], items=[b"x", b"y"]),
    Presence(nodes=[NodePresence(node="n1", online=True, address="a", generation=2, hello=b"h")], knocks=[Knock(key="k")]),
    Passed(node="n1", frame=b"f"),
    Hello(node="n1", relay=True, signing_key="ab", vouch="cd"),
]
DOWN = [
    Sealed(frame=b"f", seal=b"s"),
    RelayNodes(nodes=[RelayNode(node="n1", key="k")]),
    RelayAssignment(node="n1", generation=3, frame=b"f"),
    Passed(node="n1", frame=b"f"),
    Welcome(relays=True, seen=4),
]


@pytest.mark.parametrize("message", UP, ids=lambda m: type(m).__name__)
def test_message_to_the_master_survives_the_wire(message):
    assert decode_up(encode_frame(message)) == message


@pytest.mark.parametrize("message", DOWN, ids=lambda m: type(m).__name__)
def test_message_from_the_master_survives_the_wire(message):
    assert decode_down(encode_frame(message)) == message


def test_peer_of_before_relays_reads_a_hello_and_a_welcome_all_the_same():
    """Unknown fields are ignored: that is what makes the new ones harmless."""
    old = msgspec.defstruct("Hello", [("node", str, "")], tag="hello", tag_field="t")

    assert msgspec.msgpack.decode(encode_frame(UP[-1])[1:], type=old).node == "n1"


@pytest.mark.parametrize(
    "message",
    [
        Forward(epoch="ab", lane=1, seqs=[], items=[]),
        Forward(epoch="ab", lane=1, seqs=[1], items=[b"x", b"y"]),
        Forward(epoch="ab", lane=1, seqs=[2, 2], items=[b"x", b"y"]),
        Forward(epoch="ab", lane=1, seqs=[0], items=[b"x"]),
        Forward(epoch="ab", lane=1, seqs=list(range(1, MANY + 1)), items=[b""] * MANY),
        Presence(nodes=[NodePresence(node="n")] * (limits.RELAY_NODES_MAX + 1)),
        Presence(knocks=[Knock(key="k")] * (limits.PENDING_KEYS_MAX + 1)),
    ],
)
def test_message_over_a_count_is_refused(message):
    with pytest.raises(FrameError):
        decode_up(encode_frame(message))


def test_list_of_too_many_nodes_is_refused():
    with pytest.raises(FrameError):
        decode_down(encode_frame(RelayNodes(nodes=[RelayNode(node="n", key="k")] * (limits.RELAY_NODES_MAX + 1))))


def test_unpacked_size_is_bounded_where_the_caller_says_and_known():
    frame = encode_frame(Signed(frame=b"\0" * 100_000, signature=b""))

    assert plain_bytes(frame) > 100_000 > len(frame)
    assert plain_bytes(encode_frame(UP[0])) == len(encode_frame(UP[0])) - 1
    with pytest.raises(FrameError):
        decode_up(frame, 50_000)


def test_item_is_a_batch_or_an_event():
    event = Event(ts=1, kind="agent")

    assert decode_item(encode_item(CARRIED)) == CARRIED
    assert decode_item(encode_event(event)) == event


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_items(raw):
    try:
        decode_item(raw)
    except FrameError:
        return


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damaged_batch_is_read_or_refused(at, damage):
    raw = bytearray(encode_item(CARRIED))
    raw[at % len(raw) : at % len(raw) + len(damage)] = damage
    try:
        decode_item(bytes(raw))
    except FrameError:
        return
