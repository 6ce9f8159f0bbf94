"""Messages that a relay adds to the link: between a node and its relay, and between the relay and the master.

Rules of this file:
- What is a node's own word travels as ``Signed`` bytes: the relay keeps and passes on what the node signed, byte for byte.
- What the master says to a node behind a relay, other than signed assignments, travels as ``Sealed``: the relay can neither
  make nor change it.
- A relay's spool holds items: a node's signed batch (``Carried``), or an event of the relay itself.
Owns: these messages and the form of an item. Does not own: signatures and seals (``common.trust.pair``).
"""

from __future__ import annotations

from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import Event, decode_event
from garrison.common.frame_fields import CountField, HexField, StrField

__all__ = [
    "Carried",
    "Forward",
    "Knock",
    "NodePresence",
    "Passed",
    "Presence",
    "RelayAssignment",
    "RelayNode",
    "RelayNodes",
    "Sealed",
    "Signed",
    "check_relay_message",
    "decode_item",
    "encode_item",
]

_ARRAY_FROM: Final = 0x90  # msgpack: a fixed array of up to 15; maps, and so events, begin otherwise
_ARRAY_TO: Final = 0x9F


class _Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag=str.lower):
    """Base of these messages, as of all others."""


# ---- node → relay ----------------------------------------------------------------------------------------------------
class Signed(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a node behind a relay.

    Attributes:
        frame: The message as a frame of its own.
        signature: Ed25519, by the node's signing key, over the frame and the node's name.
    """

    frame: bytes
    signature: bytes


# ---- relay → master --------------------------------------------------------------------------------------------------
class Forward(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Items of one lane of the relay's spool, oldest first; acknowledged like a ``Batch``.

    Attributes:
        epoch: Epoch of the relay's spool.
        lane: Lane they all share.
        seqs: Numbers in the relay's spool, strictly rising.
        items: As ``encode_item`` or ``encode_event`` made them, in the order of ``seqs``.
    """

    epoch: HexField
    lane: int
    seqs: list[CountField]
    items: list[bytes]


class NodePresence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a relay sees of a node; the relay's word, not the node's.

    Attributes:
        node: Whose.
        online: It is connected to the relay.
        address: Where it comes from.
        generation: The generation of the assignment that the relay holds for it, 0 for none.
        hello: What it said of itself when it connected, as a frame; empty when it never did.
    """

    node: StrField
    online: bool = False
    address: StrField = ""
    generation: CountField = 0
    hello: bytes = b""


class Knock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key that knocked at the relay and was not let in: Z85 key, and where it came from."""

    key: StrField
    address: StrField = ""


class Presence(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """What changed at a relay since its last word on this connection; everything, the first time."""

    nodes: list[NodePresence] = []
    knocks: list[Knock] = []


# ---- master → relay --------------------------------------------------------------------------------------------------
class RelayNode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node that the relay may serve: its name and accepted CURVE key, Z85."""

    node: StrField
    key: StrField


class RelayNodes(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """All nodes that the relay may serve, instead of what it was told before."""

    nodes: list[RelayNode] = []


class RelayAssignment(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """A node's newest assignment, to be kept and passed on unchanged.

    Attributes:
        node: Whose.
        generation: Its number, so that a relay knows which is newer.
        frame: The ``Assignment`` as a frame.
    """

    node: StrField
    generation: CountField
    frame: bytes


class Sealed(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """A message of the master to a node behind a relay.

    Attributes:
        frame: The message as a frame of its own.
        seal: By the secret that the two keys share, over the frame, the node's name and its agent's instance.
    """

    frame: bytes
    seal: bytes


# ---- both ways ---------------------------------------------------------------------------------------------------------
class Passed(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """One message from or to a node behind the relay, as a frame: ``Signed`` up, ``Sealed`` down. Never kept."""

    node: StrField
    frame: bytes


# ---- items -------------------------------------------------------------------------------------------------------------
class Carried(msgspec.Struct, frozen=True, array_like=True):
    """A node's signed batch on its way, with what it takes to verify it without having met the node.

    Attributes:
        node: Who signed.
        epoch: The batch's epoch, lowest and highest number and count, so that the relay need not unpack it; the master believes
            the signed batch alone.
        first_seq: See ``epoch``.
        last_seq: See ``epoch``.
        events: See ``epoch``.
        at: When the relay took it, ns since 1970 UTC by the relay's clock.
        signing_key: The node's Ed25519 public key.
        vouch: By the node's CURVE key for its signing key; only the node and the master can make it.
        frame: The ``Batch`` as a frame.
        signature: As in ``Signed``.
    """

    node: StrField
    epoch: HexField
    first_seq: CountField
    last_seq: CountField
    events: CountField
    at: CountField
    signing_key: bytes
    vouch: bytes
    frame: bytes
    signature: bytes


_encoder: Final = msgspec.msgpack.Encoder()
_carried: Final = msgspec.msgpack.Decoder(Carried)


def encode_item(carried: Carried) -> bytes:
    """Return a signed batch as an item of a relay's spool."""
    return _encoder.encode(carried)


def decode_item(raw: bytes) -> Carried | Event:
    """Return what an item is: a node's signed batch, not yet verified, or an event of the relay.

    Raises:
        FrameError: It is neither.
    """
    if not raw or not _ARRAY_FROM <= raw[0] <= _ARRAY_TO:
        return decode_event(raw)
    if len(raw) > limits.FRAME_MAX_BYTES:
        raise FrameError(f"item takes {len(raw)} bytes, the limit is {limits.FRAME_MAX_BYTES}")
    try:
        return _carried.decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as err:
        raise FrameError(f"not an item: {err}") from err


def check_relay_message(message: object) -> None:
    """Check counts in a message of this file; anything else passes.

    Raises:
        FrameError: Over a limit, or numbers that do not rise.
    """
    if isinstance(message, Forward):
        if not 1 <= len(message.items) <= limits.FORWARD_MAX_ITEMS or len(message.seqs) != len(message.items):
            raise FrameError(f"forward has {len(message.items)} items and {len(message.seqs)} numbers")
        if any(b <= a for a, b in zip(message.seqs, message.seqs[1:], strict=False)) or message.seqs[0] < 1:
            raise FrameError("forward numbers do not rise")
    elif isinstance(message, Presence):
        if len(message.nodes) > limits.RELAY_NODES_MAX or len(message.knocks) > limits.PENDING_KEYS_MAX:
            raise FrameError(f"presence of {len(message.nodes)} nodes and {len(message.knocks)} keys")
    elif isinstance(message, RelayNodes) and len(message.nodes) > limits.RELAY_NODES_MAX:
        raise FrameError(f"a relay for {len(message.nodes)} nodes")
