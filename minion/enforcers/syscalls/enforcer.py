"""System call rules by raw tracepoints: every call that a rule speaks of, with its paths and what came of it. Refuses nothing.

Rules of this file:
- Programs are attached only while such rules are held: attaching slows every system call of the machine.
- What a rule means is ``match.decide``, asked here for each call that the kernel's filter lets through.
- Between two generations a call is filtered by either, and judged by the one that filtered it.
- Workloads come and go without a new generation, unless they are selected in a way that the present one does not know.
- A full ring loses records, never calls; what is lost is counted by the rules that may have spoken of it.
Owns: the programs' life, generations, alerts. Does not own: filters and reports (``plan``), names of paths (``paths``), bytes.
"""

from __future__ import annotations

import errno
import logging
import platform
import secrets
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from garrison.bpf.cgroups import CgroupNames, cgroup2_root, container_of, unit_of
from garrison.bpf.loader import NO_PREALLOC, BpfMap, MapType, Object, object_path
from garrison.bpf.pathhash import KEY_BYTES as HASH_KEY_BYTES
from garrison.bpf.pathhash import PathHasher
from garrison.bpf.records import cut_args, proc_args, proc_link
from garrison.bpf.ring import RingReader
from garrison.common.errors import BackendUnsupportedError, GarrisonError
from garrison.common.events import Actor, Event, Kind, Lane, Scalar
from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Rule, RuleSet, Verdict
from garrison.minion.enforcers.base import Emit, Enforcer, EnforcerStatus, Probe
from garrison.minion.enforcers.program_row import KEY_BYTES
from garrison.minion.enforcers.syscalls.callers import Callers
from garrison.minion.enforcers.syscalls.layout import (
    COUNTERS,
    DROP_KEY,
    ROW_BYTES,
    CallRecord,
    decode_call,
    encode_bits,
)
from garrison.minion.enforcers.syscalls.numbers import NUMBERS
from garrison.minion.enforcers.syscalls.paths import names_of
from garrison.minion.enforcers.syscalls.plan import Plan, make_plan
from garrison.minion.enforcers.syscalls.report import BACKEND, report_rules
from garrison.minion.enforcers.syscalls.shapes import KEEPS_LINK, encode_shape
from garrison.minion.workloads.model import Workload

__all__ = ["SyscallsEnforcer"]

HOOKS: Final = (
    "call_fork",
    "call_leave",
    "call_enter",
)  # the way out before the way in, so that no call is begun and never ended
_EXECS: Final = ("execve", "execveat")  # either returns as the former
_KEPT_GENERATIONS: Final = 8  # whose records may still be in the ring, and calls that have not returned yet
_ZERO: Final = bytes(4)
_NOWHERE: Final = " (deleted)"  # d_path() says so
_ERRNO_MAX: Final = 4095  # MAX_ERRNO
_RESTARTED: Final = range(512, 517)  # ERESTARTSYS and its kin: a signal came, the kernel makes the call again

_log = logging.getLogger(__name__)


class SyscallsEnforcer(Enforcer):
    """Reports system calls that rules speak of.

    Args:
        emit: Takes alerts.
        ring_bytes: Size of the ring; a power of two and whole pages.
    """

    name = BACKEND

    def __init__(self, emit: Emit, *, ring_bytes: int = 4 << 20) -> None:
        self._emit, self._ring_bytes = emit, ring_bytes
        self._machine = platform.machine()
        self._numbers: Mapping[str, int] = NUMBERS.get(self._machine, {})
        self._call_names = {number: name for name, number in self._numbers.items()}
        self._hasher = PathHasher(secrets.token_bytes(HASH_KEY_BYTES))
        self._callers = Callers(self._hasher)
        self._lock = threading.Lock()  # apply, workloads and close against status
        self._probe: Probe | None = None
        self._object: Object | None = None
        self._reader: RingReader | None = None
        self._names: CgroupNames | None = None
        self._generation = 0
        self._rules = RuleSet()
        self._plans: dict[int, Plan] = {}
        self._leaving: set[int] = set()
        self._lost: Counter[str] = Counter()
        self._audited = self._passed = self._unhandled = 0

    # ---- Enforcer ------------------------------------------------------------------------------------------------------
    def probe(self) -> Probe:
        """Load all programs and attach them, without rules, once."""
        if self._probe is None:
            try:
                if not self._numbers:
                    raise BackendUnsupportedError(f"system calls of {self._machine} are not known here")
                loaded = self._load()
                try:
                    self._attach(loaded)
                finally:
                    loaded.close()
                self._probe = Probe(ok=True)
            except (GarrisonError, OSError) as err:
                self._probe = Probe(ok=False, reason=_reason(err))
        return self._probe

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return what becomes of each system call rule."""
        return report_rules(rules, self._numbers, self._machine, self._callers.matched(rules), self._callers.shortage)

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Watch for the system call rules of ``rules`` from the next call on."""
        if not (probe := self.probe()).ok:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}")
        with self._lock:
            self._switch(rules)
        return self.compile(rules)

    def set_workloads(self, workloads: Sequence[Workload]) -> None:
        """Take these for all workloads of the node, from the next call on.

        Raises:
            KernelError: The kernel refused; the previous ones still hold.
        """
        with self._lock, self._callers.told(workloads) as news:
            if not news or self._object is None:  # else the next rules bring them
                return
            if self._callers.are_new(self._rules):
                self._switch(self._rules)
            else:
                self._callers.settle(self._object, self._rules)

    def _switch(self, rules: RuleSet) -> None:
        plan = make_plan(rules, self._generation + 1, self._hasher, self._numbers, self._callers.placed(rules))
        if plan.rules:
            self._put(plan)
        else:
            self._detach()
        self._rules = rules

    def status(self) -> EnforcerStatus:
        """Return figures since the agent started, lost records by rule among them."""
        with self._lock:
            counters = self._counters()
            reader = self._reader
        failed = self._unhandled + (reader.failed if reader else 0)
        counters |= {"audited": self._audited, "passed": self._passed, "unhandled": failed}
        healthy = reader is None or reader.alive
        detail = self._callers.shortage if healthy else "records are no longer read"
        healthy = not detail
        if healthy and counters.get("calls_32bit"):
            detail = f"{counters['calls_32bit']} 32-bit system calls were made, which rules do not cover"
        return EnforcerStatus(backend=BACKEND, healthy=healthy, detail=detail, counters=counters)

    def close(self) -> None:
        """Detach. Records that are still in the ring are judged."""
        with self._lock:
            self._detach()

    # ---- programs ------------------------------------------------------------------------------------------------------
    @property
    def loaded(self) -> Object | None:
        """What is loaded and attached, for benches and tests; ``None`` while no system call rule is held."""
        return self._object

    def _load(self) -> Object:
        made = Object(object_path("syscalls"))
        try:
            made.set_rodata(self._hasher.rodata)
            made.set_max_entries("records", self._ring_bytes)
            made.load()
            made.programs["note_agent"].run()
            made.maps["shapes"].update_batch({_u32(number): encode_shape(name) for name, number in self._numbers.items()})
        except BaseException:
            made.close()
            raise
        return made

    @staticmethod
    def _attach(made: Object) -> None:
        for hook in HOOKS:
            made.programs[hook].attach()

    def _put(self, plan: Plan) -> None:
        made = self._object or self._load()
        number = plan.generation
        self._plans[number] = plan
        try:
            self._swap(made, plan, self._plans.get(self._generation) if self._object is not None else None)
            if self._object is None:
                self._names = _cgroup_names()
                self._reader = RingReader(made.maps["records"], self._on_record, name="syscall-alerts")
                self._attach(made)
        except BaseException:
            self._plans.pop(number, None)
            if self._object is None:
                self._end(made)
            raise
        self._callers.hold(plan)
        self._object, self._generation = made, number
        self._plans.pop(number - _KEPT_GENERATIONS, None)

    def _swap(self, made: Object, plan: Plan, old: Plan | None) -> None:
        """Put ``plan`` in the place of ``old``: what either wants is let through until the rows have changed."""
        before = old.targets if old else frozenset[bytes]()
        for key in plan.targets - before:
            made.maps["targets"].update(key, b"\1")
        if old:
            self._want(made, {*plan.rules, *old.rules}, plan.sourced | old.sourced, plan.placed | old.placed)
        self._callers.fill(made, plan)
        rows = BpfMap.create(MapType.HASH, KEY_BYTES, ROW_BYTES, len(plan.rows), name="rows", flags=NO_PREALLOC)
        try:
            rows.update_batch(plan.rows)
            made.maps["generation"].update(_ZERO, struct.pack("=I", rows.fd))
        finally:
            rows.close()  # the outer map holds it
        self._want(made, set(plan.rules), plan.sourced, plan.placed)
        for key in before - plan.targets:
            made.maps["targets"].delete(key)

    def _want(self, made: Object, calls: set[int], sourced: frozenset[int], placed: frozenset[int]) -> None:
        self._leaving |= calls
        execs = {self._numbers[name] for name in _EXECS}
        leaving = self._leaving | (execs if execs & self._leaving else set())
        made.maps["wanted"].update(_ZERO, b"".join(map(encode_bits, (calls, leaving, sourced, placed))))

    def _detach(self) -> None:
        if self._object is not None:
            self._object.detach()
            self._lost.update(self._counters(fresh=True))
            self._end(self._object)
            self._object = None
            self._callers.hold(None)

    def _end(self, made: Object) -> None:
        # Programs first: nothing more is written, and what was written is still read.
        made.detach()
        if self._reader is not None:
            self._reader.close()
            self._unhandled += self._reader.failed
            self._reader = None
        if self._names is not None:
            self._names.close()
            self._names = None
        self._leaving.clear()
        made.close()

    # ---- figures -------------------------------------------------------------------------------------------------------
    def _counters(self, *, fresh: bool = False) -> dict[str, int]:
        total: Counter[str] = Counter() if fresh else Counter(self._lost)
        if self._object is not None:
            maps = self._object.maps
            for index, name in enumerate(COUNTERS):
                total[name] += maps["counters"].lookup_sum(_u32(index))
            for key in list(maps["drops"].keys()):
                generation, row, call = DROP_KEY.unpack(key)
                lost = struct.unpack("=Q", maps["drops"].lookup(key) or bytes(8))[0]
                plan = self._plans.get(generation)
                for rule in plan.suspects(row, call) if plan else (f"generation-{generation}",):
                    total[f"dropped.{rule}"] += lost
        return dict(total)

    # ---- alerts --------------------------------------------------------------------------------------------------------
    def _on_record(self, raw: bytes) -> None:
        record = decode_call(raw)
        plan = self._plans.get(record.generation)
        if plan is None:
            self._unhandled += 1
            _log.error("call=unjudged generation=%d call=%d", record.generation, record.call)
            return
        name, who = self._call_names[record.call], record.actor
        exe = record.exe or proc_link(who.pid, "exe")
        # Too long for the record is known all the same; what lies at no path (memfd, deleted directories) is an unknown source.
        source = exe if record.exe or not exe.endswith(_NOWHERE) else ""
        root = proc_link(who.pid, "root") if record.paths and who.pid else ""
        named = [names_of(path, pid=who.pid, root=root, keeps_link=name in KEEPS_LINK) for path in record.paths]
        paths = [path for names in named for path in names]
        found = plan.decide(record.call, name, source, paths, profile=record.profile, also=record.also)
        if found is None or found[0].rule is None:
            self._passed += 1
            return
        self._audited += 1
        written = [names[0] or path.text for names, path in zip(named, record.paths, strict=True)]
        self._emit(_alert(record, found[0].rule, self._actor(record, exe), f"{name} {found[1] or ''.join(written[:1])}", written))

    def _actor(self, record: CallRecord, exe: str) -> Actor:
        who = record.actor
        cgroup = self._names.path(who.cgroup_id) if self._names else ""
        # What is not in the record comes from /proc, if the process is still there and still the same program.
        alive = who.pid > 0 and bool(exe) and proc_link(who.pid, "exe") == exe
        raw = proc_args(who.pid) if alive else b""
        return Actor(
            pid=who.pid or -1,
            ppid=who.ppid if who.pid else -1,
            exe=exe or who.comm,
            args=cut_args(raw, len(raw))[0],
            cwd=proc_link(who.pid, "cwd") if alive else "",
            uid=who.uid,
            auid=who.auid,
            ses=who.ses,
            tty=who.tty,
            unit=unit_of(cgroup),
            container=container_of(cgroup),
        )


def _alert(record: CallRecord, rule: Rule, actor: Actor, what: str, paths: list[str]) -> Event:
    """Return the event of one call; ``data.returned`` is what it gave back when it did not fail."""
    result, returned = _outcome(record.result)
    data: dict[str, Scalar | list[Scalar]] = {
        "message": rule.message,
        "tags": list(rule.tags),
        "paths": list(paths) if len(paths) > 1 else None,
        "returned": returned or None,
    }
    return Event(
        ts=time.time_ns() - (time.monotonic_ns() - record.actor.mono_ns),
        mono=record.actor.mono_ns,
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity,
        actor=actor,
        object=what.rstrip(),
        operation="syscall",
        verdict=Verdict.AUDIT.value,
        result=result,
        policy=rule.policy,
        rule=rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value},
    )


def _outcome(result: int | None) -> tuple[str, int]:
    """Return what the process got, and the number when it did not fail; empty when the call does not come back."""
    if result is None:
        return "", 0
    if -result in _RESTARTED:
        return "EINTR", 0
    if -_ERRNO_MAX <= result < 0:
        return errno.errorcode.get(-result, f"errno {-result}"), 0
    return "passed", result


def _cgroup_names() -> CgroupNames | None:
    try:
        return CgroupNames(cgroup2_root())
    except GarrisonError as err:  # calls without their unit are worth more than none
        _log.warning("backend=%s units=unknown reason=%s", BACKEND, err)
        return None


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)


def _reason(err: BaseException) -> str:
    hint = getattr(err, "hint", "")
    last = hint.splitlines()[-1] if hint else ""
    return f"{err} ({last})" if last else str(err)
