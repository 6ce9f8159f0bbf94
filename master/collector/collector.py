"""The master's end of the link: takes what nodes send, stores it, acks it, and sends what they are due.

Rules of this file:
- Who sent a message is its authenticated key and nothing else; the key's state is looked at for every message.
- An ack follows the durable commit, never the other way round. When a commit fails the connection is closed: the node comes back
  after a pause and sends again.
- A peer that breaks the protocol loses its connection and is counted; what it sent before stays, others notice nothing.
- Fail-closed: no hello, no service; a retired node is cut off, its traffic is dropped from the next message on.
- Nothing here waits: disk work runs in threads or in the store's writer.
Owns: sessions and the order of messages. Does not own: what a bundle is (desk), what a job is (jobs), what an event is (store).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter, deque
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final

import zmq

from garrison.common import limits
from garrison.common.errors import FrameError, GarrisonError
from garrison.common.events import Lane
from garrison.common.frames import (
    PROTOCOL,
    Ack,
    ApplyReport,
    Batch,
    ChunkRequest,
    ConfirmRequest,
    Down,
    Hello,
    Job,
    JobCancel,
    JobOutput,
    JobResult,
    Ping,
    Pong,
    Refused,
    Up,
    decode_up,
    encode_frame,
)
from garrison.common.names import NodeName
from garrison.common.relay_frames import Forward, Passed, Presence
from garrison.master.bell import Bell
from garrison.master.collector.clones import Clone, living
from garrison.master.collector.dues import Desk, Dues
from garrison.master.collector.keys import KeyRing
from garrison.master.collector.port import Port
from garrison.master.collector.relay_service import RelayService
from garrison.master.collector.relays import RelayLine
from garrison.master.collector.sessions import Admission, Session, Sessions
from garrison.master.collector.sockets import Peer, peer_of, shut_down
from garrison.master.collector.usher import Usher
from garrison.master.collector.work import Work
from garrison.master.jobs.service import JobService
from garrison.master.store import Store, Stored

__all__ = ["Collector"]

TICK_S: Final = 1.0
SEEN_EVERY_S: Final = 30.0  # how exact "last seen" is after a crash
_GOODBYE_S: Final = 0.5  # a refusal gets this long to leave before its connection is closed
_CLONES_KEPT: Final = 4
_OLDEST_PROTOCOL: Final = max(1, PROTOCOL - 1)

_log = logging.getLogger(__name__)


class Collector:
    """Serves nodes on a bound socket.

    Args:
        socket: ROUTER socket with CURVE, bound; owned from now on.
        store: Where everything goes.
        keys: Whose key is whose.
        desk: What nodes are due.
        ping_after_s: Silence after which a node is asked whether it is there.
        secret_key: The master's CURVE secret key, Z85: what it shares with nodes behind relays follows from it.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        store: Store,
        keys: KeyRing,
        desk: Desk,
        *,
        ping_after_s: float,
        secret_key: bytes,
    ) -> None:
        self._store, self._keys, self._desk = store, keys, desk
        self._dues = Dues(store, keys, desk)
        line = RelayLine(keys, secret_key)
        self.relays: Final = RelayService(store, line, self, frame_for=desk.frame_for, confirm=self._dues.confirm)
        self._ping_after_s = ping_after_s
        self._loop = asyncio.get_running_loop()
        self._work = Work()
        self._sessions = Sessions()
        self._usher = Usher(store, self._dues, send=self.send_to, end=self._end, spawn=self.spawn, welcomed=self._on_welcomed)
        self._stored: deque[tuple[Session, Batch, Future[Stored]]] = deque()
        self._stored_told = False
        self._probing: set[bytes] = set()
        self._confirming: set[bytes] = set()  # connections whose request is looked up
        self._clones: dict[NodeName, deque[Clone]] = {}
        self.bad_frames: Final[Counter[NodeName]] = Counter()
        self.quarantined: Final[Counter[NodeName]] = Counter()
        self.events_bell: Final = Bell()
        self.jobs: JobService = JobService(store, self)
        self._port = Port(socket, self._on_message)
        store.on_assignments(self._on_assignments)

    # ---- life ----------------------------------------------------------------------------------------------------------
    async def run(self, stop: asyncio.Event) -> None:
        """Look after sessions until ``stop`` is set, then close: acks of what is durable still leave."""
        seen_at = time.monotonic()
        while not stop.is_set():
            self._tick()
            if time.monotonic() - seen_at >= SEEN_EVERY_S:
                seen_at = time.monotonic()
                self._note_seen(self._sessions.all())
            try:
                async with asyncio.timeout(TICK_S):
                    await stop.wait()
            except TimeoutError:
                continue
        self._port.pause()
        self._note_seen(self._sessions.all())
        await asyncio.to_thread(self._store.flush)
        await asyncio.sleep(0)  # what became durable is acked by callbacks that wait for their turn
        self._port.close(linger_ms=500)
        await self._work.end()

    # ---- what others ask -------------------------------------------------------------------------------------------------
    def is_connected(self, node: str) -> bool:
        """Return whether the node has a session, or one with a relay that has one here."""
        session = self._sessions.of_node(node)
        return (session is not None and session.welcomed) or self.relays.reaches(node)

    def is_enrolled(self, node: str) -> bool:
        """Return whether the node's key is accepted."""
        return self._keys.has_node(node)

    def why_away(self, node: str) -> str:
        """Return why a node that is enrolled cannot be reached."""
        away = [f"relay {relay}" for relay in self._keys.relays_of(node) if self._sessions.of_node(relay) is None]
        return f"not connected, and neither is its {', '.join(away)}" if away else "not connected"

    def session(self, node: str) -> Session | None:
        """Return a node's session, if it is connected."""
        return self._sessions.of_node(node)

    def clones(self, node: str) -> list[Clone]:
        """Return the last other agents that showed up under this node's key while it was alive."""
        return list(self._clones.get(NodeName(node), ()))

    def send(self, node: NodeName, message: Job | JobCancel) -> bool:
        """Send to a node; return whether the link took it."""
        session = self._sessions.of_node(node)
        return self.send_to(session, message) if session is not None else self.relays.send(node, message)

    def cut_off(self, node: str) -> None:
        """Close a node's connection; to be called after its key was retired."""
        session = self._sessions.of_node(node)
        if session is not None:
            self._refuse(session.routing_id, session.fd, session.address, "retired", "this node was retired")
            self._end(session, "retired")

    # ---- messages in -----------------------------------------------------------------------------------------------------
    def _on_message(self, frames: list[zmq.Frame]) -> None:
        peer = peer_of(frames)
        node = self._keys.node_of(peer.key)
        if node is None:  # retired after its handshake
            self._refuse(peer.routing_id, peer.fd, peer.address, "retired", "this node's key is not accepted any more")
            return
        try:
            self._dispatch(node, peer, _message(frames))
        except FrameError as err:
            self._break_off(node, peer, str(err))

    def _dispatch(self, node: NodeName, peer: Peer, message: Up) -> None:
        if isinstance(message, Hello | ConfirmRequest):
            self._on_first(node, peer, message)
            return
        session = self._sessions.of_connection(peer.routing_id)
        if session is None or session.node != node:
            return  # before its hello, or of a connection whose place was taken: not acked, so it is sent again
        session.heard = time.monotonic()
        match message:
            case Batch():
                self._on_batch(session, message)
            case ChunkRequest():
                self._work.request(session, self._chunk(session, message))
            case ApplyReport():
                self._on_report(session, message)
            case JobOutput() | JobResult():
                self.on_node_words(node, message)
            case Ping():
                self.send_to(session, Pong(n=message.n))
            case Pong():
                pass  # being heard is all that matters
            case _:
                self._on_relay_message(session, message)

    def _on_relay_message(self, session: Session, message: Up) -> None:
        if not session.hello.relay:
            raise FrameError(f"{type(message).__name__} from a node that is no relay")
        if not session.welcomed:
            return
        match message:
            case Forward():
                self._on_forward(session, message)
            case Presence():
                self.relays.on_presence(session, message)
            case Passed():
                self.relays.on_passed(session, message)
            case _:
                raise FrameError(f"{type(message).__name__} on a connection with the master")

    def _on_forward(self, session: Session, forward: Forward) -> None:
        if not 0 <= forward.lane < len(Lane) or not forward.epoch:
            raise FrameError(f"forward of lane {forward.lane}, epoch {forward.epoch!r}")
        self._count_unacked(session)
        self.spawn(self.relays.forward(session, forward))
        if self._store.waiting_bytes > limits.STORE_WAITING_MAX_BYTES:
            self._port.pause()

    def _count_unacked(self, session: Session) -> None:
        if session.unacked >= limits.UNACKED_MAX_BATCHES:
            raise FrameError(f"more than {limits.UNACKED_MAX_BATCHES} batches without an ack")
        session.unacked += 1

    def _on_first(self, node: NodeName, peer: Peer, message: Hello | ConfirmRequest) -> None:
        if isinstance(message, Hello):
            self._on_hello(node, peer, message)
        else:
            self._on_confirm_request(node, peer, message)

    # ---- hello -------------------------------------------------------------------------------------------------------------
    def _on_hello(self, node: NodeName, peer: Peer, hello: Hello) -> None:
        if hello.proto < _OLDEST_PROTOCOL:
            reason = f"this master speaks versions {_OLDEST_PROTOCOL} to {PROTOCOL}, the node {hello.proto}"
            self._refuse(peer.routing_id, peer.fd, peer.address, "version", reason)
        elif hello.node != node:
            _log.warning("node=%s refused=name says=%s address=%s", node, hello.node, peer.address)
            reason = f"this key was accepted for {node}, the node calls itself {hello.node[:63]}"
            self._refuse(peer.routing_id, peer.fd, peer.address, "name", reason)
        elif hello.relay != self._keys.is_relay(node):
            is_, says = ("a relay's", "a node") if self._keys.is_relay(node) else ("a node's", "a relay")
            reason = f"this key was accepted as {is_}, {says} uses it"
            self._refuse(peer.routing_id, peer.fd, peer.address, "role", reason)
        elif self._sessions.judge(node, peer.routing_id, hello.instance) is not Admission.PROBE:
            self._admit(node, peer, hello)
        elif peer.routing_id not in self._probing:
            self._probing.add(peer.routing_id)
            self.spawn(self._probe(node, peer, hello))

    async def _probe(self, node: NodeName, peer: Peer, hello: Hello) -> None:
        """Find out whether the first holder of the key lives, then let the second in or refuse it."""
        try:
            first = await living(self._sessions, node, self.send_to)
        finally:
            self._probing.discard(peer.routing_id)
        if first is None:
            if self._keys.node_of(peer.key) == node:
                self._admit(node, peer, hello)
            return
        _log.warning("node=%s refused=clone address=%s first=%s", node, peer.address, first.address)
        seen = self._clones.setdefault(node, deque(maxlen=_CLONES_KEPT))
        seen.append(Clone(instance=hello.instance, address=peer.address, at=time.time_ns()))
        reason = f"another agent with this node's key is connected from {first.address}"
        self._refuse(peer.routing_id, peer.fd, peer.address, "clone", reason)

    def _admit(self, node: NodeName, peer: Peer, hello: Hello) -> None:
        session = Session(
            node=node,
            routing_id=peer.routing_id,
            hello=hello,
            address=peer.address,
            fd=peer.fd,
            heard=time.monotonic(),
            generation=hello.generation,
        )
        before = self._sessions.begin(session)
        if before is not None:
            self.relays.end(before)
            self._usher.leave(before)
            if before.routing_id != peer.routing_id:
                shut_down(before.fd, before.address)
        self._store.submit_hello(node, hello, session.address).add_done_callback(_log_failure)
        _log.info("node=%s online address=%s version=%s generation=%d", node, session.address, hello.version, hello.generation)
        self._usher.enter(session)

    def _on_welcomed(self, session: Session, generation: int) -> None:
        if session.hello.relay:
            self.relays.begin(session)
        if generation > session.generation:
            self.spawn(self._assign(session))
        self.jobs.on_online(session.node)

    # ---- events ------------------------------------------------------------------------------------------------------------
    def _on_batch(self, session: Session, batch: Batch) -> None:
        if not 0 <= batch.lane < len(Lane) or not batch.epoch:
            raise FrameError(f"batch of lane {batch.lane}, epoch {batch.epoch!r}")
        if not session.welcomed:
            return
        self._count_unacked(session)
        future = self._store.submit_batch(session.node, batch, session.inflow)
        future.add_done_callback(functools.partial(self._note_stored, session, batch))
        if self._store.waiting_bytes > limits.STORE_WAITING_MAX_BYTES:
            self._port.pause()

    def _note_stored(self, session: Session, batch: Batch, done: Future[Stored]) -> None:
        # In a writer's thread. One wake-up of the loop for all that one commit stored: ten thousand nodes send an event each.
        self._stored.append((session, batch, done))
        if not self._stored_told:
            self._stored_told = True
            self._loop.call_soon_threadsafe(self._on_stored)

    def _on_stored(self) -> None:
        self._stored_told = False  # before looking: what is noted from here on is told again
        while self._stored:
            session, batch, done = self._stored.popleft()
            error = done.exception()
            if error is None:
                self._ack(session, batch, done.result())
            else:
                self._on_unstored(session, batch, error)
        self._store_has_room()
        self.events_bell.ring()

    def _store_has_room(self) -> None:
        if self._store.waiting_bytes <= limits.STORE_WAITING_MAX_BYTES // 2:
            self._port.resume()
            self._usher.calm()

    def _on_unstored(self, session: Session, batch: Batch, error: BaseException) -> None:
        if not isinstance(error, GarrisonError):
            _log.error("node=%s epoch=%s batch=unstored", session.node, batch.epoch, exc_info=error)
        self.break_session(session, "batch-not-stored")

    def _ack(self, session: Session, batch: Batch, stored: Stored) -> None:
        self._note_quality(session, stored)
        if self.is_on(session):
            self.send_to(session, Ack(epoch=batch.epoch, lane=batch.lane, seq=stored.acked))

    def _note_quality(self, session: Session, stored: Stored) -> None:
        session.unacked -= 1
        if stored.quarantined:
            self.quarantined[session.node] += stored.quarantined
            _log.error("node=%s quarantined=%d", session.node, stored.quarantined)

    def on_stored(self, session: Session, stored: Stored) -> None:
        """Note that what a relay sent is durable."""
        self._note_quality(session, stored)
        self._store_has_room()
        self.events_bell.ring()

    # ---- bundles -----------------------------------------------------------------------------------------------------------
    def _on_assignments(self, nodes: tuple[NodeName, ...]) -> None:
        self._loop.call_soon_threadsafe(self._offer, nodes)

    def _offer(self, nodes: tuple[NodeName, ...]) -> None:
        for node in nodes:
            session = self._sessions.of_node(node)
            if session is not None and session.welcomed:
                self.spawn(self._assign(session))
        self.spawn(self.relays.offer(nodes))

    async def _assign(self, session: Session) -> None:
        try:
            frame = await asyncio.to_thread(self._desk.frame_for, session.node)
        except GarrisonError as err:
            _log.error("node=%s assignment=unsent error=%s", session.node, err)
            return
        if frame is not None and self.is_on(session):
            self.send_to(session, frame)

    async def _chunk(self, session: Session, request: ChunkRequest) -> None:
        self.send_to(session, await asyncio.to_thread(self._dues.chunk, session.node, request))

    def _on_confirm_request(self, node: NodeName, peer: Peer, request: ConfirmRequest) -> None:
        # No session: the node's other connection goes on, and only a new one proves that new connections work.
        if len(self._confirming) >= limits.PENDING_KEYS_MAX or peer.routing_id in self._confirming:
            raise FrameError("more requests to confirm than can be answered")
        self._confirming.add(peer.routing_id)
        self.spawn(self._confirm(node, peer, request))

    async def _confirm(self, node: NodeName, peer: Peer, request: ConfirmRequest) -> None:
        try:
            answer = await asyncio.to_thread(self._dues.confirm, node, request)
        except GarrisonError as err:
            _log.error("node=%s confirm=unanswered error=%s", node, err)
            return
        finally:
            self._confirming.discard(peer.routing_id)
        if isinstance(answer, Refused):
            self._refuse(peer.routing_id, peer.fd, peer.address, answer.code, answer.reason)
        else:
            self._port.send(peer.routing_id, encode_frame(answer))

    def on_node_words(self, node: NodeName, message: ApplyReport | JobOutput | JobResult) -> None:
        """Take what a node said besides events, whatever way it came."""
        match message:
            case ApplyReport():
                self._note_report(node, message)
            case JobOutput():
                self.jobs.on_output(node, message)
            case JobResult():
                self.jobs.on_result(node, message)

    def on_node_online(self, node: NodeName) -> None:
        """Send a node what it has not answered."""
        self.jobs.on_online(node)

    def _on_report(self, session: Session, report: ApplyReport) -> None:
        if report.state == "applied":
            session.generation = report.generation
        self._note_report(session.node, report)

    def _note_report(self, node: NodeName, report: ApplyReport) -> None:
        level = logging.INFO if report.state in {"applied", "pending"} else logging.WARNING
        _log.log(level, "node=%s generation=%d apply=%s error=%s", node, report.generation, report.state, report.error)
        self._store.submit_report(node, report).add_done_callback(_log_failure)

    # ---- sessions ------------------------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        now = time.monotonic()
        for session in self._sessions.all():
            silent_s = now - session.heard
            if silent_s > 3 * limits.PEER_DEAD_S:
                shut_down(session.fd, session.address)
                self._end(session, "silent")
            elif silent_s > self._ping_after_s and now - session.pinged > self._ping_after_s:
                session.pinged = now
                self.send_to(session, Ping())
        self._usher.tick(now)
        self.jobs.tick()

    def send_to(self, session: Session, message: Down) -> bool:
        """Send on a session; return whether the link took it. One that does not is over."""
        if self._port.send(session.routing_id, encode_frame(message)):
            return True
        # Gone, or it takes nothing: either way what it misses it gets after its next hello.
        shut_down(session.fd, session.address)
        self._end(session, "connection-lost")
        return False

    def is_on(self, session: Session) -> bool:
        """Return whether the session is still that of its connection."""
        return self._sessions.of_connection(session.routing_id) is session

    def break_session(self, session: Session, why: str) -> None:
        """Close a session's connection: what it could not leave it sends again on the next one."""
        session.unacked -= 1
        self._store_has_room()
        shut_down(session.fd, session.address)
        self._end(session, why)

    def _end(self, session: Session, why: str) -> None:
        self._usher.leave(session)
        if self._sessions.end(session):
            _log.info("node=%s offline reason=%s", session.node, why)
            self._note_seen([session])
            self.relays.end(session)

    def _refuse(self, routing_id: bytes, fd: int, address: str, code: str, reason: str) -> None:
        self._port.send(routing_id, encode_frame(Refused(code=code, reason=reason)))
        self._loop.call_later(_GOODBYE_S, shut_down, fd, address)

    def _break_off(self, node: NodeName, peer: Peer, why: str) -> None:
        self.bad_frames[node] += 1
        _log.warning("node=%s refused=protocol address=%s reason=%s", node, peer.address, why)
        self._refuse(peer.routing_id, peer.fd, peer.address, "protocol", why[:200])
        session = self._sessions.of_connection(peer.routing_id)
        if session is not None:
            self._end(session, "protocol")

    def _note_seen(self, sessions: list[Session]) -> None:
        now, wall = time.monotonic(), time.time_ns()
        seen = [
            (str(node), wall - int((now - session.heard) * 1e9))
            for session in sessions
            for node in (session.node, *self.relays.line.online_at(session.node))
        ]
        if seen:
            self._store.submit_seen(seen).add_done_callback(_log_failure)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` beside everything else."""
        return self._work.spawn(work)


def _message(frames: list[zmq.Frame]) -> Up:
    if len(frames) != 2:  # noqa: PLR2004 - routing id and one frame
        raise FrameError(f"message of {len(frames)} frames")
    return decode_up(frames[1].bytes)


def _log_failure(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None:
        _log.error("store=unwritten error=%s", error)
