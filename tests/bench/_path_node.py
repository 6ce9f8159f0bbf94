"""The node's end of bench path, as a process of its own: kernel-shaped events into a real spool, a real link to a real master.

``python _path_node.py ENDPOINT SERVER_KEY SECRET DIRECTORY EVENTS IDLE_S``; prints figures of the events as one JSON object,
waits for a line, prints figures of the idle link as another.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import zmq

from garrison.common import limits
from garrison.common.events import Actor, Event, Kind, Lane
from garrison.common.frames import ApplyReport, Hello, JobResult
from garrison.minion.link.client import Link
from garrison.minion.link.settings import LinkSettings
from garrison.minion.spool import Spool, SpoolCaps

BOOT = "0123456789abcdef" * 2
HEADERS_BYTES = 52  # of an IPv4 TCP segment with timestamps
_PROGRAMS = ("/usr/bin/cat", "/usr/bin/python3.11", "/usr/sbin/sshd", "/usr/bin/curl", "/usr/bin/find", "/bin/sh", "/usr/bin/git")


def kernel_event(chance: random.Random, number: int, started_ns: int) -> Event:
    """What the kernel enforcer tells of an open that a rule audits: processes, paths and arguments differ from event to event."""
    exe = chance.choice(_PROGRAMS)
    path = f"/srv/data/{chance.randrange(200):03}/{chance.getrandbits(32):08x}.json"
    actor = Actor(
        pid=chance.randrange(1, 1 << 22),
        ppid=chance.randrange(1, 1 << 15),
        exe=exe,
        args=(exe, "--file", path),
        cwd="/root",
        uid=0,
        auid=1000,
        ses=3,
        tty="pts/0",
        unit="system.slice/cron.service",
    )
    return Event(
        ts=started_ns + number * 20_000,
        mono=number * 20_000,
        boot=BOOT,
        lane=Lane.SHELL,
        kind=Kind.EXEC,
        severity=5,
        actor=actor,
        object=path,
        operation="open",
        verdict="audit",
        result="passed",
        policy="data-files",
        rule=f"data-files/{chance.randrange(16):012x}",
        backend="bpf_lsm",
    )


class Peer:
    """What the link talks to."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.connected = asyncio.Event()

    def hello(self) -> Hello:
        return Hello(node="path-1", instance="ab", epoch=self.spool.epoch, next_seq=self.spool.next_seq, waits=True)

    async def on_assignment(self, assignment, fetch) -> ApplyReport:
        raise NotImplementedError

    async def on_job(self, job, output) -> JobResult:
        raise NotImplementedError

    def on_job_cancel(self, job_id: str) -> None:
        raise NotImplementedError

    def on_link_state(self, state) -> None:
        if state.connected:
            self.connected.set()


def traffic(endpoint: str) -> tuple[int, int]:
    """Return bytes of payload, and segments, both ways, of the connection to ``endpoint``."""
    port = endpoint.rpartition(":")[2]
    shown = subprocess.run(["ss", "-tinH", "dport", "=", f":{port}"], check=True, capture_output=True, text=True).stdout
    held = dict(word.split(":", 1) for word in shown.split() if word.count(":") == 1)
    return int(held["bytes_sent"]) + int(held["bytes_received"]), int(held["segs_out"]) + int(held["segs_in"])


def produce(spool: Spool, events: int) -> None:
    """Put the events as fast as the queue takes them: what is measured is what becomes durable, not what is dropped."""
    chance, started_ns = random.Random(1), time.time_ns()  # noqa: S311 - repeatable, hides nothing
    for number in range(events):
        spool.put(kernel_event(chance, number, started_ns))
        while number % 1_000 == 0 and spool.stats().queued > limits.SPOOL_QUEUE_MAX_EVENTS // 4:
            spool.flush(0.05)


async def drained(spool: Spool) -> None:
    """Wait until everything is acknowledged."""
    loop, committed = asyncio.get_running_loop(), asyncio.Event()
    leave = spool.subscribe(lambda: loop.call_soon_threadsafe(committed.set))
    while any(spool.pending().values()):
        committed.clear()
        if any(spool.pending().values()):
            await committed.wait()
    leave()


def cpu_s() -> float:
    times = os.times()
    return times.user + times.system


async def run(keys: tuple[str, str, str], directory: str, *, events: int, idle_s: int) -> None:
    endpoint, server_key, secret = keys
    spool = Spool.open(Path(directory), SpoolCaps.of_total(512 << 20), boot=BOOT)
    settings = LinkSettings(
        masters=(endpoint,),
        server_key=server_key.encode(),
        public_key=zmq.curve_public(secret.encode()),
        secret_key=secret.encode(),
    )
    peer = Peer(spool)
    link = Link(settings, peer)
    task = asyncio.create_task(link.run())
    await peer.connected.wait()
    first_bytes, _ = traffic(endpoint)
    began, cpu = time.monotonic(), cpu_s()
    producer = threading.Thread(target=produce, args=(spool, events))
    producer.start()
    await asyncio.to_thread(producer.join)
    await asyncio.to_thread(spool.flush, 60)
    await drained(spool)
    took_s, used_s = time.monotonic() - began, cpu_s() - cpu
    sent_bytes, _ = traffic(endpoint)
    figures = {"took_s": took_s, "cpu_s": used_s, "wire_bytes": sent_bytes - first_bytes, "dropped": spool.stats().dropped}
    tell(figures)
    sys.stdin.readline()
    idle_bytes, idle_segments = traffic(endpoint)
    await asyncio.sleep(idle_s)
    end_bytes, end_segments = traffic(endpoint)
    idle = end_bytes - idle_bytes
    tell({"idle_bytes": idle, "idle_with_headers_bytes": idle + (end_segments - idle_segments) * HEADERS_BYTES})
    await link.stop()
    await task
    await asyncio.to_thread(spool.close)


def tell(figures: dict[str, float | int]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(run((sys.argv[1], sys.argv[2], sys.argv[3]), sys.argv[4], events=int(sys.argv[5]), idle_s=int(sys.argv[6])))
