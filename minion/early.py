"""Early enforcement: once, before the network is up and long before the agent, by backends whose rules hold without a process.

Rules of this file:
- It never holds a boot up: the work is done by a child that is killed at a deadline, and whatever comes of it, the boot goes on.
  Fail-open, with the outcome left for the agent to tell.
- It decides nothing by itself: break-glass, safe mode and the last good generation are ``duty``'s, as for the agent, which
  takes over what is in the kernel without an unprotected moment.
- It makes nothing on a node that has no data directory yet: names are pinned by the agent.
- It looks for workloads once, as the agent does: units and users are held by name from their first instruction on. Without that
  look, rules for the node are enforced all the same (open for those about workloads, told).
Owns: the deadline, the outcome. Does not own: what is enforced.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.minion.bundles import BundleStore
from garrison.minion.config import MinionSettings
from garrison.minion.duty import Duty
from garrison.minion.enforcers.stack import LASTING, EnforcerStack, default_backends
from garrison.minion.grains import boot_id
from garrison.minion.identity import Identity, is_held
from garrison.minion.recorder import Recorder
from garrison.minion.spool import SpoolCaps
from garrison.minion.workloads.watcher import WorkloadWatcher

__all__ = ["Outcome", "enforce_early", "take_outcome"]

_FILE: Final = "early.json"
_WELL: Final = frozenset({"enforced", "nothing"})

_log = logging.getLogger(__name__)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of early enforcement.

    Attributes:
        state: ``enforced``; ``nothing`` to enforce here; ``held back`` by break-glass or safe mode; ``failed``.
        detail: Why; with ``enforced`` what is not.
        generation: What is enforced, 0 for nothing.
        mono: CLOCK_MONOTONIC, ns: how long after the kernel's start.
    """

    state: str
    detail: str = ""
    generation: int = 0
    mono: int = 0


def enforce_early(settings: MinionSettings, *, deadline_s: float = limits.EARLY_ENFORCE_MAX_S) -> Outcome:
    """Enforce the last good generation, as far as that outlives this process; never raises and never takes longer.

    Args:
        settings: The agent's.
        deadline_s: After that the attempt is killed.
    """
    child = os.fork()
    if child == 0:
        _work(settings)
    outcome = _awaited(child, settings, deadline_s)
    level = logging.INFO if outcome.state in _WELL else logging.ERROR
    _log.log(level, "early=%s generation=%s detail=%s", outcome.state, outcome.generation, outcome.detail)
    return outcome


def take_outcome(runtime_dir: Path) -> list[Event]:
    """Return what early enforcement left to tell, once."""
    outcome = _read(runtime_dir)
    if outcome is None:
        return []
    try:
        (runtime_dir / _FILE).unlink(missing_ok=True)
    except OSError as err:
        _log.warning("early=told-again error=%s", err)
    data: dict[str, Scalar | list[Scalar]] = {
        "state": "early-enforcement",
        "outcome": outcome.state,
        "detail": outcome.detail[: limits.STRING_MAX_CHARS],
        "generation": outcome.generation,
    }
    incomplete = outcome.state == "enforced" and outcome.detail
    severity = 3 if outcome.state in _WELL and not incomplete else 8
    return [Event(lane=Lane.STATE, kind=Kind.AGENT, severity=severity, mono=outcome.mono, data=data)]


# ---- parent ------------------------------------------------------------------------------------------------------------
def _awaited(child: int, settings: MinionSettings, deadline_s: float) -> Outcome:
    fd = os.pidfd_open(child)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        in_time = bool(poller.poll(deadline_s * 1000))
    finally:
        os.close(fd)
    if not in_time:
        os.kill(child, signal.SIGKILL)  # and not waited for: one that is stuck in the kernel does not end
        return _leave(settings.runtime_dir, Outcome(state="failed", detail=f"not done within {deadline_s:g} s; killed"))
    _, status = os.waitpid(child, 0)
    outcome = _read(settings.runtime_dir)
    if status or outcome is None:
        code = os.waitstatus_to_exitcode(status)
        return _leave(settings.runtime_dir, Outcome(state="failed", detail=f"the attempt ended with {code}"))
    return outcome


# ---- child -------------------------------------------------------------------------------------------------------------
def _work(settings: MinionSettings) -> None:
    code = 1
    try:
        (settings.runtime_dir / _FILE).unlink(missing_ok=True)
        events: list[Event] = []
        _leave(settings.runtime_dir, _attempt(settings, events))
        _keep(settings, events)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it was, this copy of the process must end here
        _log.exception("early=failed")
    finally:
        os._exit(code)


def _attempt(settings: MinionSettings, events: list[Event]) -> Outcome:
    if not Identity.exists(settings.directory):
        return Outcome(state="nothing", detail=f"{settings.directory} is of no node that joined a master")
    if is_held(settings.directory):
        return Outcome(state="nothing", detail="the agent runs, and enforces")
    identity = Identity.open(settings.directory, wanted_name=settings.wanted_name)
    names = [name for name in settings.backends if name in LASTING]
    backends = default_backends(
        events.append, runtime_dir=settings.runtime_dir, cgroup=settings.cgroup, names=names, lsm=settings.lsm_options
    )
    stack = EnforcerStack(backends)
    try:
        return _enforce(identity, stack)
    except GarrisonError as err:
        return Outcome(state="failed", detail=str(err))
    finally:
        stack.close()
        identity.close()


def _enforce(identity: Identity, stack: EnforcerStack) -> Outcome:
    reasons = [probe.reason for probe in stack.probe().values() if not probe.ok]
    if len(reasons) == len(stack.probe()):
        return Outcome(
            state="nothing", detail=f"no backend here outlives the agent: {'; '.join(reasons) or 'none is to be tried'}"
        )
    if identity.join is None:
        return Outcome(state="nothing", detail="this node joined no master")
    store = BundleStore(identity.directory / "bundles", identity.join, identity.name, identity.fingerprint)
    workloads = WorkloadWatcher()
    workloads.tell(stack.set_workloads)
    # The agent says the same again, and it is the one to be heard: here only what the kernel tells is kept.
    duty = Duty(identity.directory, boot_id(), store=store, stack=stack, emit=lambda _: None)
    duty.take_up()
    number = duty.generation.number if duty.generation else 0
    if duty.error:
        return Outcome(state="failed", detail=duty.error)
    if duty.obstacle:
        return Outcome(state="held back", detail=duty.obstacle, generation=number)
    if not number:
        return Outcome(state="nothing", detail="none was ever assigned")
    trouble = workloads.status().detail
    detail = f"but for rules about some workloads: {trouble}" if trouble else ""
    return Outcome(state="enforced", detail=detail, generation=number)


def _keep(settings: MinionSettings, events: list[Event]) -> None:
    """Put what the kernel told meanwhile into the spool; enforcement is in place by now and does not wait for it."""
    if not events:
        return
    recorder = Recorder(settings.directory / "spool", SpoolCaps.of_total(settings.spool_max_bytes), boot=boot_id())
    for event in events:
        recorder.emit(event)
    if not recorder.open():
        _log.error("early_events=lost count=%d error=%s", len(events), recorder.error)
    recorder.close()


# ---- outcome -----------------------------------------------------------------------------------------------------------
def _leave(runtime_dir: Path, outcome: Outcome) -> Outcome:
    timed = msgspec.structs.replace(outcome, mono=time.monotonic_ns())
    try:
        runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = runtime_dir / f"{_FILE}.part"
        part.write_bytes(msgspec.json.encode(timed))
        part.replace(runtime_dir / _FILE)
    except OSError as err:
        _log.error("early_outcome=unwritten error=%s", err)
    return timed


def _read(runtime_dir: Path) -> Outcome | None:
    try:
        return msgspec.json.decode((runtime_dir / _FILE).read_bytes(), type=Outcome)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as err:
        return Outcome(state="failed", detail=f"its outcome cannot be read: {err}")
