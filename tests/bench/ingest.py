"""Batches through the collector into the durable store, against the same rows into bare SQLite.

A peer in a process of its own sends as fast as its credits let it, over TCP with CURVE; the collector and the store run as in the
master. The bare figure is one connection, the same pragmas and columns, no indexes but the unique one, the same group size.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import sqlite3
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import zmq

from fakes.peer import Peer, batch_of
from garrison.common.events import Lane
from garrison.common.frames import Ack, Batch
from garrison.common.names import NodeName
from garrison.master.collector.collector import Collector
from garrison.master.collector.keys import KeyRing
from garrison.master.collector.sockets import bind_router
from garrison.master.collector.zap import ZapHandler
from garrison.master.store import Store

EVENTS_PER_BATCH = 1_000
BATCHES = 100
LIMIT_S = 180


class _NoDesk:
    def frame_for(self, node: NodeName) -> None:
        return None

    def may_read(self, node: NodeName, digest: str) -> bool:
        return False


def _batches() -> list[Batch]:
    """Batches of the kind of event that comes most, numbered like one spool's."""
    from garrison.common.events import Actor

    actor = Actor(pid=4242, ppid=4241, exe="/usr/bin/printf", args=("/usr/bin/printf", "some", "arguments"), cwd="/root", uid=0)
    first = batch_of(list(range(1, EVENTS_PER_BATCH + 1)), lane=Lane.SHELL, actor=actor, boot="b" * 32, operation="exec")
    return [
        Batch(
            epoch="e1",
            lane=int(Lane.SHELL),
            seqs=list(range(n * EVENTS_PER_BATCH + 1, (n + 1) * EVENTS_PER_BATCH + 1)),
            events=first.events,
        )
        for n in range(BATCHES)
    ]


def _send(pipe: Connection) -> None:
    endpoint, server_key, keypair = pipe.recv()
    peer = Peer(endpoint, server_key, keypair=keypair)
    credits_ = peer.hello(epoch="e1").credits
    batches, in_flight, left = iter(_batches()), 0, BATCHES
    started = time.perf_counter()
    while left:
        while in_flight < credits_ and (batch := next(batches, None)) is not None:
            peer.send(batch)
            in_flight += 1
        peer.wait_for(Ack, 60)
        in_flight, left = in_flight - 1, left - 1
    pipe.send(time.perf_counter() - started)
    peer.close()


async def _serve(path: Path, pipe: Connection) -> float:
    store = Store(path)
    public, secret = zmq.curve_keypair()
    keypair = zmq.curve_keypair()
    keys = KeyRing(store)
    keys.accept(NodeName("n1"), keypair[0].decode())
    context: zmq.Context = zmq.Context()
    zap = ZapHandler(context, keys.knock)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    router = bind_router(context, endpoint, public_key=public, secret_key=secret)
    collector = Collector(router, store, keys, _NoDesk(), ping_after_s=10, secret_key=secret)
    stop = asyncio.Event()
    running = asyncio.create_task(collector.run(stop))
    pipe.send((endpoint, public, keypair))
    assert await asyncio.to_thread(pipe.poll, LIMIT_S), "the sender is done in time"
    seconds = pipe.recv()
    stop.set()
    await running
    zap.close()
    context.destroy(linger=0)
    assert store.last_event_number() == BATCHES * EVENTS_PER_BATCH
    store.close()
    return seconds


def _bare(path: Path) -> float:
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("CREATE TABLE events (node TEXT, epoch TEXT, seq INTEGER, record BLOB)")
    conn.execute("CREATE UNIQUE INDEX ux ON events (node, epoch, seq)")
    batches = _batches()
    started = time.perf_counter()
    for batch in batches:
        conn.execute("BEGIN")
        rows = [("n1", batch.epoch, seq, raw) for seq, raw in zip(batch.seqs, batch.events, strict=True)]
        conn.executemany("INSERT OR IGNORE INTO events VALUES (?,?,?,?)", rows)
        conn.execute("COMMIT")
    seconds = time.perf_counter() - started
    conn.close()
    return seconds


def run() -> dict[str, float | int | str]:
    """Return both rates and their ratio."""
    with tempfile.TemporaryDirectory() as work:
        # The sender is forked first: before there are threads and sockets of libzmq.
        ours, theirs = multiprocessing.Pipe()
        sender = multiprocessing.get_context("fork").Process(target=_send, args=(theirs,), daemon=True)
        sender.start()
        bare_s = _bare(Path(work) / "bare.db")
        collector_s = asyncio.run(_serve(Path(work) / "store.db", ours))
        sender.join()
    events = BATCHES * EVENTS_PER_BATCH
    return {
        "events": events,
        "event_bytes": len(_batches()[0].events[0]),
        "collector_events_per_s": events / collector_s,
        "collector_batches_per_s": BATCHES / collector_s,
        "bare_sqlite_events_per_s": events / bare_s,
        "collector_to_bare_ratio": bare_s / collector_s,
    }
