"""What becomes of each rule in the kernel enforcer, before anything is applied. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Entity, Mode, Rule, RuleSet, RuleStatus, Verdict, WorkloadScope

__all__ = ["BACKEND", "NO_WORKLOAD", "report_rules"]

BACKEND: Final = "bpf_lsm"
_ENTITIES: Final = (Entity.PROCESS, Entity.FILE, Entity.NETWORK, Entity.CAPABILITY)


NO_WORKLOAD: Final = "no workload of this node matches now; it holds in one that does as soon as that is there"


def report_rules(rules: RuleSet, matched: Iterable[WorkloadScope] = (), shortage: str = "") -> tuple[RuleReport, ...]:
    """Return a report for every process, file, network and capability rule.

    Args:
        rules: What is held.
        matched: Scopes that match a workload of the node.
        shortage: Why some workloads could not be told apart; empty when all are.
    """
    known = frozenset(matched)
    return tuple(_report(rule, known, shortage) for rule in rules.rules if rule.entity in _ENTITIES)


def _report(rule: Rule, matched: frozenset[WorkloadScope], shortage: str) -> RuleReport:
    reason = ""
    if isinstance(rule.scope, WorkloadScope):
        if shortage:
            return RuleReport(rule=rule.id, status=RuleStatus.DEGRADED, backend=BACKEND, reason=shortage)
        reason = "" if rule.scope in matched else NO_WORKLOAD
    if rule.allowed_args is not None:
        reason = (
            "a program started with other arguments is killed before its first instruction, not refused; scripts count as started"
            " with other arguments"
        )
        return RuleReport(rule=rule.id, status=RuleStatus.DEGRADED, backend=BACKEND, reason=reason)
    if rule.verdict is Verdict.AUDIT or (rule.verdict is Verdict.BLOCK and rule.mode is Mode.AUDIT):
        return RuleReport(rule=rule.id, status=RuleStatus.AUDITED, backend=BACKEND, reason=reason)
    return RuleReport(rule=rule.id, status=RuleStatus.ENFORCED, backend=BACKEND, reason=reason)
