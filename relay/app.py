"""Builds a relay from its settings and runs it until it is told to stop.

Rules of this file:
- The only place that knows every part of the relay.
- Ready once nodes can connect: a relay without its master serves its site all the same.
- Ends cleanly on SIGTERM and SIGINT: nodes, uplink, spool. kill -9 leaves nothing that the next start does not put right.
- A bug in a part ends the process with a traceback: the service manager starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

import zmq

from garrison.common import limits
from garrison.common.errors import ConfigError, KernelError
from garrison.common.sdnotify import notify
from garrison.common.trust.join import JoinFile
from garrison.master.collector.sockets import bind_router
from garrison.master.collector.zap import ZapHandler
from garrison.minion.grains import boot_id
from garrison.minion.identity import Identity
from garrison.minion.link.client import Link
from garrison.minion.link.settings import LinkSettings
from garrison.minion.spool import Spool, SpoolCaps
from garrison.minion.status import start_ticks
from garrison.relay.blobs import Blobs
from garrison.relay.cargo import RelayCargo
from garrison.relay.collector import RelayCollector
from garrison.relay.config import RelaySettings
from garrison.relay.shares import Shares
from garrison.relay.site import Site
from garrison.relay.status import RelayStatus, write_status
from garrison.relay.uplink import RelayVoice, Uplink

__all__ = ["run_relay"]

_ALIVE_S: Final = 2.0

_log = logging.getLogger(__name__)


def run_relay(settings: RelaySettings) -> None:
    """Run the relay until SIGTERM or SIGINT.

    Raises:
        ConfigError: No join file, settings that contradict what is pinned, an address that cannot be used, or another relay here.
        KernelError: A directory cannot be used.
        SpoolError: The spool cannot be opened.
    """
    identity = Identity.open(
        settings.directory, wanted_name=settings.wanted_name, join=settings.join, name_is_explicit=bool(settings.name)
    )
    try:
        if identity.join is None:
            raise ConfigError("this relay joined no master", hint="give it the master's join file with --join")
        if identity.join.by_relay:
            raise ConfigError("the join file leads to another relay", hint="a relay needs the master's own join.json")
        _make_runtime_dir(settings)
        _raise_file_limit()
        cargo = RelayCargo()
        caps = SpoolCaps.of_total(settings.spool_max_bytes)
        spool = Spool.open(settings.directory / "spool", caps, boot=boot_id(), cargo=cargo)
        try:
            asyncio.run(_run(settings, identity, identity.join, spool, cargo))
        finally:
            spool.close()
    finally:
        identity.close()


async def _run(settings: RelaySettings, identity: Identity, join: JoinFile, spool: Spool, cargo: RelayCargo) -> None:
    stop, since = asyncio.Event(), time.time_ns()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    site = Site(identity.directory)
    uplink = Uplink(identity.name, spool, site)
    blobs = Blobs(identity.directory, uplink.fetch)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    zap = ZapHandler(context, site.knock)
    try:
        router = bind_router(context, settings.listen, public_key=identity.public_key, secret_key=identity.secret_key)
        collector = RelayCollector(
            router,
            identity.name,
            spool=spool,
            cargo=cargo,
            site=site,
            blobs=blobs,
            shares=Shares(join, site, blobs),
            up=uplink,
            ping_after_s=settings.late_after_s / 2,
        )
        link = Link(_link_settings(identity, join), uplink, voice=RelayVoice(), on_relayed=uplink.on_relayed)
        uplink.bind(link, collector)
        uplink.emit("started")

        def status() -> RelayStatus:
            return RelayStatus(
                name=identity.name,
                fingerprint=identity.fingerprint,
                tenant=join.tenant,
                pid=os.getpid(),
                start_ticks=start_ticks(os.getpid()),
                since=since,
                listen=settings.listen,
                uplink=uplink.cause or "connected",
                nodes=[str(name) for name in site.names],
                connected=[str(name) for name in collector.connected()],
                spool=spool.stats(),
                taken_events=collector.taken,
                refused=collector.refused,
                fetched_blobs=blobs.fetched,
                fetched_bytes=blobs.fetched_bytes,
                served_chunks=collector.chunks,
            )

        async with asyncio.TaskGroup() as tasks:
            # A part that ends by itself ends all others: the group cancels them and hands its error on.
            tasks.create_task(_until_stopped(collector.run(stop), stop, "collector"))
            tasks.create_task(_until_stopped(uplink.run(stop), stop, "uplink"))
            tasks.create_task(_until_stopped(link.run(), stop, "link"))
            tasks.create_task(_tell(settings, status, stop, link))
    finally:
        zap.close()
        context.destroy(linger=0)
        _log.info("relay=stopped")


def _link_settings(identity: Identity, join: JoinFile) -> LinkSettings:
    return LinkSettings(
        masters=join.masters,
        server_key=join.server_key.encode(),
        public_key=identity.public_key,
        secret_key=identity.secret_key,
        batch_events=limits.FORWARD_MAX_ITEMS,
    )


async def _until_stopped(part: Awaitable[None], stop: asyncio.Event, name: str) -> None:
    await part
    if not stop.is_set():
        raise RuntimeError(f"{name} ended by itself")


async def _tell(settings: RelaySettings, status: Callable[[], RelayStatus], stop: asyncio.Event, link: Link) -> None:
    _log.info("relay=ready listen=%s", settings.listen)
    notify("READY=1")
    while not stop.is_set():
        try:
            await asyncio.to_thread(write_status, settings.runtime_dir, await asyncio.to_thread(status))
        except OSError as err:
            _log.warning("status=unwritten error=%s", err)
        notify("WATCHDOG=1")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ALIVE_S):
                await stop.wait()
    notify("STOPPING=1")
    await link.stop()


def _make_runtime_dir(settings: RelaySettings) -> None:
    try:
        settings.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise KernelError(err.errno or 0, f"make runtime directory {settings.runtime_dir}") from err


def _raise_file_limit() -> None:
    # One descriptor a node: the usual soft limit of 1,024 is for programs that use select().
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
