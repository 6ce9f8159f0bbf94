"""Decisions of the LSM programs as events. Layout: ``struct decision_event`` of ``bpf/include/telling.h``."""

from __future__ import annotations

import struct
import time
from typing import Final, NamedTuple

from garrison.bpf.cgroups import container_of, unit_of
from garrison.bpf.records import ACTOR_BYTES, ActorRecord, cut_args, decode_actor, decode_names, proc_args, proc_link
from garrison.common.errors import FrameError
from garrison.common.events import Actor, Event, Kind, Lane, Scalar
from garrison.common.policy.rules import Entity, Other, Rule, Verdict
from garrison.minion.enforcers.bpf_lsm.report import BACKEND

__all__ = [
    "COUNTERS",
    "TAMPER_BYTES",
    "TAMPER_RULES",
    "VERDICTS",
    "DecisionRecord",
    "TamperRecord",
    "alert",
    "attempts_summary",
    "decode_decision",
    "decode_tamper",
    "lowered_event",
    "summary",
    "tamper_event",
]

# enum counter
COUNTERS: Final = ("decisions", "blocks", "audits", "lost", "lost_unnamed", "unresolved", "table_errors", "walks", "suppressed")
# enum operation
_OPERATIONS: Final = (
    "exec",
    "open",
    "map",
    "unlink",
    "rename",
    "link",
    "create",
    "setattr",
    "truncate",
    "map_shared",
    "receive",
    "exec",
    "map_anonymous",
    "follow",
    "ptrace",
)
_EXEC_KILLED: Final = 11
_SUMMARY: Final = "summary"
VERDICTS: Final = (Verdict.ALLOW, Verdict.ALLOW, Verdict.AUDIT, Verdict.BLOCK)  # enum verdict
_NAMES: Final = 1024 + 256
_FIXED: Final = struct.Struct(f"={ACTOR_BYTES}sIIBBxxIIii4xQQI4x")
_RECORD_BYTES: Final = _FIXED.size + 2 * _NAMES
_TAMPER: Final = struct.Struct(f"={ACTOR_BYTES}sIIIiQ")
TAMPER_BYTES: Final = _TAMPER.size + _NAMES
# enum attempt: operation, and what it was done to; %d is a number of the kernel's, or of a signal
_ATTEMPTS: Final = (
    ("unpin", "pins"),
    ("umount", "pins"),
    ("open", "map %d"),
    ("open", "program %d"),
    ("ptrace", "agent"),
    ("signal %d", "agent"),
)
_TAMPER_SEVERITY: Final = 9
TAMPER_RULES: Final = 1  # rule number of the first of them, in generation 0


class DecisionRecord(NamedTuple):
    """One decision as the kernel told it. ``path`` and ``exe`` begin with ``[...]`` where they were cut."""

    actor: ActorRecord
    generation: int
    operation: str
    verdict: Verdict
    by_posture: bool
    rule: int
    exe: str
    path: str
    inode: int
    device: int
    killed: bool = False  # it could not be refused any more: the program was ended before its first instruction
    repeats: int = 0  # like operations that were only counted since the last record
    suppressed: int = 0  # events of the rule that were only counted so far
    server: str = ""  # of a query


def decode_decision(raw: bytes) -> DecisionRecord:
    """Return the decision in ``raw``.

    Raises:
        FrameError: It has another size, or numbers that the programs never write.
    """
    if len(raw) != _RECORD_BYTES:
        raise FrameError(f"decision of {len(raw)} bytes, {_RECORD_BYTES} expected")
    head, generation, operation, verdict, posture, rule, _, *used, inode, suppressed, device = _FIXED.unpack_from(raw)
    if operation >= len(_OPERATIONS) or verdict >= len(VERDICTS):
        raise FrameError(f"decision about operation {operation} with verdict {verdict}")
    exe = raw[_FIXED.size : _FIXED.size + _NAMES]
    path = raw[_FIXED.size + _NAMES :]
    return DecisionRecord(
        actor=decode_actor(head),
        generation=generation,
        operation=_OPERATIONS[operation],
        verdict=VERDICTS[verdict],
        by_posture=bool(posture),
        rule=rule,
        exe=decode_names(exe, used[0])[0],
        path=decode_names(path, used[1])[0],
        inode=inode,
        device=device,
        killed=operation == _EXEC_KILLED,
        suppressed=suppressed,
    )


def alert(record: DecisionRecord, rule: Rule, cgroup: str, *, more: int = 0) -> Event:
    """Return the event of one decision, which stands for ``more`` others of its rule."""
    data: dict[str, Scalar | list[Scalar]] = {
        "message": rule.message,
        "tags": list(rule.tags),
        "by_posture": record.by_posture or None,
        "inode": record.inode or None,
        "server": record.server or None,
        "preset": rule.target.value if rule.entity is Entity.PRESET and isinstance(rule.target, Other) else None,
        "repeats": record.repeats + more or None,
    }
    return Event(
        ts=_wall_ns(record.actor.mono_ns),
        mono=record.actor.mono_ns,
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity,
        actor=_who(record.actor, record.exe, cgroup),
        object=record.path,
        operation=record.operation,
        verdict=record.verdict.value,
        result="SIGKILL" if record.killed else "EPERM" if record.verdict is Verdict.BLOCK else "passed",
        policy=rule.policy,
        rule=rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value},
    )


def summary(rule: Rule, verdict: Verdict, count: int) -> Event:
    """Return the event that stands for ``count`` decisions which no event of their rule followed."""
    data: dict[str, Scalar | list[Scalar]] = {"message": rule.message, "tags": list(rule.tags), "repeats": count}
    return Event(
        ts=time.time_ns(),
        mono=time.monotonic_ns(),
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity,
        operation=_SUMMARY,
        verdict=verdict.value,
        result="EPERM" if verdict is Verdict.BLOCK else "passed",
        policy=rule.policy,
        rule=rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value},
    )


class TamperRecord(NamedTuple):
    """One attempt to weaken enforcement, as the kernel told it."""

    number: int

    actor: ActorRecord
    operation: str
    target: str
    refused: bool
    exe: str
    suppressed: int


def decode_tamper(raw: bytes) -> TamperRecord:
    """Return the attempt in ``raw``, which has ``TAMPER_BYTES``.

    Raises:
        FrameError: It holds numbers that the programs never write.
    """
    head, attempt, refused, detail, exe_used, suppressed = _TAMPER.unpack_from(raw)
    if attempt >= len(_ATTEMPTS):
        raise FrameError(f"attempt {attempt} at the agent")
    operation, target = (text.replace("%d", str(detail)) for text in _ATTEMPTS[attempt])
    exe = decode_names(raw[_TAMPER.size :], exe_used)[0]
    return TamperRecord(attempt, decode_actor(head), operation, target, bool(refused), exe, suppressed)


def tamper_event(record: TamperRecord, cgroup: str, *, more: int = 0) -> Event:
    """Return the event of one attempt, which stands for ``more`` others."""
    return Event(
        ts=_wall_ns(record.actor.mono_ns),
        mono=record.actor.mono_ns,
        lane=Lane.ALERT,
        kind=Kind.TAMPER,
        severity=_TAMPER_SEVERITY,
        actor=_who(record.actor, record.exe, cgroup),
        object=record.target,
        operation=record.operation,
        verdict=(Verdict.BLOCK if record.refused else Verdict.AUDIT).value,
        result="EPERM" if record.refused else "passed",
        backend=BACKEND,
        data={"repeats": more} if more else {},
    )


def lowered_event(before: str, now: str) -> Event:
    """Return the event that says that attempts are taken less seriously than by the agent before, by its settings."""
    return Event(
        ts=time.time_ns(),
        mono=time.monotonic_ns(),
        lane=Lane.ALERT,
        kind=Kind.TAMPER,
        severity=_TAMPER_SEVERITY,
        object="tamper",
        operation="lower",
        verdict=Verdict.AUDIT.value,
        result="passed",
        backend=BACKEND,
        data={"state": "lowered", "detail": f"the setting tamper was {before} and is {now} since the agent's restart"},
    )


def attempts_summary(number: int, verdict: Verdict, count: int) -> Event:
    """Return the event that stands for ``count`` attempts of one kind which no event followed."""
    operation, target = (text.partition(" ")[0] for text in _ATTEMPTS[number])
    return Event(
        ts=time.time_ns(),
        mono=time.monotonic_ns(),
        lane=Lane.ALERT,
        kind=Kind.TAMPER,
        severity=_TAMPER_SEVERITY,
        object=target,
        operation=operation,
        verdict=verdict.value,
        result="EPERM" if verdict is Verdict.BLOCK else "passed",
        backend=BACKEND,
        data={"repeats": count},
    )


def _wall_ns(mono_ns: int) -> int:
    return time.time_ns() - (time.monotonic_ns() - mono_ns)


def _who(who: ActorRecord, exe: str, cgroup: str) -> Actor:
    """What is not in the record comes from /proc while the process still is what it was."""
    alive = who.pid > 0 and proc_link(who.pid, "exe") == exe
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
