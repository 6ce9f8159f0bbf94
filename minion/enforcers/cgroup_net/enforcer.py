"""Network rules by programs on a cgroup: connect, sendmsg, bind and socket, IPv4 and IPv6.

Rules of this file:
- A generation is one map of rows, put in place by one pointer: every decision is made by exactly one generation.
- Fail-closed in the kernel: a program whose path cannot be told counts as the source of block rules, and never of allow rules.
- Fail-open with the agent: programs are detached when it ends; the stack reports that.
- The agent's own traffic is never refused: without its link no better policy could come.
- A full ring changes no decision; lost alerts are counted by rule and stand in ``status``.
Owns: the programs' life, generations, alerts. Does not own: what rules mean (``plan`` asks ``match``), bytes (``layout``).

Known limits, which no report can tell from outside: sockets that were connected before the rules came go on; ``listen`` without
``bind`` takes a random port unseen; a process with a mount namespace of its own may mount its program on another's path.
"""

from __future__ import annotations

import logging
import secrets
import struct
import threading
import time
from collections import Counter
from pathlib import Path
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
from garrison.minion.enforcers.cgroup_net.layout import COUNTERS, ROW_BYTES, NetRecord, decode_event, rule_of
from garrison.minion.enforcers.cgroup_net.plan import BACKEND, Plan, make_plan, report_rules
from garrison.minion.enforcers.program_row import KEY_BYTES

__all__ = ["HOOKS", "CgroupNetEnforcer"]

HOOKS: Final = (
    "net_connect4", "net_connect6", "net_sendmsg4", "net_sendmsg6", "net_bind4", "net_bind6", "net_sock_create",
)  # fmt: skip
_KEPT_GENERATIONS: Final = 8  # whose alerts may still be in the ring
_ZERO: Final = bytes(4)
_DROP_KEY: Final = struct.Struct("=II")

_log = logging.getLogger(__name__)


class CgroupNetEnforcer(Enforcer):
    """Makes network rules hold for the processes of one cgroup and all below.

    Args:
        emit: Takes alerts.
        cgroup: Directory of the cgroup; the root of cgroup v2 when not given.
        ring_bytes: Size of the alert ring; a power of two and whole pages.
    """

    name = BACKEND

    def __init__(self, emit: Emit, *, cgroup: Path | None = None, ring_bytes: int = 1 << 20) -> None:
        self._emit, self._wanted_cgroup, self._ring_bytes = emit, cgroup, ring_bytes
        self._hasher = PathHasher(secrets.token_bytes(HASH_KEY_BYTES))
        self._lock = threading.Lock()  # apply and close against status
        self._probe: Probe | None = None
        self._object: Object | None = None
        self._reader: RingReader | None = None
        self._names: CgroupNames | None = None
        self._generation = 0
        self._rules: dict[int, tuple[Rule, ...]] = {}
        self._lost: Counter[str] = Counter()
        self._unknown = 0

    # ---- Enforcer ------------------------------------------------------------------------------------------------------
    def probe(self) -> Probe:
        """Load all programs and attach them to the cgroup, without rules, once."""
        if self._probe is None:
            try:
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
        """Return what becomes of each network rule."""
        return report_rules(rules)

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Enforce the network rules of ``rules`` from the next socket call on."""
        if not (probe := self.probe()).ok:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}")
        with self._lock:
            plan = make_plan(rules, self._generation + 1, self._hasher)
            if plan.rules:
                self._put(plan)
            else:
                self._detach()
        return report_rules(rules)

    def status(self) -> EnforcerStatus:
        """Return figures since the agent started, lost alerts by rule among them."""
        with self._lock:
            counters = self._counters()
            reader = self._reader
        failed = reader.failed if reader else 0
        counters |= {"unhandled": failed + self._unknown}
        if reader is not None and not reader.alive:
            return EnforcerStatus(backend=BACKEND, healthy=False, detail="alerts are no longer read", counters=counters)
        if reader is not None and not self.cgroup.is_dir():  # the kernel detached the programs with it
            return EnforcerStatus(backend=BACKEND, healthy=False, detail=f"{self.cgroup} is gone", counters=counters)
        return EnforcerStatus(backend=BACKEND, healthy=True, counters=counters)

    def close(self) -> None:
        """Detach. Alerts that are still in the ring are handed over."""
        with self._lock:
            self._detach()

    # ---- programs ------------------------------------------------------------------------------------------------------
    @property
    def cgroup(self) -> Path:
        """The cgroup's directory."""
        return self._wanted_cgroup or cgroup2_root()

    @property
    def loaded(self) -> Object | None:
        """What is loaded and attached, for benches and tests; ``None`` while no network rule is held."""
        return self._object

    def _load(self) -> Object:
        made = Object(object_path("cgroup_net"))
        try:
            made.set_rodata(self._hasher.rodata)
            made.set_max_entries("events", self._ring_bytes)
            made.load()
            made.programs["note_agent"].run()
        except BaseException:
            made.close()
            raise
        return made

    def _attach(self, made: Object) -> None:
        for hook in HOOKS:
            made.programs[hook].attach_cgroup(self.cgroup)

    def _put(self, plan: Plan) -> None:
        made = self._object or self._load()
        number = self._generation + 1
        try:
            rows = BpfMap.create(MapType.HASH, KEY_BYTES, ROW_BYTES, len(plan.rows), name="rows", flags=NO_PREALLOC)
            try:
                rows.update_batch(plan.rows)
                self._rules[number] = plan.rules
                made.maps["generation"].update(_ZERO, struct.pack("=I", rows.fd))
            finally:
                rows.close()  # the outer map holds it
            if self._object is None:
                self._names = CgroupNames(cgroup2_root())
                self._reader = RingReader(made.maps["events"], self._on_record, name="cgroup-net-alerts")
                self._attach(made)
        except BaseException:
            if self._object is None:
                self._end(made)
            self._rules.pop(number, None)
            raise
        self._object, self._generation = made, number
        self._rules.pop(number - _KEPT_GENERATIONS, None)

    def _detach(self) -> None:
        if self._object is not None:
            self._lost.update(self._counters(fresh=True))
            self._end(self._object)
            self._object = None

    def _end(self, made: Object) -> None:
        # Programs first: nothing more is written, and what was written is still read.
        made.detach()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._names is not None:
            self._names.close()
            self._names = None
        made.close()

    # ---- figures -------------------------------------------------------------------------------------------------------
    def _counters(self, *, fresh: bool = False) -> dict[str, int]:
        total: Counter[str] = Counter() if fresh else Counter(self._lost)
        if self._object is not None:
            maps = self._object.maps
            for index, name in enumerate(COUNTERS):
                total[name] += maps["counters"].lookup_sum(struct.pack("=I", index))
            for key in list(maps["drops"].keys()):
                generation, number = _DROP_KEY.unpack(key)
                total[f"dropped.{self._rule_id(generation, number)}"] += struct.unpack(
                    "=Q", maps["drops"].lookup(key) or bytes(8)
                )[0]
        return dict(total)

    def _rule_id(self, generation: int, number: int) -> str:
        rules, index = self._rules.get(generation, ()), rule_of(number)[0]
        return rules[index].id if index < len(rules) else f"generation-{generation}"

    # ---- alerts --------------------------------------------------------------------------------------------------------
    def _on_record(self, raw: bytes) -> None:
        record = decode_event(raw)
        rules = self._rules.get(record.generation, ())
        if record.rule >= len(rules):
            self._unknown += 1
            _log.error("alert=unnamed generation=%d rule=%d", record.generation, record.rule)
            return
        self._emit(alert(record, rules[record.rule], self._actor(record)))

    def _actor(self, record: NetRecord) -> Actor:
        who = record.actor
        cgroup = self._names.path(who.cgroup_id) if self._names else ""
        # What is not in the record comes from /proc, if the process is still there and still the same program.
        alive = who.pid > 0 and proc_link(who.pid, "exe") == record.exe
        raw = proc_args(who.pid) if alive else b""
        return Actor(
            pid=who.pid or -1,
            ppid=who.ppid if who.pid else -1,
            exe=record.exe or who.comm,
            args=cut_args(raw, len(raw))[0],
            cwd=proc_link(who.pid, "cwd") if alive else "",
            uid=who.uid,
            auid=who.auid,
            ses=who.ses,
            tty=who.tty,
            unit=unit_of(cgroup),
            container=container_of(cgroup),
        )


def alert(record: NetRecord, rule: Rule, actor: Actor) -> Event:
    """Return the event of one decision."""
    data: dict[str, Scalar | list[Scalar]] = {
        "message": rule.message,
        "tags": list(rule.tags),
        "by_posture": record.by_posture or None,
    }
    return Event(
        ts=time.time_ns() - (time.monotonic_ns() - record.actor.mono_ns),
        mono=record.actor.mono_ns,
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity,
        actor=actor,
        object=record.object,
        operation=record.operation,
        verdict=record.verdict.value,
        result="EPERM" if record.verdict is Verdict.BLOCK else "passed",
        policy=rule.policy,
        rule=rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value},
    )


def _reason(err: BaseException) -> str:
    hint = getattr(err, "hint", "")
    last = hint.splitlines()[-1] if hint else ""
    return f"{err} ({last})" if last else str(err)
