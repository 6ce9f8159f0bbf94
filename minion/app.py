"""Builds a minion from its settings and runs it until it is told to stop.

Rules of this file:
- The only place that knows every part of the minion; parts know their neighbours' contracts only.
- Ends cleanly on SIGTERM and SIGINT. A bug in a part ends the process with a traceback: the service manager starts it again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from pathlib import Path
from typing import Final

from garrison.common.errors import ConfigError, KernelError
from garrison.common.sdnotify import notify
from garrison.minion.agent import Agent
from garrison.minion.arming import arm, await_last
from garrison.minion.bundles import BundleStore
from garrison.minion.config import MinionSettings
from garrison.minion.duty import Duty
from garrison.minion.early import take_outcome
from garrison.minion.enforcers.exec_feed import ExecFeed
from garrison.minion.enforcers.stack import EnforcerStack, default_backends
from garrison.minion.grains import boot_id
from garrison.minion.identity import Identity
from garrison.minion.jobs import JobRunner
from garrison.minion.link.client import Link
from garrison.minion.link.settings import LinkSettings
from garrison.minion.link.voice import DIRECT, RelayedVoice
from garrison.minion.lockout import local_needs
from garrison.minion.observers.base import Observer
from garrison.minion.observers.errors import ErrorObserver
from garrison.minion.observers.resources import ResourceObserver
from garrison.minion.observers.self_health import SelfObserver
from garrison.minion.observers.shell import ShellObserver
from garrison.minion.probes import local_probes
from garrison.minion.recorder import Recorder
from garrison.minion.spool import SpoolCaps
from garrison.minion.workloads.annotate import annotated
from garrison.minion.workloads.watcher import WorkloadWatcher

__all__ = ["run_minion"]

JOURNAL_STATE: Final = "observers"
_WATCHDOG_TEXT: Final = "WATCHDOG=1"

_log = logging.getLogger(__name__)


def run_minion(settings: MinionSettings) -> None:
    """Run the minion until SIGTERM or SIGINT.

    Raises:
        ConfigError: The settings contradict what this node is pinned to, or another minion holds its directory.
        KernelError: The data or runtime directory cannot be used.
    """
    identity = Identity.open(
        settings.directory, wanted_name=settings.wanted_name, join=settings.join, name_is_explicit=bool(settings.node)
    )
    try:
        _make_runtime_dir(settings.runtime_dir)
        asyncio.run(_run(settings, identity))
    finally:
        identity.close()


async def _run(settings: MinionSettings, identity: Identity) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    workloads = WorkloadWatcher()
    recorder = Recorder(
        settings.directory / "spool",
        SpoolCaps.of_total(settings.spool_max_bytes),
        boot=boot_id(),
        complete=lambda event: annotated(event, workloads.container),
    )
    backends = default_backends(
        recorder.emit,
        runtime_dir=settings.runtime_dir,
        cgroup=settings.cgroup,
        names=settings.backends,
        lsm=settings.lsm_options,
    )
    join, stack = identity.join, EnforcerStack(backends)
    store = None if join is None else BundleStore(identity.directory / "bundles", join, identity.name, identity.fingerprint)
    needs = local_needs(identity.directory, settings.runtime_dir, join.masters if join else ())
    agent = Agent(
        settings,
        identity,
        recorder,
        stack=stack,
        store=store,
        duty=Duty(
            identity.directory,
            boot_id(),
            store=store,
            stack=stack,
            emit=recorder.emit,
            needs=needs,
            workloads=lambda: workloads.workloads,
            arm=functools.partial(arm, settings.runtime_dir),
        ),
        observers=[workloads, *_observers(settings, recorder)],
        workloads=workloads,
        jobs=JobRunner(identity.directory / "jobs"),
        probes=local_probes(identity.directory),
        early=take_outcome(settings.runtime_dir),
        last=await_last(settings.runtime_dir, boot_id()),
    )
    if join is None:
        _log.warning("link=none reason=%s", "this node joined no master; give it a join file with --join")
        link = None
    else:
        link = Link(
            LinkSettings(
                masters=tuple(join.masters),
                server_key=join.server_key.encode(),
                public_key=identity.public_key,
                secret_key=identity.secret_key,
            ),
            agent,
            voice=RelayedVoice(identity.name, identity.secret_key, join.master.encode()) if join.by_relay else DIRECT,
        )
    await agent.run(stop, link=link, ready=lambda: notify("READY=1"), alive=lambda: notify(_WATCHDOG_TEXT))
    notify("STOPPING=1")


def _observers(settings: MinionSettings, recorder: Recorder) -> list[Observer]:
    state = settings.directory / JOURNAL_STATE
    return [
        ShellObserver(ExecFeed.shared(), scope=settings.shell_scope),
        ResourceObserver(settings.resource_interval_s),
        ErrorObserver(files=settings.error_files, state_dir=state),
        SelfObserver(settings.self_interval_s, spool_stats=lambda: recorder.spool.stats() if recorder.spool else None),
    ]


def _make_runtime_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise KernelError(err.errno or 0, f"make runtime directory {path}") from err
    if not os.access(path, os.W_OK):
        raise ConfigError(f"{path} cannot be written", hint="run the minion as root")
