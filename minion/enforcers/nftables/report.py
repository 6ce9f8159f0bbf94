"""What becomes of each firewall rule on a node with nftables. Pure."""

from __future__ import annotations

from typing import Final

from garrison.common.frames import RuleReport
from garrison.common.policy.firewall import effect_of, flow_of
from garrison.common.policy.rules import Entity, HostScope, Rule, RuleSet, RuleStatus, Verdict

__all__ = ["report_rules"]

_WORKLOAD: Final = "selects workloads by label; firewall rules hold for the node as a whole (nodeSelector)"
_QUOTA: Final = "limit and duration: amounts of traffic are not held"
_LOOPBACK: Final = "loopback always passes"


def report_rules(rules: RuleSet, *, silent: str = "") -> tuple[RuleReport, ...]:
    """Return what becomes of each firewall rule here; other rules are left out.

    Args:
        rules: All rules of the node.
        silent: Why packets cannot be told; empty when they can.
    """
    return tuple(_report(rule, silent) for rule in rules.rules if rule.entity is Entity.FIREWALL)


def _report(rule: Rule, silent: str) -> RuleReport:
    flow = flow_of(rule)
    if not isinstance(rule.scope, HostScope):
        return RuleReport(rule=rule.id, status=RuleStatus.IMPOSSIBLE, reason=_WORKLOAD)
    if flow.quota:
        return RuleReport(rule=rule.id, status=RuleStatus.IMPOSSIBLE, reason=_QUOTA)
    if flow.interfaces == ("lo",):
        return RuleReport(rule=rule.id, status=RuleStatus.INERT, reason=_LOOPBACK)
    if silent:
        return RuleReport(rule=rule.id, status=RuleStatus.DEGRADED, reason=silent)
    audited = effect_of(rule) is Verdict.AUDIT
    return RuleReport(rule=rule.id, status=RuleStatus.AUDITED if audited else RuleStatus.ENFORCED)
