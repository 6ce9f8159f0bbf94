"""All backends of a node as one: every kind of rule goes to the backend that does most for it, and all apply or none does.

Rules of this file:
- Rules of one entity stay together: allow-lists and exemptions only mean something as a whole.
- On failure every backend goes back to what it held; one that cannot is left to its own reporting, and the first error is raised.
- Rules on trial: between ``begin`` and ``keep`` or ``go_back`` those before can be brought back, and nothing else is applied;
  links that change meanwhile are followed afterwards.
- Symbolic links are resolved here, before backends see rules, and again when what they lead to changes.
Owns: routing, all-or-nothing, the merged report. Does not own: meaning, what a backend can do.
"""

from __future__ import annotations

import errno
import importlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import GarrisonError, KernelError
from garrison.common.frames import RuleReport
from garrison.common.policy.normalise import Normalised
from garrison.common.policy.report import merge_reports
from garrison.common.policy.rules import Entity, RuleSet, RuleStatus
from garrison.minion.enforcers.base import CgroupMade, Emit, Enforcer, EnforcerStatus, MapWrite, Probe
from garrison.minion.enforcers.bpf_lsm.options import LsmOptions
from garrison.minion.enforcers.resolve import Reresolver, Snapshot, look, resolve
from garrison.minion.workloads.model import Workload

__all__ = ["LASTING", "EnforcerStack", "Trial", "default_backends"]

_NO_RULES: Final = RuleSet()
_WORST_FIRST: Final = (RuleStatus.INERT, RuleStatus.IMPOSSIBLE, RuleStatus.DEGRADED, RuleStatus.AUDITED)

_log = logging.getLogger(__name__)

Build = Callable[[Emit, Path, Path | None], Enforcer]


def _fanotify(emit: Emit, runtime_dir: Path, _: Path | None) -> Enforcer:
    return _load("garrison.minion.enforcers.fanotify", "FanotifyEnforcer")(emit, runtime_dir=runtime_dir)


def _cgroup_net(emit: Emit, _: Path, cgroup: Path | None) -> Enforcer:
    return _load("garrison.minion.enforcers.cgroup_net", "CgroupNetEnforcer")(emit, cgroup=cgroup)


def _audit(emit: Emit, _: Path, __: Path | None) -> Enforcer:
    return _load("garrison.minion.enforcers.audit", "AuditEnforcer")(emit)


def _syscalls(emit: Emit, _: Path, __: Path | None) -> Enforcer:
    return _load("garrison.minion.enforcers.syscalls", "SyscallsEnforcer")(emit)


def _usb(emit: Emit, runtime_dir: Path, _: Path | None) -> Enforcer:
    return _load("garrison.minion.enforcers.usb", "UsbEnforcer")(emit, runtime_dir=runtime_dir)


_BUILD: Final[Mapping[str, Build]] = {
    "fanotify": _fanotify,
    "cgroup_net": _cgroup_net,
    "syscalls": _syscalls,
    "usb": _usb,
    "audit": _audit,
}


LASTING: Final = frozenset({"bpf_lsm", "nftables"})  # backends, by their name in the settings, whose rules hold without the agent


def _load(module: str, name: str) -> Callable[..., Enforcer]:
    # By name, so that a node pays only for the backends that it is told to try.
    backend: Callable[..., Enforcer] = getattr(importlib.import_module(module), name)
    return backend


def default_backends(
    emit: Emit, *, runtime_dir: Path, cgroup: Path | None, names: Iterable[str], lsm: LsmOptions | None = None
) -> list[Enforcer]:
    """Return the backends called ``names``, best first, none of them probed.

    Args:
        emit: Takes their events.
        runtime_dir: For sockets and scratch files.
        cgroup: Directory whose processes obey network rules; the mount's root when ``None``.
        names: Out of ``bpf_lsm``, ``fanotify``, ``cgroup_net``, ``nftables``, ``usb``, ``syscalls``, ``audit``.
        lsm: Settings of the first of them; its event rate goes for ``nftables``, too.
    """

    def bpf_lsm(emit: Emit, _: Path, __: Path | None) -> Enforcer:
        return _load("garrison.minion.enforcers.bpf_lsm.enforcer", "BpfLsmEnforcer")(emit, options=lsm)

    def nftables(emit: Emit, _: Path, __: Path | None) -> Enforcer:
        return _load("garrison.minion.enforcers.nftables", "NftablesEnforcer")(emit, rate=lsm.rate if lsm else None)

    build = {**_BUILD, "bpf_lsm": bpf_lsm, "nftables": nftables}
    return [build[name](emit, runtime_dir, cgroup) for name in names]


@dataclass(frozen=True)
class Trial:
    """Rules that are ready to be enforced on trial.

    Attributes:
        writes: What another process can write to bring back what is enforced now, as far as that outlives this process.
        apply: Enforces the new rules; returns the compile report and raises as ``EnforcerStack.apply``.
    """

    writes: tuple[MapWrite, ...]
    apply: Callable[[], tuple[RuleReport, ...]]


@dataclass(frozen=True)
class _Plan:
    wanted: dict[str, RuleSet]
    routes: dict[Entity, str]
    snapshot: Snapshot


@dataclass(frozen=True)
class _Before:
    held: dict[str, RuleSet]
    normalised: Normalised | None
    snapshot: Snapshot | None


class EnforcerStack:
    """Backends, best first, behind one door. Any thread may call it."""

    def __init__(self, backends: Sequence[Enforcer]) -> None:
        self._backends = list(backends)
        self._lock = threading.RLock()
        self._probes: dict[str, Probe] | None = None
        self._held: dict[str, RuleSet] = {}
        self._normalised: Normalised | None = None
        self._trouble = ""
        self._unplaced = ""
        self._reresolver = Reresolver(self._apply_again)
        self._before: _Before | None = None
        self._closed = False

    def probe(self) -> dict[str, Probe]:
        """Return what each backend's probe found; probed once."""
        if self._probes is not None:
            return self._probes  # without the lock: status is asked for while rules are applied
        with self._lock:
            if self._probes is None:
                self._probes = {backend.name: backend.probe() for backend in self._backends}
                for name, probe in self._probes.items():
                    _log.info("backend=%s works=%s reason=%s", name, probe.ok, probe.reason)
            return self._probes

    def compile(self, normalised: Normalised) -> tuple[RuleReport, ...]:
        """Return the compile report that ``apply`` would give, without side effects."""
        rules, _ = _resolved(normalised.rules)
        reports = self._compiled(rules)
        routes = _routes(rules, reports)
        return self._merged(normalised, routes, reports)

    def apply(self, normalised: Normalised) -> tuple[RuleReport, ...]:
        """Enforce ``normalised`` instead of what was enforced before.

        Returns:
            The compile report, now true.

        Raises:
            GarrisonError: A backend failed; all hold what they held before.
        """
        with self._lock:
            if self._before is not None:
                raise KernelError(errno.EBUSY, "apply rules while others are on trial")
            return self._applied(self._plan(normalised), normalised)

    def begin(self, normalised: Normalised) -> Trial:
        """Prepare to enforce ``normalised`` on trial, and keep what is enforced now.

        Raises:
            GarrisonError: What is enforced cannot be kept, or something is on trial; nothing has changed.
        """
        with self._lock:
            if self._before is not None:
                raise KernelError(errno.EBUSY, "try rules while others are on trial")
            plan = self._plan(normalised)
            writes: list[MapWrite] = []
            touched = [b for name, b in self._working().items() if plan.wanted[name].rules or name in self._held]
            try:
                for backend in touched:
                    writes += backend.hold()
            except GarrisonError:
                self._let_go()
                raise
            self._before = _Before(self._held, self._normalised, self._reresolver.snapshot)
            return Trial(tuple(writes), lambda: self._tried(plan, normalised))

    def _tried(self, plan: _Plan, normalised: Normalised) -> tuple[RuleReport, ...]:
        with self._lock:
            return self._applied(plan, normalised)

    def keep(self) -> None:
        """End the trial: what is enforced now stays. Idempotent."""
        with self._lock:
            self._before = None
            self._let_go()

    def go_back(self) -> bool:
        """End the trial: what was enforced before it is enforced again. Without a trial nothing changes.

        Returns:
            Whether all of it is; what is not is told by ``status``.
        """
        with self._lock:
            before, self._before = self._before, None
            if before is None:
                return True
            self._trouble = ""
            changed = {name for name in self._held if name not in before.held}
            held, self._held = before.held, before.held
            self._roll_back(b for name, b in self._working().items() if name in held or name in changed)
            self._normalised = before.normalised
            self._reresolver.watch(before.snapshot or look(()))
            self._let_go()
            return not self._trouble

    def _let_go(self) -> None:
        for backend in self._backends:
            backend.keep()

    def release(self) -> bool:
        """Enforce nothing any more, and take away what outlives this process. ``apply`` enforces again.

        Returns:
            Whether all of it is gone; what is not is told by ``status``.
        """
        with self._lock:
            self._normalised, self._before, self._trouble = None, None, ""
            self._let_go()
            self._reresolver.watch(look(()))
            for backend in self._backends:  # those that do not work now, too: an agent before may have left something
                try:
                    if backend.name in self._held:
                        backend.apply(RuleSet())
                    backend.release()
                except (GarrisonError, OSError) as err:
                    self._trouble = f"{backend.name} could not let go of its rules: {err}"
                    _log.error("backend=%s released=no error=%s", backend.name, err)
            self._held.clear()
            return not self._trouble

    def set_workloads(self, workloads: Sequence[Workload]) -> None:
        """Tell every backend what runs on this node; what one cannot take is told by ``status`` until it can."""
        failed = ""
        for name, backend in self._working().items():
            try:
                backend.set_workloads(workloads)
            except GarrisonError as err:
                failed = f"{name} does not know all workloads, so rules for workloads may not hold in new ones: {err}"
                _log.error("backend=%s workloads=stale error=%s", name, err)
        self._unplaced = failed

    @property
    def rules(self) -> RuleSet:
        """The rules that are held; none before ``apply`` and after ``release``."""
        held = self._normalised
        return held.rules if held else _NO_RULES

    def watch_cgroups(self, take: Callable[[CgroupMade], None]) -> None:
        """Have every backend that sees cgroups being made tell ``take``, from a thread of its own."""
        for backend in self._working().values():
            backend.watch_cgroups(take)

    def status(self) -> list[EnforcerStatus]:
        """Return how each working backend is doing."""
        probes = self.probe()
        found = [backend.status() for backend in self._backends if probes[backend.name].ok]
        trouble = self._trouble or self._unplaced
        if not trouble:
            return found
        return [msgspec.structs.replace(s, healthy=False, detail=s.detail or trouble) for s in found]

    def close(self) -> None:
        """Stop enforcing. Idempotent."""
        self._closed = True
        self._reresolver.close()
        with self._lock:
            for backend in reversed(self._backends):
                backend.close()
            self._held.clear()

    # ---- apply -----------------------------------------------------------------------------------------------------------
    def _plan(self, normalised: Normalised) -> _Plan:
        rules, snapshot = _resolved(normalised.rules)
        routes = _routes(rules, self._compiled(rules))
        wanted = {
            name: msgspec.structs.replace(rules, rules=tuple(r for r in rules.rules if routes.get(r.entity) == name))
            for name in self._working()
        }
        return _Plan(wanted, routes, snapshot)

    def _applied(self, plan: _Plan, normalised: Normalised) -> tuple[RuleReport, ...]:
        reports = self._apply_all(plan.wanted)
        self._held = {name: rules for name, rules in plan.wanted.items() if rules.rules}
        self._normalised, self._trouble = normalised, ""
        self._reresolver.watch(plan.snapshot)
        return self._merged(normalised, plan.routes, reports)

    def _apply_all(self, wanted: Mapping[str, RuleSet]) -> dict[str, tuple[RuleReport, ...]]:
        reports: dict[str, tuple[RuleReport, ...]] = {}
        done: list[Enforcer] = []
        for backend in self._working().values():
            if not wanted[backend.name].rules and backend.name not in self._held:
                continue  # never used, and not needed: do not even start it
            try:
                reports[backend.name] = backend.apply(wanted[backend.name])
            except GarrisonError:
                self._roll_back(done)
                raise
            done.append(backend)
        return reports

    def _roll_back(self, done: Iterable[Enforcer]) -> None:
        for backend in done:
            try:
                backend.go_back(self._held.get(backend.name, RuleSet()))
            except (GarrisonError, OSError) as err:
                # The error that is being raised is the one to act on; this one is seen in the status.
                self._trouble = f"{backend.name} could not go back to the previous rules: {err}"
                _log.error("backend=%s rolled_back=no error=%s", backend.name, err)

    def _apply_again(self) -> bool:
        with self._lock:
            if self._closed or self._normalised is None:
                return True
            if self._before is not None:
                return False  # asked again in a few seconds
            try:
                self._applied(self._plan(self._normalised), self._normalised)
            except GarrisonError as err:
                self._trouble = f"rules could not be applied again after a link, file or mount had changed: {err}"
                _log.error("rules=stale error=%s", err)
                return False
            return True

    # ---- routing ---------------------------------------------------------------------------------------------------------
    def _working(self) -> dict[str, Enforcer]:
        probes = self.probe()
        return {backend.name: backend for backend in self._backends if probes[backend.name].ok}

    def _compiled(self, rules: RuleSet) -> dict[str, tuple[RuleReport, ...]]:
        return {name: backend.compile(rules) for name, backend in self._working().items()}

    @staticmethod
    def _merged(
        normalised: Normalised, routes: Mapping[Entity, str], reports: Mapping[str, tuple[RuleReport, ...]]
    ) -> tuple[RuleReport, ...]:
        owner = {rule.id: routes.get(rule.entity) for rule in normalised.rules.rules}
        spoken = [(name, [line for line in lines if owner.get(line.rule) == name]) for name, lines in reports.items()]
        return merge_reports(normalised.rules, spoken, normalised.inert)


def _resolved(rules: RuleSet) -> tuple[RuleSet, Snapshot]:
    """Return ``rules`` as the kernel names files, and what was looked at: once, so that no change falls in between."""
    watched = resolve(rules, lambda path: path).watched
    snapshot = look(watched)
    return resolve(rules, lambda path: snapshot.places[path.rstrip("/") or "/"][0]).rules, snapshot


def _routes(rules: RuleSet, reports: Mapping[str, tuple[RuleReport, ...]]) -> dict[Entity, str]:
    """Return for each entity the backend with the least bad lines, the earlier one of equals."""
    entity = {rule.id: rule.entity for rule in rules.rules}
    lines: dict[Entity, dict[str, Counter[str]]] = {}
    for name, of_backend in reports.items():
        for line in of_backend:
            if line.rule in entity:
                lines.setdefault(entity[line.rule], {}).setdefault(name, Counter())[line.status] += 1
    return {kind: min(of_kind, key=lambda name: _badness(of_kind[name])) for kind, of_kind in lines.items()}


def _badness(statuses: Counter[str]) -> tuple[int, ...]:
    return tuple(statuses[status] for status in _WORST_FIRST)
