"""Decisions of the LSM programs as events. Layout: ``struct decision_event`` of ``bpf/include/enforce.h``."""

from __future__ import annotations

import struct
import time
from typing import Final, NamedTuple

from garrison.bpf.cgroups import container_of, unit_of
from garrison.bpf.records import ACTOR_BYTES, ActorRecord, cut_args, decode_actor, decode_names, proc_args, proc_link
from garrison.common.errors import FrameError
from garrison.common.events import Actor, Event, Kind, Lane, Scalar
from garrison.common.policy.rules import Rule, Verdict
from garrison.minion.enforcers.bpf_lsm.report import BACKEND

__all__ = ["COUNTERS", "DecisionRecord", "alert", "decode_decision"]

COUNTERS: Final = ("decisions", "blocks", "audits", "lost", "lost_unnamed", "unresolved", "table_errors", "walks")  # enum counter
# enum operation
_OPERATIONS: Final = ("exec", "open", "map", "unlink", "rename", "link", "create", "setattr", "truncate", "map_shared", "receive")
_VERDICTS: Final = (Verdict.ALLOW, Verdict.ALLOW, Verdict.AUDIT, Verdict.BLOCK)  # enum verdict
_NAMES: Final = 1024 + 256
_FIXED: Final = struct.Struct(f"={ACTOR_BYTES}sIIBBxxIIii4xQI4x")
_RECORD_BYTES: Final = _FIXED.size + 2 * _NAMES


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


def decode_decision(raw: bytes) -> DecisionRecord:
    """Return the decision in ``raw``.

    Raises:
        FrameError: It has another size, or numbers that the programs never write.
    """
    if len(raw) != _RECORD_BYTES:
        raise FrameError(f"decision of {len(raw)} bytes, {_RECORD_BYTES} expected")
    head, generation, operation, verdict, posture, rule, _, exe_used, path_used, inode, device = _FIXED.unpack_from(raw)
    if operation >= len(_OPERATIONS) or verdict >= len(_VERDICTS):
        raise FrameError(f"decision about operation {operation} with verdict {verdict}")
    exe = raw[_FIXED.size : _FIXED.size + _NAMES]
    path = raw[_FIXED.size + _NAMES :]
    return DecisionRecord(
        actor=decode_actor(head),
        generation=generation,
        operation=_OPERATIONS[operation],
        verdict=_VERDICTS[verdict],
        by_posture=bool(posture),
        rule=rule,
        exe=decode_names(exe, exe_used)[0],
        path=decode_names(path, path_used)[0],
        inode=inode,
        device=device,
    )


def alert(record: DecisionRecord, rule: Rule, cgroup: str) -> Event:
    """Return the event of one decision. What is not in the record comes from /proc while the process still is what it was."""
    who = record.actor
    alive = who.pid > 0 and proc_link(who.pid, "exe") == record.exe
    raw = proc_args(who.pid) if alive else b""
    data: dict[str, Scalar | list[Scalar]] = {
        "message": rule.message,
        "tags": list(rule.tags),
        "by_posture": record.by_posture or None,
        "inode": record.inode or None,
    }
    return Event(
        ts=time.time_ns() - (time.monotonic_ns() - who.mono_ns),
        mono=who.mono_ns,
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity,
        actor=Actor(
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
        ),
        object=record.path,
        operation=record.operation,
        verdict=record.verdict.value,
        result="EPERM" if record.verdict is Verdict.BLOCK else "passed",
        policy=rule.policy,
        rule=rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value},
    )
