"""Firewall rules that would cut a node off from remote login or from its own masters."""

from pathlib import Path

import pytest

from garrison.common.policy.load import load_text
from garrison.common.policy.normalise import NodeFacts
from garrison.common.policy.rules import Mode, Posture, Postures
from garrison.minion.lockout import local_needs, lockouts

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {{name: fw{annotations}}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  action: {action}
  {flows}
"""
MASTERS = ("tcp://192.0.2.7:9000", "tcp://[2001:db8::7]:9001", "tcp://master.example:9002")


def taken(
    flows: str, *, action: str = "Block", annotations: str = "", mode: Mode = Mode.ENFORCE, posture: Posture = Posture.AUDIT
):
    documents = load_text(POLICY.format(flows=flows, action=action, annotations=annotations))
    found = lockouts(
        [(document, mode) for document in documents],
        NodeFacts("edge-1"),
        Postures(network=posture),
        local_needs(Path("/var/lib/garrison"), Path("/run/garrison"), MASTERS),
    )
    return [what.rpartition(": ")[2] for hits in found.values() for what in hits]


@pytest.mark.parametrize(
    ("flows", "what"),
    [
        ("egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]", ["tcp://192.0.2.7:9000"]),
        ("egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}}]}]", []),
        ("egress: [{to: [{ipBlock: {cidr: '2001:db8::/32'}}], ports: [{protocol: tcp}]}]", ["tcp://[2001:db8::7]:9001"]),
        ("egress: [{ports: [{port: 9002}]}]", ["tcp://master.example:9002"]),
        ("egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 9002}]}]", []),
        ("ingress: [{ports: [{port: 9000}]}]", []),
        ("ingress: [{ports: [{port: ssh}]}]", ["tcp/22 from anywhere"]),
    ],
)
def test_block_that_cuts_the_nodes_own_link_or_login_is_a_lockout(flows, what):
    assert taken(flows) == what
    assert taken(flows, mode=Mode.AUDIT) == []
    assert taken(flows, annotations=', annotations: {garrison/i-mean-it: "true"}') == []


def test_allow_list_that_leaves_the_link_out_is_a_lockout_where_its_posture_blocks():
    forgetful = "egress: [{ports: [{port: https}]}]"
    mindful = "egress: [{ports: [{port: https}, {port: 4515}, {port: 9000, endPort: 9002, protocol: tcp}]}]"

    assert {"tcp://192.0.2.7:9000", "tcp://master.example:9002"} <= set(taken(forgetful, action="Allow", posture=Posture.BLOCK))
    assert taken(forgetful, action="Allow") == []
    assert taken(mindful, action="Allow", posture=Posture.BLOCK) == []
