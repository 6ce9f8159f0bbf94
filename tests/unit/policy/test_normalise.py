"""Documents become a node's RuleSet as the cases in tests/data/policy say; people read ``expected.json`` there in review."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from garrison.common import limits
from garrison.common.errors import CompileError
from garrison.common.policy.load import Policy, load_text
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.rules import Mode, Posture, Postures

CASES = Path(__file__).parents[2] / "data" / "policy"
NODE = NodeFacts("edge-1", {"group/edge": "true", "rack": "4"})

HOST = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: %s}
spec:
  nodeSelector: {matchLabels: {kubearmor.io/hostname: "*"}}
  file: {matchPaths: [{path: %s}]}
"""


def seen(case: Path) -> dict[str, object]:
    documents = load_text((case / "input.yaml").read_text(), "input.yaml")
    found = normalise([(document, Mode.ENFORCE) for document in documents], NODE)
    return {
        "rules": msgspec.to_builtins(found.rules.rules),
        "inert": msgspec.to_builtins(found.inert),
        "notes": list(found.notes),
    }


@pytest.mark.parametrize("case", sorted(CASES.iterdir()), ids=lambda case: case.name)
def test_documents_become_the_rules_written_beside_them(case):
    assert json.loads(json.dumps(seen(case))) == json.loads((case / "expected.json").read_text())


def test_policy_assigned_in_both_modes_is_enforced_in_either_order():
    (document,) = load_text(HOST % ("p", "/etc/x"))
    pair = [(document, Mode.AUDIT), (document, Mode.ENFORCE)]

    for policies in (pair, pair[::-1]):
        (rule,) = normalise(policies, NODE).rules.rules
        assert rule.mode is Mode.ENFORCE


def test_mode_is_no_part_of_a_rules_id():
    (document,) = load_text(HOST % ("p", "/etc/x"))

    audit, enforce = (normalise([(document, mode)], NODE).rules.rules[0] for mode in (Mode.AUDIT, Mode.ENFORCE))

    assert audit.id == enforce.id
    assert audit.mode is Mode.AUDIT


def test_postures_are_audit_unless_given():
    assert normalise([], NODE).rules.postures == Postures()
    strict = Postures(file=Posture.BLOCK)
    assert normalise([], NODE, strict).rules.postures == strict


def test_node_cannot_take_another_nodes_hostname_by_a_label():
    (document,) = load_text((HOST % ("p", "/etc/x")).replace('"*"', "edge-2"))
    liar = NodeFacts("edge-1", {"kubearmor.io/hostname": "edge-2"})

    assert normalise([(document, Mode.ENFORCE)], liar).rules.rules == ()


def test_more_rules_than_the_limit_are_refused_whole(monkeypatch):
    monkeypatch.setattr(limits, "RULES_MAX", 3)
    documents = load_text("---".join(HOST % (f"p{i}", "/etc/x") for i in range(4)))

    with pytest.raises(CompileError, match="4 rules for edge-1, the limit is 3"):
        normalise([(document, Mode.ENFORCE) for document in documents], NODE)


def test_policies_know_the_line_of_each_key():
    (policy,) = load_text(HOST % ("p", "/etc/x"))
    assert isinstance(policy, Policy)

    assert policy.line_of(("spec", "file", "matchPaths", 0, "path")) == 7
    assert policy.line_of(("spec", "nosuch")) == 5
