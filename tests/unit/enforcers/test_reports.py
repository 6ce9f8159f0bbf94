"""What fanotify says about a rule is what it does with it."""

from __future__ import annotations

import pytest

from garrison.common.policy.rules import (
    Entity,
    Mode,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Protocol,
    Rule,
    Verdict,
    WorkloadScope,
)
from garrison.minion.enforcers.fanotify.reports import report


def line(entity=Entity.PROCESS, verdict=Verdict.BLOCK, *, posture=Posture.AUDIT, unwatchable="", **fields):
    target = fields.pop("target", PathTarget(how=PathKind.EXACT, value="/x"))
    rule = Rule(id="p/1", policy="p", entity=entity, verdict=verdict, target=target, **fields)
    return report(rule, Postures(file=posture), lambda _: unwatchable)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (line(), "enforced"),
        (line(mode=Mode.AUDIT), "audited"),
        (line(verdict=Verdict.AUDIT), "audited"),
        (line(verdict=Verdict.ALLOW), "audited"),
        (line(verdict=Verdict.ALLOW, posture=Posture.BLOCK), "enforced"),
        (line(Entity.FILE, verdict=Verdict.ALLOW, exempts=True), "enforced"),
        (line(allowed_args=("-l",)), "degraded"),
        (line(Entity.FILE), "degraded"),
        (line(Entity.FILE, read_only=True), "degraded"),
        (line(Entity.FILE, mode=Mode.AUDIT), "audited"),
        (line(scope=WorkloadScope(labels=("a=b",))), "impossible"),
        (line(unwatchable="not there"), "impossible"),
    ],
)
def test_status_is_honest(found, status):
    assert found.status == status
    assert found.reason or status in {"enforced", "audited"}
    assert (found.backend == "fanotify") == (status != "impossible")


def test_rules_of_other_kinds_are_left_to_other_backends():
    assert line(Entity.NETWORK, target=Protocol("tcp")) is None
    assert line(Entity.CAPABILITY) is None
