"""The compile report has one line for each rule and hides nothing."""

from __future__ import annotations

from garrison.common.frames import RuleReport
from garrison.common.policy.report import merge_reports
from garrison.common.policy.rules import Entity, Other, PathKind, PathTarget, Rule, RuleSet, Verdict

FILE = Rule(
    id="p/1", policy="p", entity=Entity.FILE, verdict=Verdict.BLOCK, target=PathTarget(how=PathKind.EXACT, value="/etc/x")
)
CAPABILITY = Rule(id="p/2", policy="p", entity=Entity.CAPABILITY, verdict=Verdict.BLOCK, target=Other(value="net_raw"))
RULES = RuleSet(rules=(FILE, CAPABILITY))


def line(rule: str, status: str, reason: str = "", backend: str = "") -> RuleReport:
    return RuleReport(rule=rule, status=status, reason=reason, backend=backend)


def test_of_several_backends_the_one_that_does_most_is_named():
    degraded, enforced = ("watcher", [line("p/1", "degraded", "late")]), ("lsm", [line("p/1", "enforced")])

    for order in ([degraded, enforced], [enforced, degraded]):
        assert merge_reports(RULES, order, ())[0] == line("p/1", "enforced", backend="lsm")


def test_of_equal_backends_the_first_is_named():
    both = [("one", [line("p/1", "audited")]), ("two", [line("p/1", "audited")])]

    assert merge_reports(RULES, both, ())[0].backend == "one"


def test_rule_that_no_backend_speaks_of_is_impossible_with_the_reason():
    (_, capability) = merge_reports(RULES, [("one", [line("p/1", "enforced")])], ())

    assert (capability.rule, capability.status, capability.backend) == ("p/2", "impossible", "")
    assert capability.reason == "no backend on this node can do capability rules"


def test_backends_own_reason_for_the_impossible_is_kept_and_names_no_backend():
    (first, _) = merge_reports(RULES, [("one", [line("p/1", "impossible", "no such file system", "one")])], ())

    assert first == line("p/1", "impossible", "no such file system")


def test_inert_lines_stand_beside_the_rules_in_order_and_unknown_rules_are_left_out():
    inert = line("o/-", "inert", "selects nodes with a: b; this node has no such label")

    merged = merge_reports(RULES, [("one", [line("z/9", "enforced")])], [inert])

    assert [report.rule for report in merged] == ["o/-", "p/1", "p/2"]
    assert merged[0] is inert
