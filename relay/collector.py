"""The relay's end towards its nodes: takes what they sign, keeps it, acks it, and hands down what the master has for them.

Rules of this file:
- As the master's: identity is the key, the key's state is looked at for every message, an ack follows the durable commit, a peer
  that breaks the protocol loses its connection and nothing else.
- Only what its node signed is kept, byte for byte; what is not signed is refused before it is acked, so the node keeps it.
- What needs the master (confirmations, commands, content that is not here) is refused or left unanswered while it is away, with
  the cause; events and held assignments do not need it.
Owns: sessions of nodes. Does not own: what is kept (``cargo``), whom it may serve (``site``), the way up (``uplink``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import Final, Protocol

import zmq

from garrison.common import limits
from garrison.common.errors import FrameError, GarrisonError, SignatureError
from garrison.common.frames import (
    PROTOCOL,
    ApplyReport,
    Batch,
    Chunk,
    ChunkRequest,
    Confirmed,
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
    Welcome,
    decode_down,
    decode_up,
    encode_frame,
)
from garrison.common.names import Digest, NodeName
from garrison.common.relay_frames import NodePresence, Sealed, Signed
from garrison.common.trust.pair import verify_signed
from garrison.master.collector.clones import living
from garrison.master.collector.port import Port
from garrison.master.collector.sessions import Admission, Session, Sessions
from garrison.master.collector.sockets import Peer, peer_of, shut_down
from garrison.master.collector.work import Work
from garrison.minion.spool import Spool
from garrison.relay.blobs import Blobs
from garrison.relay.cargo import RelayCargo
from garrison.relay.intake import Intake
from garrison.relay.shares import Shares
from garrison.relay.site import Site

__all__ = ["RelayCollector", "Upward"]

TICK_S: Final = 1.0
_GOODBYE_S: Final = 0.5
_FLUSH_MAX_S: Final = 5.0
_HEX_32_BYTES: Final = 64
_CONTENT_MAX_S: Final = 10.0  # a node asks again after CHUNK_MAX_S: until then its request is answered or forgotten

_log = logging.getLogger(__name__)


class Upward(Protocol):
    """What the collector needs of the way up."""

    @property
    def cause(self) -> str:
        """Why the master cannot be asked; empty when it can."""

    def pass_up(self, node: NodeName, frame: bytes) -> bool:
        """Send a node's signed message to the master; return whether it left."""

    def changed(self, node: NodeName) -> None:
        """A node came, went, or got an assignment."""


class RelayCollector:
    """Serves the site's nodes on a bound socket.

    Args:
        socket: ROUTER socket with CURVE, bound; owned from now on.
        name: The relay's name.
        spool: Where batches go.
        cargo: The spool's.
        site: Whom to serve.
        blobs: Content.
        shares: Who may read it.
        up: The way up.
        ping_after_s: Silence after which a node is asked whether it is there.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        name: str,
        *,
        spool: Spool,
        cargo: RelayCargo,
        site: Site,
        blobs: Blobs,
        shares: Shares,
        up: Upward,
        ping_after_s: float,
    ) -> None:
        self._name, self._spool, self._site, self._blobs = name, spool, site, blobs
        self._shares, self._up, self._ping_after_s = shares, up, ping_after_s
        self._loop = asyncio.get_running_loop()
        self._work = Work()
        self._sessions = Sessions()
        self._probing: set[bytes] = set()
        self._intake = Intake(spool, cargo.marks, self._send)
        self._hellos: dict[NodeName, tuple[bytes, str]] = {}
        self._reports: dict[NodeName, bytes] = {}
        self._confirming: dict[NodeName, list[Peer]] = {}
        self.refused = self.chunks = 0
        self.bad_frames: Final[Counter[NodeName]] = Counter()
        self._unsubscribe = spool.subscribe(self._on_commit)
        self._port = Port(socket, self._on_message)

    # ---- life ----------------------------------------------------------------------------------------------------------
    async def run(self, stop: asyncio.Event) -> None:
        """Look after sessions until ``stop`` is set, then close: acks of what is durable still leave."""
        while not stop.is_set():
            self._tick()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await stop.wait()
        self._port.pause()
        await asyncio.to_thread(self._spool.flush, _FLUSH_MAX_S)
        self._intake.on_durable()
        self._unsubscribe()
        self._port.close(linger_ms=500)
        await self._work.end()

    def _on_commit(self) -> None:
        self._loop.call_soon_threadsafe(self._intake.on_durable)

    @property
    def taken(self) -> int:
        """Events taken from nodes since the start."""
        return self._intake.taken

    # ---- what the way up asks and tells ----------------------------------------------------------------------------------
    def presence(self, node: NodeName) -> NodePresence:
        """Return what is known of a node."""
        session, held = self._sessions.of_node(node), self._site.assignment(node)
        hello, address = self._hellos.get(node, (b"", ""))
        online = session is not None and session.welcomed
        return NodePresence(node=node, online=online, address=address, generation=held.generation if held else 0, hello=hello)

    def connected(self) -> list[NodeName]:
        """Return the nodes that are connected."""
        return sorted(session.node for session in self._sessions.all() if session.welcomed)

    def reports(self) -> dict[NodeName, bytes]:
        """Return the last signed report of each node: a report has no ack, so each new uplink is told again."""
        return dict(self._reports)

    def cut_off(self, nodes: list[NodeName]) -> None:
        """Close connections of nodes that may not be served any more."""
        for node in nodes:
            self._hellos.pop(node, None)
            self._reports.pop(node, None)
            session = self._sessions.of_node(node)
            if session is not None:
                self._refuse(session, "retired", "this node's key is not accepted any more")
                self._end(session, "retired")

    def offer(self, node: NodeName) -> None:
        """Send a node its newest assignment, if it is connected."""
        session = self._sessions.of_node(node)
        if session is not None and session.welcomed:
            self._assign(session)

    def hand_down(self, node: NodeName, frame: bytes) -> None:
        """Give a node what the master sealed for it; which connection it belongs to is told by its content.

        Raises:
            FrameError: It is nothing of the kind.
        """
        sealed = decode_down(frame)
        if not isinstance(sealed, Sealed):
            raise FrameError(f"a {type(sealed).__name__} for {node[:63]!r} that is not sealed")
        inner = decode_down(sealed.frame)
        if isinstance(inner, Confirmed | Refused):
            for peer in self._confirming.pop(node, []):
                self._port.send(peer.routing_id, frame)
        elif isinstance(inner, Job | JobCancel):
            session = self._sessions.of_node(node)
            if session is not None:
                self._send_raw(session, frame)

    # ---- messages in -----------------------------------------------------------------------------------------------------
    def _on_message(self, frames: list[zmq.Frame]) -> None:
        peer = peer_of(frames)
        node = self._site.node_of(peer.key)
        if node is None:
            self._refuse(peer, "retired", "this node's key is not accepted at this relay any more")
            return
        try:
            self._dispatch(node, peer, frames)
        except FrameError as err:
            self._break_off(node, peer, str(err))

    def _dispatch(self, node: NodeName, peer: Peer, frames: list[zmq.Frame]) -> None:
        if len(frames) != 2:  # noqa: PLR2004 - routing id and one frame
            raise FrameError(f"message of {len(frames)} frames")
        frame = frames[1].bytes
        message = decode_up(frame)
        if isinstance(message, Hello):
            self._on_hello(node, peer, message, frame)
            return
        session = self._sessions.of_connection(peer.routing_id)
        if session is None or session.node != node:
            if isinstance(message, Signed):
                self._on_first_signed(node, peer, message, frame)
            return
        session.heard = time.monotonic()
        match message:
            case Signed():
                self._on_signed(session, message, frame)
            case ChunkRequest():
                self._work.request(session, self._chunk(session, message))
            case Ping():
                self._send(session, Pong(n=message.n))
            case Pong():
                pass
            case _:
                raise FrameError(f"{type(message).__name__} without a signature: this is a relay")

    # ---- hello -------------------------------------------------------------------------------------------------------------
    def _on_hello(self, node: NodeName, peer: Peer, hello: Hello, frame: bytes) -> None:
        if hello.node != node:
            self._refuse(peer, "name", f"this key was accepted for {node}, the node calls itself {hello.node[:63]}")
        elif len(frame) > limits.RELAYED_HELLO_MAX_BYTES:
            raise FrameError(f"a hello of {len(frame)} bytes")
        elif hello.relay:
            self._refuse(peer, "role", "a relay cannot be behind a relay")
        elif len(hello.signing_key) != _HEX_32_BYTES or len(hello.vouch) != _HEX_32_BYTES:
            self._refuse(peer, "role", "this is a relay: the node needs the relay's join file, see garrison relay join")
        elif self._sessions.judge(node, peer.routing_id, hello.instance) is not Admission.PROBE:
            self._admit(node, peer, hello, frame)
        elif peer.routing_id not in self._probing:
            self._probing.add(peer.routing_id)
            self._work.spawn(self._probe(node, peer, hello, frame))

    async def _probe(self, node: NodeName, peer: Peer, hello: Hello, frame: bytes) -> None:
        try:
            first = await living(self._sessions, node, self._send)
        finally:
            self._probing.discard(peer.routing_id)
        if first is None:
            if self._site.node_of(peer.key) == node:
                self._admit(node, peer, hello, frame)
            return
        _log.warning("node=%s refused=clone address=%s first=%s", node, peer.address, first.address)
        self._refuse(peer, "clone", f"another agent with this node's key is connected from {first.address}")

    def _admit(self, node: NodeName, peer: Peer, hello: Hello, frame: bytes) -> None:
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
        if before is not None and before.routing_id != peer.routing_id:
            shut_down(before.fd, before.address)
        self._hellos[node] = (frame, peer.address)
        _log.info("node=%s online address=%s version=%s", node, peer.address, hello.version)
        self._work.spawn(self._welcome(session))

    async def _welcome(self, session: Session) -> None:
        # What came on the connection before is durable first: the node then begins after it, and nothing is kept twice.
        if not await asyncio.to_thread(self._spool.flush, _FLUSH_MAX_S):
            shut_down(session.fd, session.address)
            self._end(session, "spool-stuck")
            return
        node = session.node
        marks = self._intake.begin(node, session.hello.epoch)
        held = self._site.assignment(node)
        welcome = Welcome(
            proto=min(PROTOCOL, session.hello.proto),
            credits=limits.UNACKED_MAX_BATCHES,
            acked={str(lane): seq for lane, seq in marks.items()},
            generation=held.generation if held else 0,
            time_ns=time.time_ns(),
            confirms=True,
        )
        if self._sessions.of_connection(session.routing_id) is not session or not self._send(session, welcome):
            return
        session.welcomed = True
        self._up.changed(node)
        self._assign(session)

    def _assign(self, session: Session) -> None:
        held = self._site.assignment(session.node)
        if held is not None and held.generation > max(session.generation, session.offered):
            session.offered = held.generation
            self._send_raw(session, held.frame)

    # ---- what nodes sign ---------------------------------------------------------------------------------------------------
    def _on_signed(self, session: Session, signed: Signed, frame: bytes) -> None:
        inner = self._verified(session, signed)
        match inner:
            case Batch():
                if session.welcomed and not self._intake.take(session, inner, signed):
                    shut_down(session.fd, session.address)  # the disk does not keep up: the node comes back and sends again
                    self._end(session, "spool-full")
            case ApplyReport():
                if inner.state == "applied":
                    session.generation = inner.generation
                self._reports[session.node] = frame
                self._up.pass_up(session.node, frame)
            case JobOutput() | JobResult():
                self._up.pass_up(session.node, frame)  # lost with the uplink: the master asks again, the journal answers
            case _:
                raise FrameError(f"a signed {type(inner).__name__}")

    def _verified(self, session: Session, signed: Signed) -> object:
        if len(signed.frame) > limits.SIGNED_FRAME_MAX_BYTES:
            raise FrameError(f"a signed message of {len(signed.frame)} bytes")
        try:
            verify_signed(session.node, bytes.fromhex(session.hello.signing_key), signed.frame, signed.signature)
        except SignatureError as err:
            self.refused += 1
            raise FrameError(str(err)) from err
        return decode_up(signed.frame)

    def _on_first_signed(self, node: NodeName, peer: Peer, signed: Signed, frame: bytes) -> None:
        if not isinstance(decode_up(signed.frame), ConfirmRequest):
            return  # of a connection whose place was taken: not acked, so it is sent again
        waiting = self._confirming.setdefault(node, [])
        if len(waiting) >= limits.SESSION_REQUESTS_MAX:
            del waiting[0]
        if self._up.cause or not self._up.pass_up(node, frame):
            self._refuse(peer, "uplink", f"relay {self._name} cannot ask its master: {self._up.cause or 'the link is full'}")
            return
        waiting.append(peer)

    # ---- content -----------------------------------------------------------------------------------------------------------
    async def _chunk(self, session: Session, request: ChunkRequest) -> None:
        digest = Digest(request.digest)
        try:
            async with asyncio.timeout(_CONTENT_MAX_S):
                data = await self._blobs.get(digest) if await self._shares.may_read(session.node, digest) else None
        except TimeoutError:
            return  # still coming: the node asks again
        except GarrisonError as err:
            _log.warning("node=%s digest=%s content=not-here error=%s", session.node, digest[:12], err)
            if self._up.cause:
                return  # the node asks again, until its own patience ends
            data = None
        if data is None or not 0 <= request.offset <= len(data):
            self._send(session, Chunk(digest=request.digest, offset=0, total=-1))
            return
        self.chunks += 1
        piece = data[request.offset : request.offset + limits.CHUNK_BYTES]
        self._send(session, Chunk(digest=request.digest, offset=request.offset, total=len(data), data=piece))

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
                self._send(session, Ping())

    def _send(self, session: Session, message: Down) -> bool:
        return self._sessions.of_connection(session.routing_id) is session and self._send_raw(session, encode_frame(message))

    def _send_raw(self, session: Session, frame: bytes) -> bool:
        if self._port.send(session.routing_id, frame):
            return True
        shut_down(session.fd, session.address)
        self._end(session, "connection-lost")
        return False

    def _end(self, session: Session, why: str) -> None:
        if self._sessions.end(session):
            _log.info("node=%s offline reason=%s", session.node, why)
            self._up.changed(session.node)

    def _refuse(self, peer: Peer | Session, code: str, reason: str) -> None:
        self._port.send(peer.routing_id, encode_frame(Refused(code=code, reason=reason)))
        self._loop.call_later(_GOODBYE_S, shut_down, peer.fd, peer.address)

    def _break_off(self, node: NodeName, peer: Peer, why: str) -> None:
        self.bad_frames[node] += 1
        _log.warning("node=%s refused=protocol address=%s reason=%s", node, peer.address, why)
        self._refuse(peer, "protocol", why[:200])
        session = self._sessions.of_connection(peer.routing_id)
        if session is not None:
            self._end(session, "protocol")
