"""A node that only makes numbered events: the agent's own identity, spool and link, without the rest of the agent. A program.

``python tests/fakes/source.py DIRECTORY JOIN NAME COUNT PER_S PAD_BYTES`` makes ``COUNT`` more events and goes on sending until
SIGTERM. What it did is in ``DIRECTORY/told.json``, replaced several times a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from garrison.common.events import Event, Kind, Lane
from garrison.common.frames import ApplyReport, Hello, JobResult
from garrison.minion.identity import Identity
from garrison.minion.link.client import Link
from garrison.minion.link.settings import LinkSettings
from garrison.minion.link.voice import DIRECT, RelayedVoice
from garrison.minion.spool import Spool, SpoolCaps

LANES = (Lane.SHELL, Lane.ALERT, Lane.METRIC)


class Source:
    """What the link talks to."""

    def __init__(self, identity: Identity, spool: Spool) -> None:
        self.name, self.spool, self.instance = identity.name, spool, secrets.token_hex(16)
        self.cause = ""

    def hello(self) -> Hello:
        return Hello(node=self.name, instance=self.instance, epoch=self.spool.epoch, next_seq=self.spool.next_seq)

    async def on_assignment(self, assignment, fetch) -> ApplyReport:
        return ApplyReport(generation=0, bundle="", state="refused", error="a source enforces nothing")

    async def on_job(self, job, output) -> JobResult:
        return JobResult(job=job.job, exit_code=0)

    def on_job_cancel(self, job_id) -> None:
        pass

    def on_link_state(self, state) -> None:
        self.cause = state.cause


async def run(directory: Path, join: Path, name: str, *, count: int, per_s: float, pad_bytes: int) -> None:
    identity = Identity.open(directory, wanted_name=name, join=join)
    spool = Spool.open(directory / "spool", SpoolCaps.of_total(64 << 20), boot="boot")
    source, stop, joined = Source(identity, spool), asyncio.Event(), identity.join
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = LinkSettings(
        masters=joined.masters,
        server_key=joined.server_key.encode(),
        public_key=identity.public_key,
        secret_key=identity.secret_key,
        reconnect_min_s=0.05,
        unreachable_max_s=0.3,
        reconnect_max_s=0.5,
        dead_s=5.0,
    )
    voice = RelayedVoice(identity.name, identity.secret_key, joined.master.encode()) if joined.by_relay else DIRECT
    link = Link(settings, source, voice=voice)
    linked = asyncio.create_task(link.run())
    told = directory / "told.json"
    first = json.loads(told.read_text())["put"] if told.exists() else 0
    began, put, said_at = time.monotonic(), 0, 0.0
    while not stop.is_set():
        now = time.monotonic()
        due = min(count, int((now - began) * per_s) + 1)
        for number in range(first + put, first + due):
            data = {"n": number, "pad": os.urandom(pad_bytes // 2).hex()}
            spool.put(Event(ts=time.time_ns(), lane=LANES[number % len(LANES)], kind=Kind.EXEC, data=data))
        put = due
        if now - said_at > 0.1:
            said_at = now
            spool.flush(10)
            tell(told, source, first + put)
        await asyncio.sleep(0.01)
    await link.stop()
    await linked
    spool.flush(10)
    tell(told, source, first + put)
    spool.close()
    identity.close()


def tell(told: Path, source: Source, put: int) -> None:
    what = {"put": put, "pending": sum(source.spool.pending().values()), "cause": source.cause, "epoch": source.spool.epoch}
    part = told.with_suffix(".part")
    part.write_text(json.dumps(what))
    part.replace(told)


if __name__ == "__main__":
    where, joins, called, *figures = sys.argv[1:]
    many, fast, pad = int(figures[0]), float(figures[1]), int(figures[2])
    asyncio.run(run(Path(where), Path(joins), called, count=many, per_s=fast, pad_bytes=pad))
