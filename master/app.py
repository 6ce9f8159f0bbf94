"""Builds a master from its settings and runs it until it is told to stop.

Rules of this file:
- The only place that knows every part of the master.
- One master per directory: the lock is held as long as it runs. kill -9 leaves nothing that the next start does not put right.
- Ends cleanly on SIGTERM and SIGINT: streams, API, link, then the store with a checkpoint.
- A bug in a part ends the process with a traceback: the service manager starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Final

import zmq

from garrison.common import limits
from garrison.common.errors import ConfigError, KernelError, StoreError
from garrison.common.sdnotify import notify
from garrison.common.trust.curve import load_curve_key
from garrison.master.api.server import build_app, listen_unix, serve
from garrison.master.collector.collector import Collector
from garrison.master.collector.keys import KeyRing
from garrison.master.collector.sockets import bind_router
from garrison.master.collector.zap import ZapHandler
from garrison.master.config import MasterSettings
from garrison.master.desk import Desk, MasterTrust
from garrison.master.store import Store

__all__ = ["run_master"]

_STORE_FILE: Final = "store.db"
_KEY_FILE: Final = "curve.key"
_ALIVE_S: Final = 5.0
_TIDY_EVERY_S: Final = 60.0  # how far the store's size cap can be overrun
_SWITCH_S: Final = 0.002  # the writer thread and the loop share one interpreter; the usual 5 ms would delay every ack

_log = logging.getLogger(__name__)


def run_master(settings: MasterSettings) -> None:
    """Run the master until SIGTERM or SIGINT.

    Raises:
        ConfigError: The directory is not a master's or is in use, or an address cannot be used.
        KernelError: The directory cannot be used.
        StoreError: The store cannot be opened.
    """
    directory = settings.directory
    if not (directory / _KEY_FILE).exists():
        raise ConfigError(
            f"{directory} holds no master's key", hint=f"make one: garrison init --dir {directory} --advertise tcp://ADDRESS:4515"
        )
    with _locked(directory):
        _raise_file_limit()
        sys.setswitchinterval(_SWITCH_S)
        trust = MasterTrust.load(directory)
        keypair = load_curve_key(directory / _KEY_FILE)
        store = Store(directory / _STORE_FILE, settings.retention)
        try:
            asyncio.run(_run(settings, trust, keypair, store))
        finally:
            store.close()


async def _run(settings: MasterSettings, trust: MasterTrust, keypair: tuple[bytes, bytes], store: Store) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    desk, keys = Desk(store, trust), KeyRing(store)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=min(os.cpu_count() or 1, limits.LINK_IO_THREADS_MAX))
    zap = ZapHandler(context, keys.knock)
    try:
        router = bind_router(context, settings.listen, public_key=keypair[0], secret_key=keypair[1])
        collector = Collector(router, store, keys, desk, ping_after_s=settings.late_after_s / 2, secret_key=keypair[1])
        listener = listen_unix(settings.socket_path)
        app = build_app(settings, store, keys, collector, desk, stop=stop)
        async with asyncio.TaskGroup() as tasks:
            # A part that ends by itself ends all others: the group cancels them and hands its error on.
            tasks.create_task(_until_stopped(collector.run(stop), stop, "collector"))
            tasks.create_task(_until_stopped(serve(app, listener, stop, ready), stop, "api"))
            tasks.create_task(_tell(ready, stop, settings))
            tasks.create_task(_keep(store, stop))
        settings.socket_path.unlink(missing_ok=True)
    finally:
        zap.close()
        context.destroy(linger=0)
        _log.info("master=stopped")


async def _until_stopped(part: Awaitable[None], stop: asyncio.Event, name: str) -> None:
    await part
    if not stop.is_set():
        raise RuntimeError(f"{name} ended by itself")


async def _tell(ready: asyncio.Event, stop: asyncio.Event, settings: MasterSettings) -> None:
    await ready.wait()
    _log.info("master=ready listen=%s socket=%s", settings.listen, settings.socket_path)
    notify("READY=1")
    while not stop.is_set():
        notify("WATCHDOG=1")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ALIVE_S):
                await stop.wait()
    notify("STOPPING=1")


async def _keep(store: Store, stop: asyncio.Event) -> None:
    """Have the store drop what it need not keep; one that cannot is asked again."""
    while not stop.is_set():
        try:
            await asyncio.to_thread(store.keeper.tidy)
        except StoreError as err:
            _log.error("store=untidied error=%s", err)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TIDY_EVERY_S):
                await stop.wait()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise KernelError(err.errno or 0, f"lock {directory}") from err
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ConfigError(f"another master runs on {directory}", hint="stop it, or give this one its own --dir") from err
        yield
    finally:
        os.close(fd)


def _raise_file_limit() -> None:
    # One descriptor a node: the usual soft limit of 1,024 is for programs that use select().
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
