"""What becomes of each system call rule here, before anything is applied. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Entity, Mode, Rule, RuleSet, RuleStatus, Verdict, WorkloadScope
from garrison.minion.enforcers.profiles import NO_WORKLOAD
from garrison.minion.enforcers.program_row import SOURCE_DEPTH_MAX
from garrison.minion.enforcers.syscalls.plan import call_names, path_of
from garrison.minion.enforcers.syscalls.shapes import SHAPES

__all__ = ["BACKEND", "report_rules"]

BACKEND: Final = "syscalls"
_ONLY_AUDIT: Final = "rules on system calls audit, whatever their action"
_NO_LIST: Final = "an allow of system calls makes no list, and exempts nobody here"


def report_rules(
    rules: RuleSet, numbers: Mapping[str, int], machine: str, matched: Iterable[WorkloadScope] = (), shortage: str = ""
) -> tuple[RuleReport, ...]:
    """Return what becomes of each system call rule here; other rules are left out.

    Args:
        rules: What is held.
        numbers: Names and numbers of the machine's calls.
        machine: Its name.
        matched: Scopes that match a workload of the node.
        shortage: Why some workloads could not be told apart; empty when all are.
    """
    known = frozenset(matched)
    return tuple(_report(rule, numbers, machine, known, shortage) for rule in rules.rules if rule.entity is Entity.SYSCALL)


def _report(rule: Rule, numbers: Mapping[str, int], machine: str, matched: frozenset[WorkloadScope], shortage: str) -> RuleReport:
    status, reasons = _status(rule, numbers, machine)
    if isinstance(rule.scope, WorkloadScope) and status in {RuleStatus.AUDITED, RuleStatus.DEGRADED}:
        if shortage:
            status, reasons = RuleStatus.DEGRADED, [*reasons, shortage]
        elif rule.scope not in matched:
            reasons = [*reasons, NO_WORKLOAD]
    return RuleReport(rule=rule.id, status=status, backend=BACKEND, reason="; ".join(reasons))


def _status(rule: Rule, numbers: Mapping[str, int], machine: str) -> tuple[RuleStatus, list[str]]:
    names = call_names(rule)
    unknown = [name for name in names if name not in numbers]
    pathless = [name for name in names if name in numbers and name not in SHAPES] if path_of(rule) else []
    reasons = [f"{machine} has no system call {', '.join(unknown)}"] if unknown else []
    reasons += [f"no path is given to {', '.join(pathless)}"] if pathless else []
    if len(unknown) + len(pathless) == len(names):
        return RuleStatus.IMPOSSIBLE, reasons
    if rule.verdict is Verdict.ALLOW and not rule.exempts:
        return RuleStatus.INERT, [_NO_LIST]
    if any(source.value.count("/") > SOURCE_DEPTH_MAX for source in rule.sources):
        reasons.append(f"a source lies deeper than {SOURCE_DEPTH_MAX} components: programs there count as unknown")
    if reasons:
        return RuleStatus.DEGRADED, reasons
    refuses = rule.verdict is Verdict.BLOCK and rule.mode is Mode.ENFORCE
    return RuleStatus.AUDITED, [_ONLY_AUDIT] if refuses else []
