"""The compile report of a node: what all its backends together make of every rule.

Rules of this file:
- One line for each rule: of several backends the one that does most; of equals the one that stands first.
- A rule that nobody speaks of is impossible here. Nothing is dropped.
- Pure; the lines are ``RuleReport`` of the link's frames, since they travel as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Entity, Rule, RuleSet, RuleStatus

__all__ = ["merge_reports"]

_GOODNESS: Final = {status.value: rank for rank, status in enumerate(RuleStatus)}
_WHAT: Final = {
    Entity.PROCESS: "rules on programs",
    Entity.FILE: "rules on files",
    Entity.NETWORK: "rules on network protocols",
    Entity.DNS: "rules on domains",
    Entity.CAPABILITY: "capability rules",
    Entity.SYSCALL: "system call rules",
    Entity.DEVICE: "USB device rules",
    Entity.PRESET: "presets",
    Entity.NATIVE: "native AppArmor rules",
    Entity.FIREWALL: "firewall rules",
}


def merge_reports(
    rules: RuleSet, by_backend: Sequence[tuple[str, Sequence[RuleReport]]], inert: Sequence[RuleReport]
) -> tuple[RuleReport, ...]:
    """Return one line for each rule and each inert policy, sorted by rule id.

    Args:
        rules: What the node must hold; lines of backends about other rules are ignored.
        by_backend: Name of each backend and its lines, best backend first.
        inert: Lines about what selects nothing on this node.
    """
    best: dict[str, RuleReport] = {}
    for backend, reports in by_backend:
        for report in reports:
            known = best.get(report.rule)
            if known is None or _rank(report) < _rank(known):
                best[report.rule] = _named(report, backend)
    lines = [best.get(rule.id) or _impossible(rule) for rule in rules.rules]
    return tuple(sorted([*lines, *inert], key=lambda line: (line.rule, line.reason)))


def _rank(report: RuleReport) -> int:
    return _GOODNESS.get(report.status, len(_GOODNESS))


def _named(report: RuleReport, backend: str) -> RuleReport:
    # What nothing took has no backend, whoever says so.
    taken = report.status not in {RuleStatus.IMPOSSIBLE, RuleStatus.INERT}
    name = (report.backend or backend) if taken else ""
    return RuleReport(rule=report.rule, status=report.status, backend=name, reason=report.reason)


def _impossible(rule: Rule) -> RuleReport:
    return RuleReport(rule=rule.id, status=RuleStatus.IMPOSSIBLE, reason=f"no backend on this node can do {_WHAT[rule.entity]}")
