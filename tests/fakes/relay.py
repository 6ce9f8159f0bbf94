"""A relay in the hands of somebody else: it speaks the protocol under an accepted relay's key, and says what it likes."""

from __future__ import annotations

import zmq

from fakes.peer import Peer, batch_of
from garrison.common.frames import Ack, Batch, Hello, encode_frame
from garrison.common.relay_frames import Carried, Forward, NodePresence, Presence, RelayNodes, encode_item
from garrison.common.trust.pair import NodeSigner, PairSecret

__all__ = ["HostileRelay", "SignedNode"]


class SignedNode:
    """A real node's word: its keys, and batches that it signed."""

    def __init__(self, name: str, master_key: bytes) -> None:
        self.name, self.keypair = name, zmq.curve_keypair()
        self.public, secret = self.keypair
        self.signer, self.pair = NodeSigner(name, secret), PairSecret(secret, master_key)
        self.signing_key = self.signer.public_key
        self.vouch = self.pair.vouch(name, self.signing_key)

    def carried(self, batch: Batch, **changes) -> Carried:
        """Return a batch as an honest relay would carry it; ``changes`` are what a hostile one does to it."""
        frame = encode_frame(batch)
        said = {
            "node": self.name,
            "epoch": batch.epoch,
            "first_seq": batch.seqs[0],
            "last_seq": batch.seqs[-1],
            "events": len(batch.seqs),
            "at": 1,
            "signing_key": self.signing_key,
            "vouch": self.vouch,
            "frame": frame,
            "signature": self.signer.sign(frame),
        }
        return Carried(**{**said, **changes})

    def batch(self, *seqs: int, **fields) -> Batch:
        return batch_of(list(seqs), **fields)

    def hello(self, **changes) -> Hello:
        facts = {"node": self.name, "instance": "ab" * 16, "epoch": "e1", "next_seq": 1 << 40}
        return Hello(**{**facts, "signing_key": self.signing_key.hex(), "vouch": self.vouch.hex(), **changes})


class HostileRelay:
    """A peer under a relay's key."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self._seq = peer, 0

    def hello(self, **changes):
        return self.peer.hello(relay=True, epoch="beef", **changes)

    def nodes(self) -> set[str]:
        """Return the nodes that the master tells next."""
        return {one.node for one in self.peer.wait_for(RelayNodes).nodes}

    def forward(self, *items: Carried | bytes, lane: int = 1) -> None:
        """Send items, and wait until the master says that it is done with them."""
        raws = [one if isinstance(one, bytes) else encode_item(one) for one in items]
        seqs = [self._seq + number for number in range(1, len(raws) + 1)]
        self._seq = seqs[-1]
        self.peer.send(Forward(epoch="beef", lane=lane, seqs=seqs, items=raws))
        assert self.peer.wait_for(Ack) == Ack(epoch="beef", lane=lane, seq=self._seq)

    def says(self, *hellos: Hello, online: bool = True) -> None:
        """Tell the master that nodes are here."""
        seen = [NodePresence(node=one.node, online=online, hello=encode_frame(one)) for one in hellos]
        self.peer.send(Presence(nodes=seen))
