"""The minion: one process that enforces, observes, records and obeys, with or without a master.

Rules of this file:
- Order at boot: last good policy, then spool, then observers, then link. Nothing later can delay or stop something earlier.
- An assignment is obeyed on trial, and answered at once with ``pending``; how that ended is told later. One that comes meanwhile
  ends the trial. In order to stop, the agent ends it without a verdict.
- Fail-open or fail-closed: a refused or failed assignment leaves the previous generation enforced; a dead spool, observer or
  link changes nothing about enforcement; no policy ever held means nothing is enforced, and the state says so.
- An assignment that comes while the glass is broken waits in memory; the master offers it again after a restart.
- Kernel work and disk work run in threads; the event loop only carries the link.
- Every change of state is an event: started, stopped, applied, refused, degraded, recovered.
Owns: the order of life and the answers to the link. Does not own: what rules mean, how they are enforced, how events travel.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Final

from garrison.common import limits
from garrison.common.errors import GarrisonError, LinkError, QuarantinedError
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import ApplyReport, Assignment, Hello, Job, JobOutput, JobResult
from garrison.common.names import Digest
from garrison.common.policy.rules import RuleSet
from garrison.minion.arming import DeadmanRecord
from garrison.minion.bundles import BundleStore, Staged
from garrison.minion.config import MinionSettings
from garrison.minion.duty import Duty
from garrison.minion.enforcers.stack import EnforcerStack
from garrison.minion.grains import boot_id, grains
from garrison.minion.identity import Identity
from garrison.minion.jobs import JobRunner
from garrison.minion.link.client import Link
from garrison.minion.link.peer import LinkState
from garrison.minion.observers.base import Observer
from garrison.minion.probes import Probes
from garrison.minion.recorder import Recorder
from garrison.minion.spool import Spool
from garrison.minion.status import BackendState, NodeStatus, TrialStatus, start_ticks, write_status
from garrison.minion.trial import OnTrial, OnTrialEnd, apply_event
from garrison.minion.tryout import Tryout
from garrison.minion.verdict import Origin
from garrison.minion.workloads.model import Workload
from garrison.minion.workloads.report import WorkloadReport, scopes_of, write_report
from garrison.minion.workloads.watcher import WorkloadWatcher

__all__ = ["Agent"]

STATUS_EVERY_S: Final = 2.0

_log = logging.getLogger(__name__)

Fetch = Callable[[Digest, int], Awaitable[bytes]]


class Agent:
    """A node's agent. Also what the link talks to (``LinkPeer``).

    Args:
        settings: Where and how often.
        identity: Opened data directory.
        recorder: Takes all events; opened by ``run``.
        stack: Enforcement backends, not yet applied.
        store: Bundle store; ``None`` before the node joined a master.
        duty: What is enforced, of what is in ``store`` with ``stack``.
        observers: Not yet started.
        jobs: Runs commands of the master.
        probes: What the node must still be able to do under a new policy.
        workloads: Knows what runs on this node; also one of ``observers``.
        early: What early enforcement had to tell.
        last: What the last deadman left.
    """

    def __init__(
        self,
        settings: MinionSettings,
        identity: Identity,
        recorder: Recorder,
        *,
        stack: EnforcerStack,
        store: BundleStore | None,
        duty: Duty,
        observers: Sequence[Observer],
        jobs: JobRunner,
        probes: Probes,
        workloads: WorkloadWatcher,
        early: Sequence[Event] = (),
        last: DeadmanRecord | None = None,
    ) -> None:
        self._settings, self._identity, self._recorder = settings, identity, recorder
        self._stack, self._store, self._duty, self._early = stack, store, duty, early
        self._observers, self._jobs, self._workloads = observers, jobs, workloads
        self._shown: tuple[tuple[Workload, ...], RuleSet] | None = None
        self._instance, self._boot, self._since = secrets.token_hex(16), boot_id(), time.time_ns()
        self._last, self._reverted = last, None  # type: tuple[DeadmanRecord | None, OnTrialEnd | None]
        self._applying = asyncio.Lock()
        self._tryout = Tryout(duty, identity.directory, probes)
        self._link: Link | None = None
        self._put_off: Assignment | None = None
        self._link_state: LinkState | None = None
        self._health: dict[str, bool] = {}

    # ---- life ----------------------------------------------------------------------------------------------------------
    async def run(
        self, stop: asyncio.Event, *, link: Link | None, ready: Callable[[], object], alive: Callable[[], object]
    ) -> None:
        """Work until ``stop`` is set.

        Args:
            stop: Ends the agent in order: link, observers, spool; enforcement last.
            link: Link to the master, built with this agent as its peer; ``None`` on a node that joined none.
            ready: Called once the last good policy is enforced.
            alive: Called every few seconds as long as the agent turns.
        """
        self._link = link
        await asyncio.to_thread(self._enforce_last_good)
        if link is not None and self._reverted is not None:
            await link.tell(self._report("reverted", self._reverted.number, self._reverted.bundle, self._reverted.why))
        ready()
        self._emit_agent("started", version=version("garrison"), backends=self._backend_texts())
        await asyncio.to_thread(self._start_observers)
        link_task: asyncio.Task[None] | None = None
        try:
            while not stop.is_set():
                if link_task is None and await asyncio.to_thread(self._recorder.open) and link is not None:
                    link_task = asyncio.create_task(link.run(), name="link")
                if link_task is not None and link_task.done():
                    link_task.result()  # a link that ends by itself is a bug: let it be seen and the service restarted
                if await asyncio.to_thread(self._look_after) and link is not None:
                    await self._tell_master(link)
                alive()
                await _wait(stop, STATUS_EVERY_S)
        finally:
            await self._tryout.stop()
            await asyncio.to_thread(self._duty.close)
            if link is not None and link_task is not None:
                await link.stop()
                await link_task
            await asyncio.to_thread(self._shut_down)
            await self._jobs.close()

    def _enforce_last_good(self) -> None:
        self._stack.probe()
        self._workloads.tell(self._stack.set_workloads)
        self._reverted = self._duty.settle(self._last)
        self._duty.take_up()
        self._stack.watch_cgroups(lambda made: self._workloads.look_at(made.path))
        for event in self._early:
            self._recorder.emit(event)

    def _start_observers(self) -> None:
        for observer in self._observers:
            try:
                observer.start(self._recorder.emit)
            except (GarrisonError, OSError) as err:
                _log.error("observer=%s started=no error=%s", observer.name, err)
                self._emit_agent("degraded", severity=6, part=observer.name, detail=str(err))

    def _shut_down(self) -> None:
        for observer in self._observers:
            observer.stop()
        self._emit_agent(
            "stopped",
            detail="enforcement by fanotify and cgroup programs ends with the agent, by bpf_lsm and nftables it goes on",
        )
        self._recorder.close()
        self._stack.close()

    # ---- looking after itself --------------------------------------------------------------------------------------------
    def _look_after(self) -> bool:
        changed = self._duty.look()
        states = self._states()
        for state in states:
            before = self._health.get(state.name)
            if before is not None and before != state.healthy:
                self._emit_agent(
                    "recovered" if state.healthy else "degraded",
                    severity=3 if state.healthy else 7,
                    part=state.name,
                    detail=state.detail,
                )
            self._health[state.name] = state.healthy
        try:
            write_status(self._settings.runtime_dir, self._document(states))
            self._show_workloads()
        except OSError as err:
            _log.warning("status=unwritten error=%s", err)
        return changed

    def _show_workloads(self) -> None:
        shown = self._workloads.workloads, self._stack.rules
        if self._shown is None or any(now is not before for now, before in zip(shown, self._shown, strict=True)):
            write_report(self._settings.runtime_dir, WorkloadReport(workloads=shown[0], scopes=scopes_of(shown[1])))
            self._shown = shown

    async def _tell_master(self, link: Link) -> None:
        """Tell at once what is enforced now, and do what had to wait."""
        duty = self._duty
        if duty.obstacle or duty.generation is None:
            number, bundle = (duty.generation.number, duty.generation.bundle) if duty.generation else (0, "")
            await link.tell(self._report("failed", number, bundle, duty.obstacle))
        else:
            await link.tell(self._report("applied", duty.generation.number, duty.generation.bundle))
        if self._put_off is not None and not duty.glass_broken:
            wanted, self._put_off = self._put_off, None
            link.obey(wanted)

    def _states(self) -> list[BackendState]:
        enforcers = [
            BackendState(name=s.backend, healthy=s.healthy, detail=s.detail, counters=dict(s.counters))
            for s in self._stack.status()
        ]
        return enforcers + self._observer_states()

    def _observer_states(self) -> list[BackendState]:
        return [
            BackendState(name=s.name, healthy=s.healthy, detail=s.detail, counters=dict(s.counters))
            for s in (observer.status() for observer in self._observers)
        ]

    def _document(self, states: list[BackendState]) -> NodeStatus:
        generation, link, join = self._duty.generation, self._link_state, self._identity.join
        observers = {observer.name for observer in self._observers}
        return NodeStatus(
            node=self._identity.name,
            fingerprint=self._identity.fingerprint,
            tenant=join.tenant if join else "",
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
            since=self._since,
            link="not joined"
            if join is None
            else "connected"
            if link and link.connected
            else (link.cause if link else "connecting"),
            generation=generation.number if generation else 0,
            bundle=generation.bundle if generation else "",
            version=generation.version if generation else 0,
            stale=generation.stale if generation else False,
            unacked=self._unacked(),
            spool=self._recorder.error or "ok",
            backends=[s for s in states if s.name not in observers],
            observers=[s for s in states if s.name in observers],
            rules=list(self._duty.rules),
            obstacle=self._duty.obstacle,
            trial=self._trial_status(),
        )

    def _trial_status(self) -> TrialStatus | None:
        trial = self._duty.trial
        if trial is None:
            return None
        generation = trial.generation
        return TrialStatus(generation=generation.number, bundle=generation.bundle, deadline_boottime=trial.armed.deadline)

    def _unacked(self) -> dict[str, int]:
        spool = self._recorder.spool
        return {lane.name.lower(): count for lane, count in spool.pending().items()} if spool else {}

    def _backend_texts(self) -> dict[str, str]:
        return {
            name: "ok" if p.ok and not p.reason else p.reason if not p.ok else f"ok, {p.reason}"
            for name, p in self._stack.probe().items()
        }

    # ---- what the link asks (LinkPeer) -----------------------------------------------------------------------------------
    @property
    def spool(self) -> Spool:
        """The opened spool; the link is not started before it is there."""
        if self._recorder.spool is None:
            raise RuntimeError("the link was started before the spool")
        return self._recorder.spool

    def hello(self) -> Hello:
        """Return what this node is and has, now."""
        generation, obstacle = self._duty.generation, self._duty.obstacle
        acked = self.spool.acked()
        return Hello(
            node=self._identity.name,
            instance=self._instance,
            boot=self._boot,
            version=version("garrison"),
            epoch=self.spool.epoch,
            next_seq=self.spool.next_seq,
            unacked={str(int(lane)): count for lane, count in self.spool.pending().items()},
            acked={str(int(lane)): seq for lane, (seq, _) in acked.items()},
            acked_events={str(int(lane)): count for lane, (_, count) in acked.items() if count >= 0},
            generation=generation.number if generation else 0,
            bundle=generation.bundle if generation else "",
            backends={name: text[: limits.STRING_MAX_CHARS] for name, text in self._backend_texts().items()},
            grains=grains() | ({"enforcement": obstacle[: limits.STRING_MAX_CHARS]} if obstacle else {}),
            waits=True,
        )

    async def on_assignment(self, assignment: Assignment, fetch: Fetch) -> ApplyReport:
        """Verify, stage and put on trial; on any failure the previous generation stays enforced and on disk."""
        if self._store is None:
            raise RuntimeError("an assignment came over a link that a node without a join file cannot have")
        async with self._applying:
            if self._duty.glass_broken:
                self._put_off = assignment  # neither refused nor failed for good: obeyed when the glass is whole again
                return self._report("failed", 0, "", f"put off: {self._duty.obstacle}")
            staged = None
            try:
                staged = await self._store.stage(assignment, fetch)
                return await self._obey(staged)
            except QuarantinedError as err:
                return self._refused("quarantined", err.generation, Digest(err.bundle), str(err))
            except (GarrisonError, OSError) as err:
                return await self._not_applied(self._store, staged, " because ".join(_chain(err)))

    async def _obey(self, staged: Staged) -> ApplyReport:
        new, held, trial = staged.generation, self._duty.generation, self._duty.trial
        if held is not None and held.number == new.number:
            return self._report("applied", new.number, new.bundle)
        if trial is None or (trial.generation.number, trial.generation.bundle) != (new.number, new.bundle):
            await self._tryout.supersede()
            await self._tryout.begin(staged, Origin.LINK, ask=self._ask_master, ended=self._trial_ended)
        return self._report("pending", new.number, new.bundle, f"waits for its confirmation, at most {new.confirm_s} s")

    async def _ask_master(self, trial: OnTrial) -> None:
        if self._link is None:
            raise LinkError("this node has no link")
        await self._link.confirm(trial.generation.number, trial.generation.bundle)

    async def _trial_ended(self, taken_back: OnTrialEnd | None) -> None:
        held = self._duty.generation
        if taken_back is not None:
            report = self._report("reverted", taken_back.number, taken_back.bundle, taken_back.why)
        elif held is not None:
            self._emit_apply("applied", held.number, held.bundle, "")
            report = self._report("applied", held.number, held.bundle)
        else:
            return  # the glass was broken in the same moment, and that is told
        if self._link is not None:
            await self._link.tell(report)

    async def _not_applied(self, store: BundleStore, staged: Staged | None, why: str) -> ApplyReport:
        if staged is not None and not self._duty.glass_broken:
            await asyncio.to_thread(store.reject, staged, why)
        number, bundle = (staged.generation.number, staged.generation.bundle) if staged else (0, Digest(""))
        return self._refused("failed" if staged is not None else "refused", number, bundle, why)

    def _refused(self, state: str, number: int, bundle: Digest, why: str) -> ApplyReport:
        _log.error("applied=no state=%s error=%s", state, why)
        self._emit_apply(state, number, bundle, why)
        return self._report(state, number, bundle, why)

    def _report(self, state: str, generation: int, bundle: str, error: str = "") -> ApplyReport:
        rules = list(self._duty.rules) if state == "applied" else []
        return ApplyReport(generation=generation, bundle=bundle, state=state, error=error[: limits.STRING_MAX_CHARS], rules=rules)

    async def on_job(self, job: Job, output: Callable[[JobOutput], Awaitable[None]]) -> JobResult:
        """Run a command of the master."""
        return await self._jobs.run(job, output)

    def on_job_cancel(self, job_id: str) -> None:
        """Stop a command."""
        self._jobs.cancel(job_id)

    def on_link_state(self, state: LinkState) -> None:
        """Take note of the link going up or down; downs and ups are events that tell how long a site was dark."""
        before, self._link_state = self._link_state, state
        if before is None or before.connected != state.connected:
            _log.info("link=%s cause=%s", "up" if state.connected else "down", state.cause)
            self._emit_agent("link-up" if state.connected else "link-down", detail=state.cause)

    # ---- events ----------------------------------------------------------------------------------------------------------
    def _emit_agent(self, state: str, *, severity: int = 3, **data: Scalar | dict[str, str]) -> None:
        flat: dict[str, Scalar | list[Scalar]] = {"state": state}
        for key, value in data.items():
            if isinstance(value, dict):
                flat |= {f"{key}.{inner}": text for inner, text in value.items()}
            else:
                flat[key] = value
        self._recorder.emit(Event(lane=Lane.STATE, kind=Kind.AGENT, severity=severity, data=flat))

    def _emit_apply(self, state: str, generation: int, bundle: str, error: str) -> None:
        rules = self._duty.rules if state == "applied" else ()
        self._recorder.emit(apply_event(state, generation, bundle, error, rules))


async def _wait(stop: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await stop.wait()
    except TimeoutError:
        return


def _chain(err: BaseException) -> list[str]:
    texts, cause = [str(err)], err.__cause__
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    return texts
