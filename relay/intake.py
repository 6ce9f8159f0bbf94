"""Batches of nodes into the relay's spool, and acks back once they are durable.

Rules of this file:
- What a node may delete is durable here: an ack follows the commit, in the order in which batches were taken.
- A batch that is here already is acked at once and not kept again.
- What does not fit is not taken and not acked: it is the node's still, and no loss.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import Lane
from garrison.common.frames import Ack, Batch, Down, plain_bytes
from garrison.common.names import NodeName
from garrison.common.relay_frames import Carried, Signed
from garrison.master.collector.sessions import Session
from garrison.minion.spool import Spool
from garrison.relay.cargo import carried_item

__all__ = ["Intake"]


class _Waiting(NamedTuple):
    ticket: int
    session: Session
    epoch: str
    lane: int
    seq: int


class Intake:
    """What was taken and is not durable yet, and how far each node is.

    Args:
        spool: Where batches go.
        marks: How far it has each node's lanes: ``(node, epoch, lane)`` → number.
        send: Sends on a session that may be over.

    Attributes:
        taken: Events taken.
    """

    def __init__(self, spool: Spool, marks: Mapping[tuple[str, str, int], int], send: Callable[[Session, Down], bool]) -> None:
        self._spool, self._marks, self._send = spool, dict(marks), send
        self._waiting: deque[_Waiting] = deque()
        self.taken = 0

    def begin(self, node: NodeName, epoch: str) -> dict[int, int]:
        """Return how far each lane of a node's epoch is here; to be called when all that was taken before is durable."""
        self.on_durable()
        self._marks = {key: seq for key, seq in self._marks.items() if key[0] != node or key[1] == epoch}
        return {lane: seq for (name, _, lane), seq in self._marks.items() if name == node}

    def take(self, session: Session, batch: Batch, signed: Signed) -> bool:
        """Take a batch whose signature was verified; ``False`` when the spool has no room for it now.

        Raises:
            FrameError: It is none, or one too many.
        """
        if not 0 <= batch.lane < len(Lane) or not batch.epoch:
            raise FrameError(f"batch of lane {batch.lane}, epoch {batch.epoch!r}")
        if session.unacked >= limits.UNACKED_MAX_BATCHES:
            raise FrameError(f"more than {limits.UNACKED_MAX_BATCHES} batches without an ack")
        if plain_bytes(signed.frame) > limits.SIGNED_PLAIN_MAX_BYTES:
            raise FrameError("a batch that the master would not take")
        held = self._marks.get((session.node, batch.epoch, batch.lane), 0)
        if batch.seqs[-1] <= held:
            self._send(session, Ack(epoch=batch.epoch, lane=batch.lane, seq=held))
            return True
        ticket = self._spool.offer(carried_item(Lane(batch.lane), _carried(session, batch, signed)))
        if not ticket:
            return False
        session.unacked += 1
        self.taken += len(batch.seqs)
        self._waiting.append(_Waiting(ticket, session, batch.epoch, batch.lane, batch.seqs[-1]))
        return True

    def on_durable(self) -> None:
        """Ack what has become durable."""
        done = self._spool.durable
        while self._waiting and self._waiting[0].ticket <= done:
            one = self._waiting.popleft()
            one.session.unacked -= 1
            key = (str(one.session.node), one.epoch, one.lane)
            self._marks[key] = max(one.seq, self._marks.get(key, 0))
            self._send(one.session, Ack(epoch=one.epoch, lane=one.lane, seq=one.seq))


def _carried(session: Session, batch: Batch, signed: Signed) -> Carried:
    return Carried(
        node=session.node,
        epoch=batch.epoch,
        first_seq=batch.seqs[0],
        last_seq=batch.seqs[-1],
        events=len(batch.seqs),
        at=time.time_ns(),
        signing_key=bytes.fromhex(session.hello.signing_key),
        vouch=bytes.fromhex(session.hello.vouch),
        frame=signed.frame,
        signature=signed.signature,
    )
