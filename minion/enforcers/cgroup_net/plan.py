"""From a RuleSet to the rows that the kernel looks decisions up in. Pure.

Rules of this file:
- Nothing here decides: each cell of each row is what ``match.decide`` says for that program and that kind of socket.
- There is one row for programs that no rule names, one for programs whose path cannot be told, one for each program and two for
  each directory that rules name as a source: for programs directly in it and for those further below.
- The kernel takes the row of the program, else of its deepest directory, else the first. So each row also holds what rules on
  directories above say.
- Cost in the kernel: one hash of the path and one lookup a component, however many rules there are.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Final, NamedTuple

from garrison.bpf.pathhash import PathHasher
from garrison.common.errors import CompileError
from garrison.common.frames import RuleReport
from garrison.common.policy.match import Operation, decide, posture_of
from garrison.common.policy.protocols import socket_names
from garrison.common.policy.rules import Entity, HostScope, Mode, Posture, Postures, Protocol, Rule, RuleSet, RuleStatus, Verdict
from garrison.minion.enforcers.cgroup_net.layout import (
    CELLS,
    GROUPS,
    HAS_DIRECTORIES,
    NEEDS_PATH,
    SOCKET_TYPES,
    RowKind,
    cell_index,
    encode_cell,
    encode_key,
    encode_row,
)

__all__ = ["BACKEND", "SOURCE_DEPTH_MAX", "Plan", "make_plan", "report_rules"]

BACKEND: Final = "cgroup_net"
SOURCE_DEPTH_MAX: Final = 480  # WALK_STEPS of path_hash.h, less mounts on the way
_NOBODY: Final = "\0"  # a file name that no file can have: stands for "some other program"

_ONLY_IP: Final = "IPv4 and IPv6 sockets only; packet and other families are not seen"
_LIMITS: Final = {
    "raw": "raw IP sockets only; packet sockets (AF_PACKET) are not seen",
    "all": _ONLY_IP,
    "stream": _ONLY_IP,
    "dgram": _ONLY_IP,
    "seqpacket": _ONLY_IP,
}
_UNSEEN: Final = {
    "packet": "packet sockets have no cgroup hook; needs the bpf-lsm backend",
    "rdm": "no IPv4 or IPv6 socket is of this type, and others have no cgroup hook; needs the bpf-lsm backend",
}
_WORKLOAD: Final = "selects workloads by label; needs the bpf-lsm backend"


class Plan(NamedTuple):
    """One generation, ready for the kernel.

    Attributes:
        rules: What the numbers in cells and alerts mean.
        rows: Key → row.
    """

    rules: tuple[Rule, ...]
    rows: dict[bytes, bytes]


def report_rules(rules: RuleSet) -> tuple[RuleReport, ...]:
    """Return what becomes of each network rule here; other rules are left out."""
    return tuple(_report(rule, rules.postures) for rule in rules.rules if rule.entity is Entity.NETWORK)


def make_plan(rules: RuleSet, generation: int, hasher: PathHasher) -> Plan:
    """Return the rows that make the network rules of ``rules`` hold.

    Raises:
        CompileError: A network rule's target is no protocol.
    """
    held = tuple(rule for rule in rules.rules if rule.entity is Entity.NETWORK and isinstance(rule.scope, HostScope))
    for rule in held:
        if not isinstance(rule.target, Protocol):
            raise CompileError(f"rule {rule.id}: a network rule must name a protocol, not {rule.target!r}")
    table = _Table(RuleSet(rules=held, postures=rules.postures))
    programs, directories = table.programs, table.directories
    flags = (NEEDS_PATH if programs or directories else 0) | (HAS_DIRECTORIES if directories else 0)

    def row(source: str) -> bytes:
        return encode_row(generation, flags, table.cells(source))

    rows = {encode_key(RowKind.OTHER): row(_NOBODY), encode_key(RowKind.UNKNOWN): row("")}
    for path in programs:
        rows[encode_key(RowKind.PROGRAM, hasher.path(path))] = row(path)
    for directory in directories:
        number = hasher.path(directory)
        rows[encode_key(RowKind.DIRECT, number)] = row(directory + _NOBODY)
        rows[encode_key(RowKind.BELOW, number)] = row(f"{directory}{_NOBODY}/{_NOBODY}")
    return Plan(rules=held, rows=rows)


class _Table:
    """Decisions of one RuleSet by program; asks ``decide`` about few rules at a time."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        self._number = {rule.id: index for index, rule in enumerate(rules.rules)}
        self._free = [rule for rule in rules.rules if not rule.sources]
        self._by_source: dict[str, dict[str, Rule]] = {}
        for rule in rules.rules:
            for source in rule.sources:
                self._by_source.setdefault(source.value, {})[rule.id] = rule
        self.programs = sorted(value for value in self._by_source if not value.endswith("/"))
        self.directories = sorted(value for value in self._by_source if value.endswith("/"))

    def cells(self, source: str) -> list[int]:
        rules = RuleSet(rules=tuple(self._concerned(source)), postures=self._rules.postures)
        cells, known = [0] * CELLS, dict[frozenset[str], int]()
        for index, names in _SOCKETS:
            if names not in known:
                known[names] = self._decide(rules, names, source)
            cells[index] = known[names]
        return cells

    def _concerned(self, source: str) -> Iterator[Rule]:
        """Rules that may speak of ``source``: of an unknown one all, else those that name it or a directory above."""
        if not source:
            yield from self._rules.rules
            return
        found = {rule.id: rule for rule in self._free}
        for value in (source, *_directories_above(source)):
            found |= self._by_source.get(value, {})
        yield from sorted(found.values(), key=lambda rule: rule.id)

    def _decide(self, rules: RuleSet, names: frozenset[str], source: str) -> int:
        decision = decide(rules, Operation(entity=Entity.NETWORK, protocols=names, source=source))
        if decision.rule is None:
            return encode_cell(Verdict.ALLOW, 0, by_posture=False)
        return encode_cell(decision.verdict, self._number[decision.rule.id], by_posture=decision.by_posture)


def _directories_above(path: str) -> Iterator[str]:
    directory = posixpath.dirname(path)
    while True:
        yield directory if directory.endswith("/") else directory + "/"
        if directory in {"/", ""}:
            return
        directory = posixpath.dirname(directory)


def _sockets() -> Iterator[tuple[int, frozenset[str]]]:
    for kind in SOCKET_TYPES:
        for group, (protocol, family) in enumerate(GROUPS):
            yield cell_index(kind, group), socket_names(family, kind, protocol)


_SOCKETS: Final = tuple(_sockets())


def _report(rule: Rule, postures: Postures) -> RuleReport:
    name = rule.target.name if isinstance(rule.target, Protocol) else ""
    if not isinstance(rule.scope, HostScope):
        return _line(rule, RuleStatus.IMPOSSIBLE, _WORKLOAD)
    if name in _UNSEEN:
        return _line(rule, RuleStatus.IMPOSSIBLE, _UNSEEN[name])
    if name in _LIMITS:
        return _line(rule, RuleStatus.DEGRADED, _LIMITS[name])
    if any(source.value.count("/") > SOURCE_DEPTH_MAX for source in rule.sources):
        return _line(
            rule, RuleStatus.DEGRADED, f"a source lies deeper than {SOURCE_DEPTH_MAX} components: programs there count as unknown"
        )
    return _line(rule, RuleStatus.ENFORCED if _refuses(rule, postures) else RuleStatus.AUDITED, "")


def _refuses(rule: Rule, postures: Postures) -> bool:
    """Whether anything can be refused by it: a block, or an allow-list whose posture is to block."""
    if rule.mode is not Mode.ENFORCE or rule.verdict is Verdict.AUDIT:
        return False
    return rule.verdict is Verdict.BLOCK or posture_of(postures, rule.entity) is Posture.BLOCK


def _line(rule: Rule, status: RuleStatus, reason: str) -> RuleReport:
    return RuleReport(rule=rule.id, status=status, backend=BACKEND, reason=reason)
