"""What becomes of each rule in the kernel enforcer, before anything is applied. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Entity, Mode, Other, Rule, RuleSet, RuleStatus, Verdict, WorkloadScope
from garrison.minion.enforcers.profiles import NO_WORKLOAD

__all__ = ["BACKEND", "report_rules"]

BACKEND: Final = "bpf_lsm"
_ENTITIES: Final = (Entity.PROCESS, Entity.FILE, Entity.NETWORK, Entity.CAPABILITY, Entity.DNS, Entity.PRESET)
_ARGUMENTS: Final = (
    "a program started with other arguments is killed before its first instruction, not refused; scripts count as started"
    " with other arguments"
)
_DOMAINS: Final = (
    "held for queries to port 53; not for DNS over TLS or HTTPS, nor where a local service is asked for a name in another way"
    " than by DNS (nss-resolve, nscd)"
)


def report_rules(rules: RuleSet, matched: Iterable[WorkloadScope] = (), shortage: str = "") -> tuple[RuleReport, ...]:
    """Return a report for every rule of a kind that this enforcer knows.

    Args:
        rules: What is held.
        matched: Scopes that match a workload of the node.
        shortage: Why some workloads could not be told apart; empty when all are.
    """
    known = frozenset(matched)
    return tuple(_report(rule, known, shortage) for rule in rules.rules if rule.entity in _ENTITIES)


def _report(rule: Rule, matched: frozenset[WorkloadScope], shortage: str) -> RuleReport:
    status, reason = _status(rule)
    if isinstance(rule.scope, WorkloadScope) and status is not RuleStatus.INERT:
        if shortage:
            status, reason = RuleStatus.DEGRADED, shortage
        elif rule.scope not in matched:
            reason = reason or NO_WORKLOAD
    return RuleReport(rule=rule.id, status=status, backend=BACKEND, reason=reason)


def _status(rule: Rule) -> tuple[RuleStatus, str]:
    if rule.entity is Entity.PRESET and rule.verdict is Verdict.ALLOW:
        return RuleStatus.INERT, "a preset can be audited or blocked; allowing it changes nothing"
    if rule.target == Other("exec") and rule.entity is Entity.PRESET and not isinstance(rule.scope, WorkloadScope):
        return RuleStatus.INERT, "nothing enters a host from outside"
    if rule.allowed_args is not None:
        return RuleStatus.DEGRADED, _ARGUMENTS
    if rule.verdict is Verdict.AUDIT or (rule.verdict is Verdict.BLOCK and rule.mode is Mode.AUDIT):
        return RuleStatus.AUDITED, ""
    return (RuleStatus.DEGRADED, _DOMAINS) if rule.entity is Entity.DNS else (RuleStatus.ENFORCED, "")
