"""An allow rule that stands beside a refusal is there to exempt; one that stands alone makes an allow-list."""

from __future__ import annotations

import pytest

from garrison.common.policy.expand import expand
from garrison.common.policy.load import Policy, load_text
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.rules import Entity, Mode, Posture, Postures, Verdict

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: p}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  file:
    {refusal}
    {allow}
"""
TOOL = "fromSource: [{path: /usr/bin/tool}]"


def rules(refusal: str, allow: str):
    documents = load_text(POLICY.format(refusal=refusal, allow=allow))
    return normalise([(d, Mode.ENFORCE) for d in documents], NodeFacts("n"), Postures(file=Posture.BLOCK)).rules


@pytest.mark.parametrize(
    ("refusal", "allow", "exempts"),
    [
        ("matchPaths: [{path: /a/b}]", f"matchDirectories: [{{dir: /, recursive: true, {TOOL}, action: Allow}}]", True),
        ("matchDirectories: [{dir: /a/, recursive: true}]", f"matchPaths: [{{path: /a/b, {TOOL}, action: Allow}}]", True),
        ("matchPatterns: [{pattern: /a/*}]", f"matchPaths: [{{path: /a/b, {TOOL}, action: Allow}}]", True),
        ("matchDirectories: [{dir: /a/}]", f"matchPaths: [{{path: /a/b/c, {TOOL}, action: Allow}}]", False),
        ("matchPaths: [{path: /a/b}]", f"matchDirectories: [{{dir: /a/, {TOOL}, action: Allow}}]", False),
        ("matchPatterns: []", f"matchPaths: [{{path: /a/b, {TOOL}, action: Allow}}]", False),
    ],
)
def test_only_an_allow_that_a_refusal_covers_makes_no_list(refusal, allow, exempts):
    held = rules(refusal, allow)

    elsewhere = decide(held, Operation(entity=Entity.FILE, path="/elsewhere", source="/usr/bin/tool"))

    assert (elsewhere.verdict is Verdict.ALLOW) == exempts
    assert (
        decide(held, Operation(entity=Entity.FILE, path="/a/b", source="/usr/bin/tool")).verdict is Verdict.ALLOW or not exempts
    )


def test_what_stands_beside_a_rule_does_not_change_its_id():
    allow = f"matchPaths: [{{path: /a/b, {TOOL}, action: Allow}}]"
    (alone,) = load_text(POLICY.format(refusal="matchPatterns: []", allow=allow))
    (beside,) = load_text(POLICY.format(refusal="matchDirectories: [{dir: /a/}]", allow=allow))
    assert isinstance(alone, Policy)
    assert isinstance(beside, Policy)

    ids = {item.rule.id for item in expand(alone)}

    assert ids <= {item.rule.id for item in expand(beside)}
