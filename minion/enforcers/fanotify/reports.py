"""What fanotify makes of each rule, said truthfully. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from garrison.common.frames import RuleReport
from garrison.common.policy.match import makes_list, posture_of
from garrison.common.policy.rules import Entity, HostScope, Mode, PathTarget, Posture, Postures, Rule, RuleStatus, Verdict
from garrison.minion.enforcers.fanotify.table import ENTITIES

__all__ = ["NAME", "is_enforceable", "report"]

NAME: Final = "fanotify"

_WORKLOAD: Final = "selects workloads by label, which fanotify cannot tell apart"
_OPENS_ONLY: Final = "opens are refused; unlink, rename, chmod and truncate by path are not"
_OPENS_SEEN: Final = "opens are seen; unlink, rename, chmod and truncate by path are not"
_ARGS: Final = "arguments are read just before the kernel copies them: a program whose other thread changes them meanwhile passes"


def is_enforceable(rule: Rule) -> bool:
    """Return whether the rule can go into a table at all."""
    return rule.entity in ENTITIES and isinstance(rule.target, PathTarget) and isinstance(rule.scope, HostScope)


def report(rule: Rule, postures: Postures, why_unwatchable: Callable[[Rule], str]) -> RuleReport | None:
    """Return the line for ``rule``; ``None`` when it is of no kind that fanotify knows."""
    if rule.entity not in ENTITIES or not isinstance(rule.target, PathTarget):
        return None
    why = why_unwatchable(rule) if isinstance(rule.scope, HostScope) else _WORKLOAD
    if why:
        return RuleReport(rule=rule.id, status=RuleStatus.IMPOSSIBLE, reason=why)
    status, reason = _status(rule, postures)
    return RuleReport(rule=rule.id, status=status, backend=NAME, reason=reason)


def _status(rule: Rule, postures: Postures) -> tuple[RuleStatus, str]:
    if rule.verdict is Verdict.ALLOW and not makes_list(rule):
        return RuleStatus.ENFORCED, ""
    if not _refuses(rule, postures):
        return RuleStatus.AUDITED, _OPENS_SEEN if rule.entity is Entity.FILE else ""
    reasons = [_OPENS_ONLY] * (rule.entity is Entity.FILE) + [_ARGS] * (rule.allowed_args is not None)
    return (RuleStatus.DEGRADED, "; ".join(reasons)) if reasons else (RuleStatus.ENFORCED, "")


def _refuses(rule: Rule, postures: Postures) -> bool:
    """Whether anything can be refused by it: a block, or an allow-list whose posture is to block."""
    if rule.mode is not Mode.ENFORCE or rule.verdict is Verdict.AUDIT:
        return False
    return rule.verdict is Verdict.BLOCK or posture_of(postures, rule.entity) is Posture.BLOCK
