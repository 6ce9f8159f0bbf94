"""One conversation with a master, from ``Hello`` to the end of its connection.

Rules of this file:
- The order is Hello, Welcome, then anything. Acks of the Welcome are taken before the first batch is chosen.
- The master may send anything: what is not a frame, or not allowed, ends the conversation and nothing else.
- Reading never waits for sending, so a master that does not read cannot keep its own acks from being read.
Owns: the tasks of one connection. Does not own: what outlives it (assignments, fetches; ``client``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

from garrison.common import limits
from garrison.common.errors import FrameError, LinkError
from garrison.common.events import Lane
from garrison.common.frames import (
    Ack,
    Assignment,
    Batch,
    Chunk,
    Down,
    Job,
    JobCancel,
    JobOutput,
    JobResult,
    Ping,
    Pong,
    Refused,
    Up,
    Wait,
    Welcome,
    decode_down,
    encode_frame,
)
from garrison.common.relay_frames import Passed, RelayAssignment, RelayNodes
from garrison.minion.link.causes import Failure, LinkFailure, refused
from garrison.minion.link.connection import Connection
from garrison.minion.link.peer import LinkPeer
from garrison.minion.link.sender import Sender, Want
from garrison.minion.link.settings import LinkSettings
from garrison.minion.link.voice import DIRECT, Voice

__all__ = ["RelayDown", "Session"]

RelayDown = RelayNodes | RelayAssignment | Passed

_CANCEL_AGAIN_S: Final = 1.0
_REREAD_S: Final = 0.5  # the spool has events and cannot read them now: it is being mended

_clock = time.monotonic
_log = logging.getLogger(__name__)


class Session:
    """A conversation.

    Args:
        connection: Shaken hands.
        settings: Patience.
        peer: The agent.
        on_assignment: Takes assignments; must return at once.
        on_chunk: Takes chunks.
        voice: Straight, through a relay, or as a relay.
        on_relayed: Takes what a master says to a relay only; must return at once. ``None`` on a node: such a message is refused.
    """

    def __init__(
        self,
        connection: Connection,
        settings: LinkSettings,
        peer: LinkPeer,
        *,
        on_assignment: Callable[[Assignment], None],
        on_chunk: Callable[[Chunk], None],
        voice: Voice = DIRECT,
        on_relayed: Callable[[RelayDown], None] | None = None,
    ) -> None:
        self._connection, self._settings, self._peer = connection, settings, peer
        self._on_assignment, self._on_chunk = on_assignment, on_chunk
        self._voice, self._on_relayed, self._instance = voice, on_relayed, ""
        self._sender = Sender(1, {})
        self._wake = asyncio.Event()
        self._sent_at = self._heard_at = _clock()
        self._works: set[asyncio.Task[None]] = set()

    # ---- beginning -------------------------------------------------------------------------------------------------------
    async def greet(self) -> Welcome:
        """Say hello; returns the answer.

        Raises:
            LinkFailure: No answer, or a refusal.
            FrameError: Something else than an answer.
        """
        hello = self._peer.hello()
        self._instance = hello.instance
        await self.send(hello)
        answer = await self._answer()
        if isinstance(answer, Refused):
            raise refused(answer.code, answer.reason)
        if not isinstance(answer, Welcome):
            raise FrameError(f"{type(answer).__name__} before Welcome")
        self._voice.check_welcome(answer)
        acked = self._take_acked(answer.acked)
        self._check_number("numbers that came by a relay", answer.seen)
        self._sender = Sender(answer.credits, acked, batch_events=self._settings.batch_events)
        return answer

    async def _answer(self) -> Down:
        # A master that is busy says for how long; in all no longer than it may keep this node from trying another.
        latest = _clock() + limits.WELCOME_WAIT_MAX_S
        patience_s = self._settings.handshake_s
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    answer = await self._receive()
            except TimeoutError:
                raise LinkFailure(Failure.LOST, f"lost: {self._connection.endpoint} does not answer") from None
            if not isinstance(answer, Wait):
                return answer
            patience_s = min(answer.wait_s + self._settings.handshake_s, latest - _clock())

    def _take_acked(self, acked: Mapping[str, int]) -> dict[Lane, int]:
        spool = self._peer.spool
        known = {Lane(int(text)): seq for text, seq in acked.items() if text in {str(int(lane)) for lane in Lane}}
        for lane, seq in known.items():
            self._check_number(lane.name, seq)
            spool.ack(spool.epoch, lane, seq)
        return known

    def _check_number(self, what: str, seq: int) -> None:
        spool = self._peer.spool
        if seq >= spool.next_seq:
            # Events to come would carry numbers that the master has, and it would take them for repeats.
            spool.renew(f"the master has {what} up to {seq}, this spool would give {spool.next_seq} next")
            raise LinkFailure(Failure.LOST, "the spool was restored from a copy: it begins a new epoch")

    # ---- life ------------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Talk until the connection ends.

        Raises:
            LinkFailure: The connection is over, and why.
            FrameError: The master sent what is not a frame.
        """
        loop = asyncio.get_running_loop()

        def committed() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        unsubscribe = self._peer.spool.subscribe(committed)
        parts: list[Coroutine[Any, Any, None]] = [self._read(), self._feed(), self._stay_alive(), self._connection.watch()]
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            unsubscribe()
            await _end([*tasks, *self._works])

    async def send(self, message: Up) -> None:
        """Send ``message``, waiting while the wire is full.

        Raises:
            LinkFailure: The connection is over.
            FrameError: It cannot be a frame.
        """
        await self._connection.send(encode_frame(self._voice.said(message)))
        self._sent_at = _clock()

    def try_send(self, message: Up) -> bool:
        """Send ``message`` if there is room now."""
        sent = self._connection.try_send(encode_frame(self._voice.said(message)))
        if sent:
            self._sent_at = _clock()
        return sent

    async def _receive(self) -> Down:
        while True:
            frame = await self._connection.receive()
            self._heard_at = _clock()
            message = self._voice.heard(decode_down(frame), self._instance)
            if message is not None:
                return message

    async def _stay_alive(self) -> None:
        s, n = self._settings, 0
        while True:
            await asyncio.sleep(min(s.ping_s, s.dead_s / 4) / 2)
            now = _clock()
            if now - self._heard_at > s.dead_s:
                raise LinkFailure(Failure.LOST, f"lost: nothing heard from {self._connection.endpoint} for {s.dead_s:g} s")
            if self._sender.oldest_age_s(now) > s.ack_s:
                raise LinkFailure(Failure.LOST, f"lost: {self._connection.endpoint} acknowledged nothing for {s.ack_s:g} s")
            if now - min(self._sent_at, self._heard_at) >= s.ping_s:
                n += 1
                self.try_send(Ping(n=n))

    # ---- down ------------------------------------------------------------------------------------------------------------
    async def _read(self) -> None:
        while True:
            self._handle(await self._receive())

    def _handle(self, message: Down) -> None:
        match message:
            case Ack():
                self._on_ack(message)
            case Assignment():
                self._on_assignment(message)
            case Chunk():
                self._on_chunk(message)
            case Job():
                self._work(self._run_job(message))
            case JobCancel():
                self._peer.on_job_cancel(message.job)
            case Ping():
                self.try_send(Pong(n=message.n))
            case Pong():
                pass  # that it came is all it says
            case Refused():
                raise refused(message.code, message.reason)
            case RelayNodes() | RelayAssignment() | Passed() if self._on_relayed is not None:
                self._on_relayed(message)
            case _:
                raise FrameError(f"an unasked {type(message).__name__}")

    def _on_ack(self, ack: Ack) -> None:
        if ack.epoch != self._peer.spool.epoch or ack.lane not in set(Lane):
            return  # of an epoch that is over, or a lane that a later version has
        lane = Lane(ack.lane)
        self._check_number(lane.name, ack.seq)
        self._peer.spool.ack(ack.epoch, lane, ack.seq)
        self._sender.acked(lane, ack.seq, _clock())
        self._wake.set()

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._works) >= limits.LINK_WORKS_MAX:
            work.close()
            raise FrameError(f"more than {limits.LINK_WORKS_MAX} commands at once")
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if not task.cancelled() and (err := task.exception()) is not None:
            _log.error("job=unanswered error=%r", err, exc_info=err)  # a bug in the agent; the link goes on

    async def _run_job(self, job: Job) -> None:
        result = await self._peer.on_job(job, self._output)
        await self._send_or_leave(result)

    async def _output(self, piece: JobOutput) -> None:
        try:
            await self.send(piece)
        except LinkFailure as err:
            raise LinkError(f"output of job {piece.job}: {err}") from err

    async def _send_or_leave(self, result: JobResult) -> None:
        try:
            await self.send(result)
        except LinkFailure:
            return  # the master asks again on the next connection; the journal answers

    # ---- up --------------------------------------------------------------------------------------------------------------
    async def _feed(self) -> None:
        while True:
            self._wake.clear()  # before looking: what is committed from here on wakes the next wait
            answer = self._sender.next(self._peer.spool.tails(), _clock())
            if isinstance(answer, Want):
                if not await self._send_batch(answer):
                    await self._wait_awake(_REREAD_S)
            elif answer is None:
                await self._wake.wait()
            else:
                await self._wait_awake(max(0.0, answer - _clock()))

    async def _send_batch(self, want: Want) -> bool:
        batch = await asyncio.to_thread(self._peer.spool.next_batch, *want)
        if batch is None:
            return False
        size = sum(map(len, batch.events))
        frame, sent = await asyncio.to_thread(self._fitting_frame, batch)
        self._sender.sent(want, sent.seqs[-1], size, _clock())
        await self._connection.send(frame)
        self._sent_at = _clock()
        return True

    def _fitting_frame(self, batch: Batch) -> tuple[bytes, Batch]:
        # BATCH_MAX_BYTES is half of FRAME_MAX_BYTES, so this only ever halves if those limits are changed apart.
        while True:
            try:
                return encode_frame(self._voice.said(batch)), batch
            except FrameError:
                half = len(batch.seqs) // 2
                if half == 0:
                    raise
                batch = Batch(epoch=batch.epoch, lane=batch.lane, seqs=batch.seqs[:half], events=batch.events[:half])

    async def _wait_awake(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel ``tasks`` until they have ended: one that lost its cancellation would hold the next connection back for ever."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # seen: what ended the conversation is raised by ``run``
