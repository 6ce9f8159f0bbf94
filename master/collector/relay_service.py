"""Serves relays: their items into the store, their nodes' words to where the nodes' own would go, and back.

Rules of this file:
- An item is acked after it is durable, one message of a relay after the other: its numbers are acknowledged in order.
- A node that is connected itself is spoken to directly; through a relay only when it is not.
- Assignments go to every relay of a node, also while the node is away: a site must have them when it is cut off.
Owns: the order of a relay's messages. Does not own: what is believed (``relays``), sessions (``collector``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, Final, Protocol

from garrison.common.errors import GarrisonError
from garrison.common.frames import (
    Ack,
    ApplyReport,
    Assignment,
    Confirmed,
    ConfirmRequest,
    Down,
    Job,
    JobCancel,
    JobOutput,
    JobResult,
    Refused,
    encode_frame,
)
from garrison.common.names import NodeName
from garrison.common.relay_frames import Forward, Passed, Presence, RelayAssignment
from garrison.master.collector.relays import Present, RelayLine
from garrison.master.collector.sessions import Session
from garrison.master.store import Store, Stored

__all__ = ["RelayService"]

_log = logging.getLogger(__name__)


class Host(Protocol):
    """What the service needs of the collector."""

    def send_to(self, session: Session, message: Down) -> bool:
        """Send on a session; return whether the link took it."""

    def is_on(self, session: Session) -> bool:
        """Return whether the session is that of its connection."""

    def session(self, node: str) -> Session | None:
        """Return a node's own session."""

    def break_session(self, session: Session, why: str) -> None:
        """Close a session's connection."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run ``work`` beside everything else."""

    def on_stored(self, session: Session, stored: Stored) -> None:
        """Note that a message of a session was stored."""

    def on_node_words(self, node: NodeName, message: ApplyReport | JobOutput | JobResult) -> None:
        """Take what a node said besides events."""

    def on_node_online(self, node: NodeName) -> None:
        """A node can be reached."""


class RelayService:
    """Relays that are connected, from the collector's side.

    Args:
        store: Where everything goes.
        line: Judgement and presence.
        host: The collector.
        frame_for: The newest assignment of a node; called in threads.
        confirm: The answer to a request; called in threads.
    """

    def __init__(
        self,
        store: Store,
        line: RelayLine,
        host: Host,
        *,
        frame_for: Callable[[NodeName], Assignment | None],
        confirm: Callable[[NodeName, ConfirmRequest], Confirmed | Refused],
    ) -> None:
        self._store, self.line, self._host = store, line, host
        self._frame_for, self._confirm = frame_for, confirm
        self._order: Final[dict[bytes, asyncio.Lock]] = {}

    # ---- life of a session -----------------------------------------------------------------------------------------------
    def begin(self, session: Session) -> None:
        """Tell a relay that was welcomed whom it may serve."""
        self._order[session.routing_id] = asyncio.Lock()
        self._host.send_to(session, self.line.begin(session.node))

    def end(self, session: Session) -> None:
        """Forget a relay's session."""
        if self._order.pop(session.routing_id, None) is not None:
            self.line.end(session.node)

    def keys_changed(self) -> None:
        """Tell all relays whom they may serve now."""
        for relay in self.line.connected():
            session = self._host.session(relay)
            if session is not None:
                self._host.send_to(session, self.line.nodes_of(relay))

    # ---- up --------------------------------------------------------------------------------------------------------------
    async def forward(self, session: Session, forward: Forward) -> None:
        """Judge and store a relay's items, then ack them."""
        lock = self._order.get(session.routing_id)
        if lock is None:
            return
        async with lock:
            if not self._host.is_on(session):
                return
            delivery = await asyncio.to_thread(self.line.judge, session.node, forward)
            try:
                stored = await asyncio.wrap_future(self._store.submit_forward(delivery))
            except GarrisonError as err:
                _log.error("relay=%s items=unstored error=%s", session.node, err)
                self._host.break_session(session, "items-not-stored")
                return
            if self._host.is_on(session):
                self._host.send_to(session, Ack(epoch=forward.epoch, lane=forward.lane, seq=stored.acked))
            self._host.on_stored(session, stored)

    def on_presence(self, session: Session, presence: Presence) -> None:
        """Take what a relay sees; offer it assignments that it lacks, and its nodes what they have not answered."""
        told = self.line.on_presence(session.node, presence)
        for present in told:
            node = NodeName(present.presence.node)
            if present.presence.hello and present.hello is not None:
                future = self._store.submit_relayed_hello(node, present.hello, present.presence.address)
                future.add_done_callback(_log_failure)
            if present.presence.online:
                self._host.on_node_online(node)
            elif present.left:
                self._store.submit_seen([(node, time.time_ns())]).add_done_callback(_log_failure)
        self._host.spawn(self._assign(session, told))

    def on_passed(self, session: Session, passed: Passed) -> None:
        """Take what a node said through a relay."""
        message, node = self.line.on_passed(session.node, passed), NodeName(passed.node)
        if message is None:
            return
        if isinstance(message, ConfirmRequest):
            self._host.spawn(self._answer(session, node, message))
        else:
            self._host.on_node_words(node, message)

    async def _answer(self, session: Session, node: NodeName, request: ConfirmRequest) -> None:
        try:
            answer = await asyncio.to_thread(self._confirm, node, request)
        except GarrisonError as err:
            _log.error("node=%s confirm=unanswered error=%s", node, err)
            return
        present = next((one for one in self.line.seen_of_node(node) if one.relay == session.node), None)
        passed = self.line.sealed(present, answer) if present is not None else None
        if passed is not None and self._host.is_on(session):
            self._host.send_to(session, passed)

    # ---- down ------------------------------------------------------------------------------------------------------------
    def reaches(self, node: str) -> bool:
        """Return whether a relay has the node connected."""
        present = self.line.of_node(node)
        return present is not None and present.presence.online and present.hello is not None

    def send(self, node: NodeName, message: Job | JobCancel) -> bool:
        """Send to a node through a relay that has it connected; return whether the link took it."""
        present = self.line.of_node(node)
        if present is None or not present.presence.online:
            return False
        session, passed = self._host.session(present.relay), self.line.sealed(present, message)
        return session is not None and passed is not None and self._host.send_to(session, passed)

    async def offer(self, nodes: Iterable[NodeName]) -> None:
        """Send new assignments to the relays of these nodes."""
        for node in nodes:
            for present in self.line.seen_of_node(node):
                session = self._host.session(present.relay)
                if session is not None:
                    await self._assign(session, [present])

    async def _assign(self, session: Session, told: Iterable[Present]) -> None:
        for present in told:
            node = NodeName(present.presence.node)
            try:
                assigned = await asyncio.to_thread(self._store.assignment, node)
                if assigned is None or assigned.generation <= max(present.offered, present.presence.generation):
                    continue
                frame = await asyncio.to_thread(self._frame_for, node)
            except GarrisonError as err:
                _log.error("node=%s via=%s assignment=unsent error=%s", node, session.node, err)
                continue
            if frame is None or not self._host.is_on(session):
                continue
            message = RelayAssignment(node=node, generation=assigned.generation, frame=encode_frame(frame))
            if self._host.send_to(session, message):
                present.offered = assigned.generation


def _log_failure(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None:
        _log.error("store=unwritten error=%s", error)
