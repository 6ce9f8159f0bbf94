"""From a RuleSet to the rows that the kernel looks decisions up in. Pure.

Rules of this file:
- Nothing here decides: each cell of each row is what ``match.decide`` says for that program and that kind of socket.
- Which rows there are, and for whom, says ``program_row``.
- Cost in the kernel: one hash of the path and one lookup a component, however many rules there are.
"""

from __future__ import annotations

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
    SOCKET_TYPES,
    cell_index,
    encode_cell,
    encode_row,
)
from garrison.minion.enforcers.program_row import SOURCE_DEPTH_MAX, directories_above, encode_key, flags_of, samples_of

__all__ = ["BACKEND", "Plan", "make_plan", "report_rules"]

BACKEND: Final = "cgroup_net"

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
    flags = flags_of(table.sources)
    rows = {
        encode_key(kind, hasher.path(source) if source else 0): encode_row(generation, flags, table.cells(sample))
        for kind, source, sample in samples_of(table.sources)
    }
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
        self.sources = frozenset(self._by_source)

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
        for value in (source, *directories_above(source)):
            found |= self._by_source.get(value, {})
        yield from sorted(found.values(), key=lambda rule: rule.id)

    def _decide(self, rules: RuleSet, names: frozenset[str], source: str) -> int:
        decision = decide(rules, Operation(entity=Entity.NETWORK, protocols=names, source=source))
        if decision.rule is None:
            return encode_cell(Verdict.ALLOW, 0, by_posture=False)
        return encode_cell(decision.verdict, self._number[decision.rule.id], by_posture=decision.by_posture)


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
