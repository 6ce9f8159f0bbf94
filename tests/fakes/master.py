"""A small master that speaks the real protocol over a real socket: ROUTER, CURVE, ZAP. It stores in a dictionary."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import zmq
import zmq.asyncio
from zmq.utils import z85

from garrison.common import limits
from garrison.common.frames import (
    Ack,
    ApplyReport,
    Batch,
    Chunk,
    ChunkRequest,
    Confirmed,
    ConfirmRequest,
    Hello,
    JobOutput,
    JobResult,
    Ping,
    Pong,
    Refused,
    Wait,
    Welcome,
    decode_up,
    encode_frame,
)


class FakeMaster:
    """A master for one test.

    Attributes:
        accepted: Public keys that are let in; ``None`` for all.
        stored: Event by ``(epoch, seq)``, as encoded.
        order: ``(lane, first seq)`` of each batch as it came.
        wait_s: Told in answer to a hello, before anything else.
        acking: Whether batches are acknowledged.
        confirms: Whether it says that it answers requests to confirm, as masters did not always.
        refuses_to_confirm: Why it does not confirm.
        blobs: What chunk requests are answered from.
    """

    def __init__(self, *, credits_: int = 4, port: int = 0, keys: tuple[bytes, bytes] | None = None) -> None:
        self.public_key, self.secret_key = keys or zmq.curve_keypair()
        self.credits, self.port = credits_, port
        self.accepted: set[bytes] | None = None
        self.stored: dict[tuple[str, int], bytes] = {}
        self.order: list[tuple[int, int]] = []
        self.unacked = self.most_unacked = 0
        self.acking = self.welcoming = self.ponging = True
        self.answer: object | None = None
        self.wait_s = 0.0
        self.blobs: dict[str, bytes] = {}
        self.drop_chunks = 0
        self.chunk_requests: list[tuple[str, int]] = []
        self.hellos: list[Hello] = []
        self.reports: list[ApplyReport] = []
        self.results: list[JobResult] = []
        self.outputs: list[JobOutput] = []
        self.pings = 0
        self.confirms, self.refuses_to_confirm = True, ""
        self.confirm_requests: list[ConfirmRequest] = []
        self.peer = b""
        self._held: list[tuple[bytes, Batch]] = []
        self._acked: dict[str, dict[int, int]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    async def start(self) -> FakeMaster:
        self._context = zmq.asyncio.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        self._socket = self._context.socket(zmq.ROUTER)
        options = {zmq.LINGER: 0, zmq.CURVE_SERVER: 1, zmq.CURVE_SECRETKEY: self.secret_key, zmq.IPV6: 1}
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.ZAP_DOMAIN, b"test")
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.bind(f"tcp://*:{self.port}" if self.port else "tcp://*:*")
        self.port = int(self._socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").rpartition(b":")[2])
        self._tasks = [asyncio.create_task(self._authenticate()), asyncio.create_task(self._serve())]
        return self

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._zap.close(linger=0)
        self._socket.close(linger=0)
        self._context.destroy(linger=0)

    async def _authenticate(self) -> None:
        while True:
            version, request, _, _, _, _, key = await self._zap.recv_multipart()
            ok = self.accepted is None or z85.encode(key) in self.accepted
            status = (b"200", b"OK") if ok else (b"400", b"not accepted")
            await self._zap.send_multipart([version, request, *status, b"user", b""])

    async def _serve(self) -> None:
        while True:
            peer, frame = await self._socket.recv_multipart()
            self.peer = peer
            await self._handle(peer, decode_up(frame))

    async def _handle(self, peer: bytes, message: object) -> None:
        match message:
            case Hello():
                self.hellos.append(message)
                self.unacked = 0
                self._held.clear()
                if self.wait_s:
                    await self.send(Wait(wait_s=self.wait_s))
                if self.answer is not None:
                    await self.send(self.answer)
                elif self.welcoming:
                    acked = {str(lane): seq for lane, seq in self._acked.get(message.epoch, {}).items()}
                    await self.send(Welcome(credits=self.credits, acked=acked, confirms=self.confirms))
            case Batch():
                await self._store(peer, message)
            case ChunkRequest():
                await self._chunk(message)
            case Ping():
                self.pings += 1
                if self.ponging:
                    await self.send(Pong(n=message.n))
            case ConfirmRequest():
                self.confirm_requests.append(message)
                refused = Refused(code="confirm", reason=self.refuses_to_confirm)
                await self.send(refused if self.refuses_to_confirm else Confirmed(nonce=message.nonce))
            case ApplyReport():
                self.reports.append(message)
            case JobOutput():
                self.outputs.append(message)
            case JobResult():
                self.results.append(message)

    async def _store(self, peer: bytes, batch: Batch) -> None:
        self.order.append((batch.lane, batch.seqs[0]))
        self.unacked += 1
        self.most_unacked = max(self.most_unacked, self.unacked)
        for seq, raw in zip(batch.seqs, batch.events, strict=True):
            assert self.stored.setdefault((batch.epoch, seq), raw) == raw
        lanes = self._acked.setdefault(batch.epoch, {})
        lanes[batch.lane] = max(lanes.get(batch.lane, 0), batch.seqs[-1])
        self._held.append((peer, batch))
        if self.acking:
            await self.ack_all()

    async def ack_all(self) -> None:
        """Acknowledge everything held back."""
        while self._held:
            peer, batch = self._held.pop(0)
            self.unacked -= 1
            await self._socket.send_multipart([peer, encode_frame(Ack(epoch=batch.epoch, lane=batch.lane, seq=batch.seqs[-1]))])

    async def _chunk(self, request: ChunkRequest) -> None:
        self.chunk_requests.append((request.digest, request.offset))
        if self.drop_chunks > 0:
            self.drop_chunks -= 1
            return
        blob = self.blobs.get(request.digest)
        if blob is None:
            await self.send(Chunk(digest=request.digest, offset=request.offset, total=-1))
            return
        data = blob[request.offset : request.offset + limits.CHUNK_BYTES]
        await self.send(Chunk(digest=request.digest, offset=request.offset, total=len(blob), data=data))

    async def send(self, message: object) -> None:
        """Send to the peer heard last."""
        await self.send_raw(encode_frame(message))

    async def send_raw(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        with suppress(zmq.ZMQError):
            await self._socket.send_multipart([self.peer, *parts])


class Wire:
    """A TCP proxy that can go dark: accepts nothing new, moves nothing, closes nothing; like a cut cable."""

    def __init__(self, port: int) -> None:
        self._to, self.port = port, 0
        self._lit = asyncio.Event()
        self._lit.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.moved = 0

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    async def start(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def cut(self) -> None:
        self._lit.clear()

    def heal(self) -> None:
        self._lit.set()

    def break_all(self) -> None:
        """End every connection with a reset."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        self._server.close()
        self.break_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await self._lit.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
            try:
                await asyncio.gather(self._move(reader, far_writer), self._move(far_reader, writer))
            finally:
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _move(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._lit.wait()
            self.moved += len(data)
            writer.write(data)
            await writer.drain()
        raise OSError("closed")
