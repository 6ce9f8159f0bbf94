"""The link: keeps one conversation with one of the masters going, for as long as the agent lives.

Rules of this file:
- Masters are tried in their order; the first that serves is kept. After a lost connection the first is tried first again.
- Attempts that reach nobody come every few seconds: they cost a packet, and decide how soon a cut link heals. After a refusal
  the wait grows to ``reconnect_max_s`` (``waits``).
- Assignments outlive connections: one that is being applied is never cancelled, and the last report is told again to every master
  that is greeted, since a report has no ack.
- Nothing that a master sends can end the link: what it must not send ends the connection, with the cause in the state.
Owns: attempts, waits, the state shown. Does not own: what is said (``session``), what is sent when (``sender``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import zmq.asyncio

from garrison.common import limits
from garrison.common.errors import FrameError, LinkError
from garrison.common.frames import (
    ApplyReport,
    Assignment,
    ChunkRequest,
    Confirmed,
    ConfirmRequest,
    Refused,
    Up,
    decode_down,
    encode_frame,
)
from garrison.common.names import Digest
from garrison.minion.link.causes import Failure, LinkFailure
from garrison.minion.link.connection import Connection
from garrison.minion.link.fetch import Fetcher
from garrison.minion.link.peer import LinkPeer, LinkState, MasterRefusedError
from garrison.minion.link.session import RelayDown, Session
from garrison.minion.link.settings import LinkSettings
from garrison.minion.link.voice import DIRECT, Voice
from garrison.minion.link.waits import Waits

__all__ = ["Link"]

_log = logging.getLogger(__name__)


class Link:
    """The minion's end of the link.

    Args:
        settings: Where, with which keys, how patiently.
        peer: The agent.
        voice: Straight, through a relay, or as a relay.
        on_relayed: Takes what a master says to a relay only; ``None`` on a node.
    """

    def __init__(
        self,
        settings: LinkSettings,
        peer: LinkPeer,
        *,
        voice: Voice = DIRECT,
        on_relayed: Callable[[RelayDown], None] | None = None,
    ) -> None:
        self._settings, self._peer, self._voice, self._on_relayed = settings, peer, voice, on_relayed
        self._stop = asyncio.Event()
        self._session: Session | None = None
        self._fetcher = Fetcher(self._request_chunk, chunk_s=settings.chunk_s, fetch_s=settings.fetch_s)
        self._applying: set[asyncio.Task[None]] = set()
        self._report: ApplyReport | None = None
        self._context: zmq.asyncio.Context | None = None
        self._served_by: str | None = None
        self._master_confirms = False
        self._state: LinkState | None = None
        self._waits = Waits(settings)
        self.bad_frames = 0

    async def run(self) -> None:
        """Keep the link up until ``stop``; only a bug ends it otherwise."""
        context = self._context = zmq.asyncio.Context()
        try:
            await self._serve(context)
        finally:
            self._context = None
            self._fetcher.give_up("the agent is stopping")
            await asyncio.gather(*self._applying, return_exceptions=True)
            context.destroy(linger=0)

    async def stop(self) -> None:
        """Have ``run`` end: the connection is closed; an assignment being applied is finished first."""
        self._stop.set()
        self._fetcher.give_up("the agent is stopping")

    async def tell(self, report: ApplyReport) -> None:
        """Tell the master what is enforced; on the next connection when there is none now."""
        self._report = report
        if self._session is not None:
            with suppress(LinkFailure):  # told again on the next connection
                await _send_report(self._session, report)

    def try_send(self, message: Up) -> bool:
        """Send ``message`` on the connection that there is, if there is room; return whether that was done."""
        return self._session is not None and self._session.try_send(message)

    async def fetch(self, digest: Digest, length: int | None) -> bytes:
        """Return a blob of the master; see ``Fetcher.fetch``."""
        return await self._fetcher.fetch(digest, length)

    async def confirm(self, generation: int, bundle: Digest) -> None:
        """Have the master confirm what is on trial, over a connection that is made for that.

        Raises:
            MasterRefusedError: It does not: this node is assigned something else.
            LinkError: It could not be asked, or did not answer.
        """
        if self._context is None or self._served_by is None:
            raise LinkError("no master was reached yet")
        connection = Connection(self._context, self._settings, self._served_by, self._peer.hello().node)
        try:
            await connection.open()
            if self._master_confirms:  # an older one cannot say it: that a new connection comes about has to do
                await self._ask(connection, ConfirmRequest(generation=generation, bundle=bundle, nonce=secrets.token_hex(16)))
        except (LinkFailure, FrameError) as err:
            raise LinkError(str(err)) from err
        finally:
            connection.close()

    async def _ask(self, connection: Connection, request: ConfirmRequest) -> None:
        await connection.send(encode_frame(self._voice.said(request)))
        try:
            async with asyncio.timeout(self._settings.handshake_s):
                came = decode_down(await connection.receive())
        except TimeoutError:
            raise LinkError(f"{connection.endpoint} does not answer") from None
        answer = self._voice.heard(came, self._peer.hello().instance)
        if isinstance(answer, Refused) and self._voice.refuses_for_itself(came):
            raise LinkError(f"{connection.endpoint}: {answer.reason}")
        if isinstance(answer, Refused):
            raise MasterRefusedError(answer.reason)
        if answer != Confirmed(nonce=request.nonce):
            raise LinkError(f"{connection.endpoint} answers something else")

    def obey(self, assignment: Assignment) -> None:
        """Give an assignment that had to wait to the peer again, as if it came now."""
        self._on_assignment(assignment)

    async def _serve(self, context: zmq.asyncio.Context) -> None:
        number = 0
        while not self._stop.is_set():
            endpoint = self._settings.masters[number % len(self._settings.masters)]
            failure = await self._until_stopped(context, endpoint)
            if failure is None:
                return
            lost = failure.kind is Failure.LOST
            number = 0 if lost else number + 1
            self._tell(connected=False, cause=str(failure))
            if lost or number % len(self._settings.masters) == 0:
                await self._pause(failure.kind)

    async def _until_stopped(self, context: zmq.asyncio.Context, endpoint: str) -> LinkFailure | None:
        # Returns None when told to stop.
        talk = asyncio.create_task(self._talk(context, endpoint))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({talk, stop}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set() and not talk.done():
                return None
            return talk.result()
        finally:
            for task in (talk, stop):
                task.cancel()
            await asyncio.gather(talk, stop, return_exceptions=True)

    async def _talk(self, context: zmq.asyncio.Context, endpoint: str) -> LinkFailure:
        connection = Connection(context, self._settings, endpoint, self._peer.hello().node)
        since = 0.0
        try:
            await connection.open()
            session = Session(
                connection,
                self._settings,
                self._peer,
                on_assignment=self._on_assignment,
                on_chunk=self._fetcher.on_chunk,
                voice=self._voice,
                on_relayed=self._on_relayed,
            )
            self._master_confirms = (await session.greet()).confirms
            self._served_by = endpoint
            since = time.monotonic()
            await self._converse(session)
        except LinkFailure as failure:
            if failure.kind is Failure.LOST and not since:
                return LinkFailure(Failure.REFUSED, str(failure))  # it never served us: try the next, and wait longer
            return failure
        except FrameError as err:
            self.bad_frames += 1
            _log.warning("frame=bad master=%s error=%s", endpoint, err)
            return LinkFailure(Failure.PROTOCOL, f"{endpoint} sent what this agent does not accept: {err}")
        finally:
            self._session = None
            connection.close()
            if since:
                self._waits.served(time.monotonic() - since)
        raise AssertionError("a conversation ended without a cause")

    async def _converse(self, session: Session) -> None:
        self._session = session
        self._tell(connected=True, cause="connected")
        if self._report is not None:
            await _send_report(session, self._report)
        self._fetcher.reconnected()
        await session.run()

    async def _pause(self, kind: Failure) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._waits.after(kind)):
                await self._stop.wait()

    def _tell(self, *, connected: bool, cause: str) -> None:
        state = LinkState(connected, cause)
        if state != self._state:
            self._state = state
            self._peer.on_link_state(state)

    # ---- what outlives a connection ----------------------------------------------------------------------------------------
    def _request_chunk(self, request: ChunkRequest) -> bool:
        return self.try_send(request)

    def _on_assignment(self, assignment: Assignment) -> None:
        # The agent takes them one at a time, in order; one that it has already costs it a look.
        if len(self._applying) >= limits.LINK_WORKS_MAX:
            raise FrameError(f"more than {limits.LINK_WORKS_MAX} assignments at once")
        task = asyncio.create_task(self._apply(assignment))
        self._applying.add(task)
        task.add_done_callback(self._applied)

    def _applied(self, task: asyncio.Task[None]) -> None:
        self._applying.discard(task)
        if not task.cancelled() and (err := task.exception()) is not None:
            _log.error("assignment=unanswered error=%r", err, exc_info=err)  # a bug in the agent; the link goes on

    async def _apply(self, assignment: Assignment) -> None:
        await self.tell(await self._peer.on_assignment(assignment, self._fetcher.fetch))


async def _send_report(session: Session, report: ApplyReport) -> None:
    try:
        await session.send(report)
    except FrameError as err:
        _log.warning("report=shortened rules=%s error=%s", len(report.rules), err)
        error = f"{report.error} (the compile report of {len(report.rules)} rules is too large to send)".strip()
        short = ApplyReport(generation=report.generation, bundle=report.bundle, state=report.state, error=error[:4000])
        await session.send(short)
