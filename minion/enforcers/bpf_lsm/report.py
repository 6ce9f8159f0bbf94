"""What becomes of each rule in the kernel enforcer, before anything is applied. Pure."""

from __future__ import annotations

from typing import Final

from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Entity, HostScope, Mode, Rule, RuleSet, RuleStatus, Verdict

__all__ = ["BACKEND", "report_rules"]

BACKEND: Final = "bpf_lsm"
_ENTITIES: Final = (Entity.PROCESS, Entity.FILE, Entity.NETWORK, Entity.CAPABILITY)


def report_rules(rules: RuleSet) -> tuple[RuleReport, ...]:
    """Return a report for every process, file, network and capability rule."""
    return tuple(_report(rule) for rule in rules.rules if rule.entity in _ENTITIES)


def _report(rule: Rule) -> RuleReport:
    if not isinstance(rule.scope, HostScope):
        reason = "selects workloads by label, which this enforcer does not tell apart yet"
        return RuleReport(rule=rule.id, status=RuleStatus.IMPOSSIBLE, backend=BACKEND, reason=reason)
    if rule.allowed_args is not None:
        reason = (
            "a program started with other arguments is killed before its first instruction, not refused; scripts count as started"
            " with other arguments"
        )
        return RuleReport(rule=rule.id, status=RuleStatus.DEGRADED, backend=BACKEND, reason=reason)
    if rule.verdict is Verdict.AUDIT or (rule.verdict is Verdict.BLOCK and rule.mode is Mode.AUDIT):
        return RuleReport(rule=rule.id, status=RuleStatus.AUDITED, backend=BACKEND)
    return RuleReport(rule=rule.id, status=RuleStatus.ENFORCED, backend=BACKEND)
