"""Turns the responder's records into events.

Rules of this file:
- The responder tells what it saw while the process waited; arguments and cgroup are read afterwards and only kept if the process
  is still the same one (start time), so an event may lack them but never has another's.
- A record of a generation that is not known any more still becomes an event, without the rule's text.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import Actor, Event, Kind, Lane, Scalar
from garrison.common.policy.rules import Rule, Verdict
from garrison.minion.enforcers.fanotify.reports import NAME
from garrison.minion.enforcers.fanotify.table import VERDICTS

__all__ = ["RECORD_MAX_BYTES", "Flag", "Lapse", "Record", "Type", "decode_record", "event_of"]

_HEAD: Final = struct.Struct("<IIIBBHiiiiiiiIQQQHHHxx")  # struct record in wire.h
RECORD_MAX_BYTES: Final = _HEAD.size + 2 * limits.PATH_MAX_BYTES + 1024
_ARGS_MAX_BYTES: Final = 2048  # with two paths of PATH_MAX the event stays below EVENT_MAX_BYTES
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")
_OPERATIONS: Final = ("exec", "open")


class Type(IntEnum):
    """Kinds of records."""

    ALERT = 1
    DROPPED = 2
    LAPSE = 3


class Lapse(IntEnum):
    """What happened to the worker."""

    HUNG = 1
    ENDED = 2
    RESTART_FAILED = 3
    RESTARTED = 4


class Flag(IntFlag):
    """Details of an alert."""

    BY_POSTURE = 1
    WRITE = 2
    EXEMPT = 4
    PATH_UNKNOWN = 8
    SOURCE_UNKNOWN = 16


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record, field by field as in ``wire.h``."""

    type: int
    generation: int
    rule: int
    entity: int
    verdict: int
    flags: Flag
    pid: int
    ppid: int
    uid: int
    auid: int
    ses: int
    tty: int
    status: int
    count: int
    start_ticks: int
    ts: int
    mono: int
    path: str
    exe: str
    cwd: str


def decode_record(raw: bytes) -> Record:
    """Return the record in ``raw``.

    Raises:
        FrameError: It is not one.
    """
    if len(raw) < _HEAD.size:
        raise FrameError(f"a record of the responder has {len(raw)} bytes")
    *fields, path_len, exe_len, cwd_len = _HEAD.unpack_from(raw)
    texts, at = [], _HEAD.size
    for length in (path_len, exe_len, cwd_len):
        texts.append(os.fsdecode(raw[at : at + length]).encode(errors="replace").decode())
        at += length
    fields[5] = Flag(fields[5])
    record = Record(**dict(zip(Record.__struct_fields__, [*fields, *texts], strict=True)))
    if at != len(raw) or not _is_known(record):
        raise FrameError("a record of the responder does not hold what it says")
    return record


def _is_known(record: Record) -> bool:
    if record.type == Type.LAPSE:
        return record.status in set(Lapse)
    return record.type in set(Type) and record.entity < len(_OPERATIONS) and record.verdict < len(VERDICTS)


def event_of(record: Record, rules: Mapping[int, Sequence[Rule]]) -> Event:
    """Return the event for ``record``; ``rules`` are those of each generation, in the table's order."""
    known = rules.get(record.generation, ())
    rule = known[record.rule] if record.rule < len(known) else None
    if record.type == Type.LAPSE:
        return _lapse(record)
    if record.type == Type.DROPPED:
        return _gap(record, rule)
    return _alert(record, rule)


def _alert(record: Record, rule: Rule | None) -> Event:
    verdict = VERDICTS[record.verdict]
    return Event(
        ts=record.ts,
        mono=record.mono,
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity if rule else 1,
        actor=_actor(record),
        object=record.path,
        operation=_OPERATIONS[record.entity],
        verdict=verdict,
        result="EPERM" if verdict is Verdict.BLOCK else "passed",
        policy=rule.policy if rule else "",
        rule=rule.id if rule else "",
        backend=NAME,
        data=_details(record, rule),
    )


def _details(record: Record, rule: Rule | None) -> dict[str, Scalar | list[Scalar]]:
    data: dict[str, Scalar | list[Scalar]] = {}
    if rule is not None and rule.message:
        data["message"] = rule.message
    if rule is not None and rule.tags:
        data["tags"] = list(rule.tags)
    data |= {flag.name.lower(): True for flag in Flag if flag in record.flags and flag.name}
    return data


def _gap(record: Record, rule: Rule | None) -> Event:
    return Event(
        ts=record.ts,
        mono=record.mono,
        lane=Lane.ALERT,
        kind=Kind.GAP,
        severity=7,
        policy=rule.policy if rule else "",
        rule=rule.id if rule else "",
        backend=NAME,
        data={"count": record.count, "first_seq": 0, "last_seq": 0, "reason": "the alert queue was full; enforcement went on"},
    )


def _lapse(record: Record) -> Event:
    texts = {
        Lapse.HUNG: f"the responder did not turn for {record.count} ms and was killed; pending opens were let go",
        Lapse.ENDED: "the responder was killed or ended; pending opens were let go",
        Lapse.RESTART_FAILED: f"the responder cannot be started again: {os.strerror(record.count)}; nothing is refused",
        Lapse.RESTARTED: "the responder runs again with the last rules",
    }
    lapse = Lapse(record.status)
    return Event(
        ts=record.ts,
        mono=record.mono,
        lane=Lane.ALERT,
        kind=Kind.TAMPER,
        severity=3 if lapse is Lapse.RESTARTED else 9,
        backend=NAME,
        data={"state": lapse.name.lower().replace("_", "-"), "reason": texts[lapse], "pid": record.pid},
    )


def _actor(record: Record) -> Actor:
    args, cgroup = _afterwards(record)
    container = _CONTAINER.search(cgroup)
    return Actor(
        pid=record.pid,
        ppid=record.ppid,
        exe=record.exe,
        args=args,
        cwd=record.cwd,
        uid=record.uid,
        auid=record.auid,
        ses=record.ses,
        tty=_tty(record.tty),
        unit=cgroup,
        container=container.group() if container else "",
    )


def _afterwards(record: Record) -> tuple[tuple[str, ...], str]:
    """Return arguments and cgroup of the process if it is still there."""
    place = Path("/proc") / str(record.pid)
    try:
        args = (place / "cmdline").read_bytes()[:_ARGS_MAX_BYTES]
        groups = (place / "cgroup").read_text(errors="replace")
        start = int((place / "stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return (), ""
    if start != record.start_ticks:
        return (), ""
    texts = args.rstrip(b"\0").decode(errors="replace").split("\0") if args else []
    cut = tuple(text[: limits.EVENT_ARG_MAX_CHARS] for text in texts[: limits.EVENT_ARGS_MAX])
    return cut, next((line[3:] for line in groups.splitlines() if line.startswith("0::")), "")


_PTS_MAJOR, _PTS_MAJORS, _VT_MAJOR = 136, 8, 4  # Source: Documentation/admin-guide/devices.txt


def _tty(number: int) -> str:
    """Return the name of a terminal from ``tty_nr`` of ``/proc/PID/stat``. Source: proc(5)."""
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    if _PTS_MAJOR <= major < _PTS_MAJOR + _PTS_MAJORS:
        return f"pts/{minor + 256 * (major - _PTS_MAJOR)}"
    if major == _VT_MAJOR:
        return f"tty{minor}"
    return f"{major}:{minor}" if number > 0 else ""
