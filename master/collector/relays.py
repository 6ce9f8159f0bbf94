"""The master's dealings with relays: whom each may speak for, what of its words is believed, what goes to nodes behind it.

Rules of this file:
- A relay is believed for what it sees (who is connected, which key knocked), never for what a node did: that is signed by the
  node, with a key that the node's accepted CURVE key vouches for.
- Fail-closed: a batch that is not signed, of a node that this relay may not speak for, or unreadable is refused for good,
  counted, and told by an alert. Nothing of it is stored under the node's name.
- A relay's messages are judged and stored one after the other: its spool deletes by one number.
- What is sealed for a node is worth nothing to anybody else, and nothing to the node's next life.
Owns: judgement of relayed words, presence. Does not own: sessions and sockets (``collector``), tables (``store.relays``).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from garrison.common import limits
from garrison.common.errors import FrameError, SignatureError
from garrison.common.events import Event, Kind, Lane, encode_event
from garrison.common.frames import (
    ApplyReport,
    Batch,
    Confirmed,
    ConfirmRequest,
    Hello,
    Job,
    JobCancel,
    JobOutput,
    JobResult,
    Refused,
    decode_up,
    encode_frame,
)
from garrison.common.names import NodeName
from garrison.common.relay_frames import (
    Carried,
    Forward,
    NodePresence,
    Passed,
    Presence,
    RelayNode,
    RelayNodes,
    Sealed,
    Signed,
    decode_item,
)
from garrison.common.trust.pair import PairSecret, verify_signed
from garrison.master.collector.keys import KeyRing
from garrison.master.store.relays import Delivery

__all__ = ["NodeWords", "Present", "RelayLine"]

NodeWords = ApplyReport | JobOutput | JobResult | ConfirmRequest
"""What a node says through a relay besides events."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Present:
    """A node as a relay on the line sees it.

    Attributes:
        relay: Which.
        presence: The relay's last word.
        hello: The node's, with a signing key that was vouched for; ``None`` before its first connection.
        heard: Monotonic time of the relay's last word about it.
        offered: The highest generation sent to the relay for it on this connection.
        left: It was connected by the relay's word before, and is not any more.
    """

    relay: NodeName
    presence: NodePresence
    hello: Hello | None = None
    heard: float = 0.0
    offered: int = 0
    left: bool = False


@dataclass(slots=True)
class _Site:
    nodes: dict[NodeName, Present] = field(default_factory=dict)


class RelayLine:
    """All relays that are connected.

    Args:
        keys: Whose key is whose, and which relay is whose.
        secret_key: The master's CURVE secret key, Z85.
    """

    def __init__(self, keys: KeyRing, secret_key: bytes) -> None:
        self._keys, self._secret_key = keys, secret_key
        self._pairs: dict[str, PairSecret] = {}
        self._vouched: dict[str, bytes] = {}  # the signing key that each accepted key vouched for last
        self._sites: dict[NodeName, _Site] = {}
        self.refused: Final[Counter[NodeName]] = Counter()  # batches, by relay

    # ---- a relay comes and goes ------------------------------------------------------------------------------------------
    def begin(self, relay: NodeName) -> RelayNodes:
        """Take a relay in; return the list of its nodes, which is the first thing it is told."""
        self._sites[relay] = _Site()
        return self.nodes_of(relay)

    def end(self, relay: NodeName) -> None:
        """Forget what a relay saw: its connection is over."""
        self._sites.pop(relay, None)

    def nodes_of(self, relay: NodeName) -> RelayNodes:
        """Return whom a relay may serve."""
        pairs = ((name, self._keys.key_of(name)) for name in sorted(self._keys.served_by(relay)))
        return RelayNodes(nodes=[RelayNode(node=name, key=key) for name, key in pairs if key])

    def connected(self) -> list[NodeName]:
        """Return the relays that are on the line."""
        return list(self._sites)

    # ---- what relays see -------------------------------------------------------------------------------------------------
    def on_presence(self, relay: NodeName, presence: Presence) -> list[Present]:
        """Take a relay's word on its nodes and on keys that knocked; return the nodes it spoke of, and may speak of."""
        for knock in presence.knocks:
            self._keys.knock_at(relay, knock.key, knock.address)
        site, told = self._sites.setdefault(relay, _Site()), []
        for one in presence.nodes:
            node = NodeName(one.node)
            if node not in self._keys.served_by(relay):
                continue  # retired meanwhile: the relay has been told, or will be
            held = site.nodes.get(node)
            hello = self._hello(node, one.hello) if one.hello else None
            now = Present(
                relay=relay,
                presence=one,
                hello=hello or (held.hello if held else None),
                heard=time.monotonic(),
                offered=held.offered if held else 0,
                left=held is not None and held.presence.online and not one.online,
            )
            site.nodes[node] = now
            told.append(now)
        return told

    def online_at(self, relay: NodeName) -> list[NodeName]:
        """Return the nodes that a relay has connected."""
        site = self._sites.get(relay)
        return [node for node, one in site.nodes.items() if one.presence.online] if site is not None else []

    def of_node(self, node: str) -> Present | None:
        """Return how a relay sees a node: one that has it connected, before others; ``None`` when none speaks of it."""
        found = [site.nodes[NodeName(node)] for site in self._sites.values() if NodeName(node) in site.nodes]
        return next((one for one in found if one.presence.online), found[0] if found else None)

    def seen_of_node(self, node: str) -> Iterable[Present]:
        """Return how each relay sees a node."""
        return [site.nodes[NodeName(node)] for site in self._sites.values() if NodeName(node) in site.nodes]

    def _hello(self, node: NodeName, frame: bytes) -> Hello | None:
        # What a node says wrongly is no reason to part with its relay, which has others.
        try:
            hello = _hello_of(frame)
            self._check_vouch(node, bytes.fromhex(hello.signing_key), bytes.fromhex(hello.vouch))
        except (FrameError, SignatureError, ValueError) as err:
            _log.warning("node=%s hello=refused reason=%s", node, err)
            return None
        return hello

    # ---- what nodes said -------------------------------------------------------------------------------------------------
    def judge(self, relay: NodeName, forward: Forward) -> Delivery:
        """Sort a relay's message into what is believed and what is refused. Takes a while; for a thread of its own."""
        batches: list[tuple[NodeName, Batch]] = []
        own: list[tuple[int, bytes]] = []
        for seq, raw in zip(forward.seqs, forward.items, strict=True):
            try:
                item = decode_item(raw)
                if isinstance(item, Event):
                    own.append((seq, raw))
                else:
                    batches.append((NodeName(item.node), self._believed(relay, item, forward.lane)))
            except (FrameError, SignatureError, ValueError) as err:
                self.refused[relay] += 1
                _log.warning("relay=%s batch=refused reason=%s", relay, err)
                own.append((seq, _refusal(raw, str(err))))
        return Delivery(relay, forward, batches, own)

    def _believed(self, relay: NodeName, item: Carried, lane: int) -> Batch:
        node = NodeName(item.node)
        if node not in self._keys.served_by(relay):
            raise SignatureError(f"relay {relay} may not speak for {node[:63]!r}")
        self._check_vouch(node, item.signing_key, item.vouch)
        verify_signed(node, item.signing_key, item.frame, item.signature)
        batch = decode_up(item.frame, limits.SIGNED_PLAIN_MAX_BYTES)
        if not isinstance(batch, Batch) or batch.lane != lane or not batch.epoch:
            raise FrameError(f"{node} signed something else than a batch of lane {lane}")
        return batch

    def on_passed(self, relay: NodeName, passed: Passed) -> NodeWords | None:
        """Return what a node said through its relay; ``None`` when it is not the node's word, or none of these."""
        try:
            return self._words(relay, passed)
        except (FrameError, SignatureError, ValueError) as err:
            _log.warning("node=%s via=%s words=refused reason=%s", passed.node[:63], relay, err)
            return None

    def _words(self, relay: NodeName, passed: Passed) -> NodeWords:
        present = self._sites.get(relay, _Site()).nodes.get(NodeName(passed.node))
        signed = decode_up(passed.frame)
        if present is None or present.hello is None or not isinstance(signed, Signed):
            raise FrameError("nobody vouched for its signing key")
        verify_signed(passed.node, bytes.fromhex(present.hello.signing_key), signed.frame, signed.signature)
        message = decode_up(signed.frame)
        if not isinstance(message, ApplyReport | JobOutput | JobResult | ConfirmRequest):
            raise FrameError(f"a signed {type(message).__name__} outside the spool")
        return message

    # ---- what goes to nodes ------------------------------------------------------------------------------------------------
    def sealed(self, present: Present, message: Job | JobCancel | Confirmed | Refused) -> Passed | None:
        """Return ``message`` sealed for a node behind a relay; ``None`` when the node was never heard."""
        node = NodeName(present.presence.node)
        if present.hello is None:
            return None
        frame = encode_frame(message)
        seal = self._pair(node).seal(node, present.hello.instance, frame)
        return Passed(node=node, frame=encode_frame(Sealed(frame=frame, seal=seal)))

    def _check_vouch(self, node: NodeName, signing_key: bytes, vouch: bytes) -> None:
        key = self._keys.key_of(node) or ""
        if self._vouched.get(key) != signing_key:
            self._pair(node).check_vouch(node, signing_key, vouch)
            self._vouched[key] = signing_key

    def _pair(self, node: NodeName) -> PairSecret:
        key = self._keys.key_of(node)
        if key is None:
            raise SignatureError(f"{node} has no accepted key")
        if key not in self._pairs:
            self._pairs[key] = PairSecret(self._secret_key, key.encode())
        return self._pairs[key]


def _hello_of(frame: bytes) -> Hello:
    hello = decode_up(frame)
    if not isinstance(hello, Hello):
        raise FrameError(f"a {type(hello).__name__} in the place of a hello")
    return hello


def _refusal(raw: bytes, why: str) -> bytes:
    event = Event(
        ts=time.time_ns(),
        lane=Lane.ALERT,
        kind=Kind.TAMPER,
        severity=8,
        operation="relay",
        result="refused",
        data={"what": "a batch from a relay was refused", "reason": why[:500], "bytes": len(raw)},
    )
    return encode_event(event)
