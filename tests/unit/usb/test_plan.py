"""What is never refused, and what always is."""

import msgspec
import pytest

from fakes.usb import HUB, KEYBOARD, STICK, descriptors
from garrison.common.policy.devices import ANY, DeviceSpec
from garrison.common.policy.rules import Entity, Mode, Other, Posture, Postures, Rule, RuleSet, RuleStatus, Verdict
from garrison.minion.enforcers.usb.descriptors import read_descriptors
from garrison.minion.enforcers.usb.plan import judge
from garrison.minion.enforcers.usb.report import alert, report_rules
from garrison.minion.enforcers.usb.sysfs import Device

NOBODY = frozenset[str]()


def rule(verdict: Verdict, *spec: int, number: int = 1, mode: Mode = Mode.ENFORCE) -> Rule:
    target = Other("usb", msgspec.json.encode(DeviceSpec(*spec)).decode())
    return Rule(id=f"p/{number}", policy="p", entity=Entity.DEVICE, verdict=verdict, target=target, mode=mode, message="no")


def device(raw: bytes, name: str = "1-2") -> Device:
    return Device(name=name, number=7, said=read_descriptors(raw), authorized=True, title="Thing")


def held(*rules: Rule, posture: Posture = Posture.AUDIT) -> RuleSet:
    return RuleSet(rules=rules, postures=Postures(device=posture))


HUB_DEVICE = device(descriptors(HUB, device=(9, 0, 1)))


@pytest.mark.parametrize(
    "rules",
    [
        held(rule(Verdict.BLOCK)),
        held(rule(Verdict.BLOCK, ANY, ANY, ANY, 1)),
        held(rule(Verdict.ALLOW, 3), posture=Posture.BLOCK),
    ],
    ids=["all", "level", "posture"],
)
def test_hub_is_spared_by_what_does_not_name_hubs(rules):
    outcome = judge(rules, HUB_DEVICE, NOBODY)

    assert (outcome.refused, outcome.spared, outcome.decision.verdict) == (False, "hub", Verdict.AUDIT)


def test_hub_is_refused_by_a_rule_that_names_hubs():
    assert judge(held(rule(Verdict.BLOCK, 9)), HUB_DEVICE, NOBODY).refused


def test_device_that_is_also_a_hub_is_not_spared():
    assert judge(held(rule(Verdict.BLOCK)), device(descriptors(HUB, KEYBOARD)), NOBODY).refused


def test_what_the_machine_runs_from_is_spared_whatever_names_it():
    outcome = judge(held(rule(Verdict.BLOCK, 8, 6, 80, 1)), device(descriptors(STICK)), frozenset({"1-2"}))

    assert (outcome.refused, outcome.decision.verdict) == (False, Verdict.AUDIT)
    assert "file system" in outcome.spared


def test_device_that_cannot_be_read_whole_is_refused_where_any_may_be():
    broken = device(descriptors(KEYBOARD)[:-1])

    assert judge(held(rule(Verdict.BLOCK, 8)), broken, NOBODY).refused
    assert judge(held(rule(Verdict.ALLOW, 3), posture=Posture.BLOCK), broken, NOBODY).refused
    assert not judge(held(rule(Verdict.AUDIT, 8)), broken, NOBODY).refused


def test_report_says_enforced_audited_or_why_not():
    rules = held(rule(Verdict.BLOCK, 8), rule(Verdict.BLOCK, 3, number=2, mode=Mode.AUDIT), rule(Verdict.AUDIT, 3, number=3))

    assert [line.status for line in report_rules(rules)] == [RuleStatus.ENFORCED, RuleStatus.AUDITED, RuleStatus.AUDITED]
    assert {(line.status, line.reason) for line in report_rules(rules, missing="no USB")} == {(RuleStatus.IMPOSSIBLE, "no USB")}


def test_event_names_device_function_and_rule():
    outcome = judge(held(rule(Verdict.BLOCK, 8)), device(descriptors(STICK, KEYBOARD), "1-1.4"), NOBODY)

    event = alert(device(descriptors(STICK, KEYBOARD), "1-1.4"), outcome, result="refused", present=False)

    assert (event.operation, event.object, event.verdict, event.result) == ("device", "usb://1-1.4/1234:abcd", "block", "refused")
    assert (event.rule, event.policy, event.backend) == ("p/1", "p", "usb")
    assert event.data["functions"] == ["03/01/01", "08/06/50"]
    assert (event.data["class_name"], event.data["level"], event.data["title"]) == ("MASS-STORAGE", 2, "Thing")
