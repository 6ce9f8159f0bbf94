"""What device rules mean: words, which rule decides, allow-lists, modes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common.errors import PolicyError
from garrison.common.policy.devices import (
    ANY,
    DeviceFunction,
    DeviceSpec,
    decide_device,
    device_text,
    effect_of,
    may_refuse,
    names_function,
    spec_of,
    specificity,
)
from garrison.common.policy.load import load_text
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.rules import Entity, Mode, Other, Posture, Postures, Rule, RuleSet, Verdict

import msgspec  # isort: skip

BLOCK, AUDIT, ALLOW = Verdict.BLOCK, Verdict.AUDIT, Verdict.ALLOW
STICK, UAS, KEYBOARD = DeviceFunction(8, 6, 80), DeviceFunction(8, 6, 98), DeviceFunction(3, 1, 1)
WEBCAM = (DeviceFunction(0xEF, 2, 1, whole=True), DeviceFunction(14, 1, 0), DeviceFunction(14, 2, 0))
POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: usb}
spec:
  nodeSelector: {matchLabels: {kubearmor.io/hostname: "*"}}
  device:
    matchDevice:
    - {%s}
  action: Block
"""


def rule(number: int, verdict: Verdict, *spec: int, mode: Mode = Mode.ENFORCE) -> Rule:
    target = Other("usb", msgspec.json.encode(DeviceSpec(*spec)).decode())
    return Rule(id=f"p/{number:03}", policy="p", entity=Entity.DEVICE, verdict=verdict, target=target, mode=mode)


def decide(*rules: Rule, functions=(STICK,), level=1, posture=Posture.AUDIT):
    held = RuleSet(rules=rules, postures=Postures(device=posture))
    return decide_device(held, functions, level).decision


def read(fields: str) -> DeviceSpec:
    documents = load_text(POLICY % fields)
    return spec_of(normalise([(document, Mode.ENFORCE) for document in documents], NodeFacts("edge")).rules.rules[0])


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ("class: MASS-STORAGE", DeviceSpec(8)),
        ("class: hid, subClass: 1, protocol: 1", DeviceSpec(3, 1, 1)),
        ("class: 8, level: 2", DeviceSpec(8, level=2)),
        ('class: "0xE0"', DeviceSpec(0xE0)),
        ("class: ALL", DeviceSpec()),
        ('class: "3", subClass: 0, protocol: "0x2"', DeviceSpec(3, 0, 2)),
    ],
)
def test_numbers_and_names_mean_the_same(fields, spec):
    assert read(fields) == spec


@pytest.mark.parametrize(
    "fields",
    ["class: 0", "class: 256", "class: STICK", 'class: "0x"', 'class: "-1"', "class: 8, subClass: 256", "class: 8, level: 0",
     "class: 8, level: 7", "class: 8, protocol: x", 'class: "1_0"', 'class: "٣"', "class: true"],
)  # fmt: skip
def test_what_no_device_can_be_is_an_error_of_the_policy(fields):
    with pytest.raises(PolicyError) as caught:
        load_text(POLICY % fields)

    assert "matchDevice" in caught.value.key


def test_rule_is_one_rule_however_its_class_is_written():
    ids = {
        normalise([(document, Mode.ENFORCE) for document in load_text(POLICY % text)], NodeFacts("edge")).rules.rules[0].id
        for text in ("class: 8", "class: MASS-STORAGE", 'class: "0x08"')
    }

    assert len(ids) == 1


def test_text_of_a_rule_names_what_is_said():
    assert device_text(DeviceSpec(8, 6, level=1)) == "class MASS-STORAGE subClass 6 level 1"
    assert device_text(DeviceSpec()) == "class ALL"


def test_most_specific_rule_decides_whatever_it_says():
    assert decide(rule(1, BLOCK, 8), rule(2, ALLOW, 8, 6, 80)).verdict is ALLOW
    assert decide(rule(1, BLOCK, 8), rule(2, ALLOW, 8, 6, 80), functions=(UAS,)).verdict is BLOCK
    assert decide(rule(1, ALLOW, 8, 6, 80), rule(2, BLOCK, 8, ANY, ANY, 1)).verdict is BLOCK
    assert decide(rule(1, BLOCK), rule(2, ALLOW, 8)).verdict is ALLOW


def test_block_beats_audit_beats_allow_among_equals():
    assert decide(rule(1, ALLOW, 8), rule(2, AUDIT, 8), rule(3, BLOCK, 8)).rule.id == "p/003"
    assert decide(rule(1, ALLOW, 8), rule(2, AUDIT, 8)).verdict is AUDIT
    assert decide(rule(2, BLOCK, 8), rule(1, BLOCK, ANY, ANY, ANY, 1)).rule.id == "p/001"


def test_level_counts_from_the_machines_own_ports():
    behind_a_hub = rule(1, BLOCK, 8, ANY, ANY, 2)

    assert decide(behind_a_hub, level=1).verdict is ALLOW
    assert decide(behind_a_hub, level=2).verdict is BLOCK


def test_device_is_as_its_strictest_function():
    held = (rule(1, BLOCK, 3), rule(2, ALLOW, 8))

    assert decide(*held, functions=(STICK, KEYBOARD)).rule.id == "p/001"


@pytest.mark.parametrize("posture", Posture)
def test_allow_rule_makes_an_allow_list(posture):
    held = rule(1, ALLOW, 3)

    assert decide(held, functions=(KEYBOARD,), posture=posture).verdict is ALLOW
    unlisted = decide(held, posture=posture)
    assert (unlisted.verdict.value, unlisted.by_posture, unlisted.rule.id) == (posture.value, True, "p/001")


def test_class_that_only_points_at_interfaces_needs_no_listing_but_can_be_named():
    assert decide(rule(1, ALLOW, 14), functions=WEBCAM, posture=Posture.BLOCK).verdict is ALLOW
    assert decide(rule(1, ALLOW, 14), rule(2, BLOCK, 0xEF), functions=WEBCAM).verdict is BLOCK


def test_device_that_says_nothing_gets_the_posture():
    assert decide(rule(1, ALLOW, 3), functions=(), posture=Posture.BLOCK).verdict is BLOCK
    assert decide(rule(1, BLOCK, 3), functions=()).verdict is ALLOW


def test_rules_in_audit_mode_neither_refuse_nor_loosen_what_others_refuse():
    assert decide(rule(1, BLOCK, 8, mode=Mode.AUDIT)).verdict is AUDIT
    assert decide(rule(1, BLOCK, 8), rule(2, ALLOW, 8, 6, 80, mode=Mode.AUDIT)).verdict is BLOCK
    assert decide(rule(1, BLOCK, 8), rule(2, BLOCK, 8, 6, 80, mode=Mode.AUDIT)).rule.id == "p/001"
    assert decide(rule(1, ALLOW, 3, mode=Mode.AUDIT), posture=Posture.BLOCK).verdict is AUDIT


CODES = st.sampled_from([ANY, 1, 3, 6, 8, 9, 80])
RULES = st.builds(
    rule, st.integers(1, 999), st.sampled_from(Verdict), CODES, CODES, CODES, st.sampled_from([ANY, 1, 2]),
    mode=st.sampled_from(Mode),
)  # fmt: skip
SETS = st.lists(RULES, max_size=6, unique_by=lambda one: one.id).map(tuple)
FUNCTIONS = st.lists(
    st.builds(DeviceFunction, *[st.sampled_from([1, 3, 6, 8, 9, 80])] * 3, st.booleans()), max_size=4, unique=True
).map(tuple)


@given(SETS, FUNCTIONS, st.sampled_from([1, 2]), st.sampled_from(Posture))
def test_nothing_is_refused_where_nothing_may_be(rules, functions, level, posture):
    held = RuleSet(rules=rules, postures=Postures(device=posture))
    decision = decide_device(held, functions, level).decision

    assert may_refuse(held) or decision.verdict is not BLOCK
    assert decision.rule is not None or decision.verdict is ALLOW


@given(SETS, st.sampled_from([1, 2]), st.sampled_from(Posture))
def test_rule_that_decides_is_as_specific_as_any_enforced_one_that_names_the_function(rules, level, posture):
    decision = decide(*rules, level=level, posture=posture)
    naming = [one for one in rules if one.mode is Mode.ENFORCE and names_function(spec_of(one), STICK, level)]

    if naming and decision.rule.mode is Mode.ENFORCE and decision.verdict is BLOCK:
        most = max(specificity(spec_of(one)) for one in naming)
        assert specificity(spec_of(decision.rule)) == most
        assert BLOCK in {effect_of(one) for one in naming if specificity(spec_of(one)) == most}


@given(SETS, RULES, FUNCTIONS, st.sampled_from(Posture))
def test_adding_a_rule_in_audit_mode_never_lets_in_what_was_refused(rules, more, functions, posture):
    before = decide(*rules, functions=functions, posture=posture)
    after = decide(*rules, msgspec.structs.replace(more, id="q/1", mode=Mode.AUDIT), functions=functions, posture=posture)

    assert after.verdict is BLOCK or before.verdict is not BLOCK
