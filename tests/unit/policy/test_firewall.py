"""Firewall rules: which packets they speak of, how they are read, and what they must not take from a node."""

import ipaddress

import pytest

from garrison.common.errors import PolicyError
from garrison.common.policy.expand import expand
from garrison.common.policy.firewall import Packet, decide_packet, flow_of
from garrison.common.policy.flows import Direction
from garrison.common.policy.lint import lint
from garrison.common.policy.load import load_text
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.rules import Mode, Posture, Postures, RuleSet, Verdict

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {{name: fw{annotations}}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  action: {action}
  {direction}: {flows}
"""


def text_of(flows: str, *, direction: str = "egress", action: str = "Block", annotations: str = "") -> str:
    return POLICY.format(flows=flows, direction=direction, action=action, annotations=annotations)


def rules_of(*texts: str, mode: Mode = Mode.ENFORCE, posture: Posture = Posture.AUDIT) -> RuleSet:
    documents = [(document, mode) for text in texts for document in load_text(text)]
    return normalise(documents, NodeFacts("edge-1"), Postures(network=posture)).rules


def out(peer: str, port: int = 443, protocol: int = 6, interface: str = "eth0") -> Packet:
    address = ipaddress.ip_address(peer)
    return Packet(direction=Direction.EGRESS, protocol=protocol, peer=address, port=port, interface=interface)


@pytest.mark.parametrize(
    ("flow", "hit", "missed"),
    [
        ("{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}", out("10.0.0.1"), out("10.1.0.1")),
        ("{to: [{ipBlock: {cidr: 10.0.0.7/8}}]}", out("10.255.0.1"), out("11.0.0.1")),
        ("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}", out("192.0.2.1"), out("2001:db8::1")),
        ("{to: [{ipBlock: {cidr: '2001:db8::/32'}}]}", out("2001:db8::1"), out("2001:db9::1")),
        ("{ports: [{port: 22, protocol: TCP}]}", out("192.0.2.1", 22), out("192.0.2.1", 22, protocol=17)),
        ("{ports: [{port: dns}]}", out("192.0.2.1", 53, protocol=17), out("192.0.2.1", 54)),
        ("{ports: [{port: 6000, endPort: 6063}]}", out("192.0.2.1", 6063), out("192.0.2.1", 6064)),
        ("{ports: [{protocol: icmp}]}", out("192.0.2.1", 0, protocol=1), out("2001:db8::1", 0, protocol=58)),
        ("{iface: [wwan0]}", out("192.0.2.1", interface="wwan0"), out("192.0.2.1", interface="eth0")),
        ("{}", out("192.0.2.1", 0, protocol=47), None),
    ],
)
def test_rule_speaks_of_what_it_names_and_of_nothing_else(flow, hit, missed):
    rules = rules_of(text_of(f"[{flow}]"))

    assert decide_packet(rules, hit).verdict is Verdict.BLOCK
    if missed is not None:
        assert decide_packet(rules, missed).verdict is Verdict.ALLOW


def test_block_beats_audit_beats_allow():
    block, audit, allow = (
        text_of(f"[{{ports: [{{port: {first}, endPort: 99}}]}}]", action=action)
        for first, action in ((30, "Block"), (20, "Audit"), (10, "Allow"))
    )
    rules = rules_of(allow, audit, block)

    said = [decide_packet(rules, out("192.0.2.1", port)).verdict for port in (10, 20, 30)]

    assert said == [Verdict.ALLOW, Verdict.AUDIT, Verdict.BLOCK]


@pytest.mark.parametrize(
    ("posture", "mode", "verdict"),
    [
        (Posture.BLOCK, Mode.ENFORCE, Verdict.BLOCK),
        (Posture.AUDIT, Mode.ENFORCE, Verdict.AUDIT),
        (Posture.BLOCK, Mode.AUDIT, Verdict.AUDIT),
    ],
)
def test_allow_makes_an_allow_list_of_its_direction_only(posture, mode, verdict):
    rules = rules_of(text_of("[{ports: [{port: https}]}]", action="Allow"), mode=mode, posture=posture)
    inward = Packet(direction=Direction.INGRESS, protocol=6, peer=ipaddress.ip_address("192.0.2.1"), port=22)

    left_out = decide_packet(rules, out("192.0.2.1", 80))

    assert (left_out.verdict, left_out.by_posture) == (verdict, True)
    assert decide_packet(rules, out("192.0.2.1", 443)).verdict is Verdict.ALLOW
    assert decide_packet(rules, inward).rule is None


def test_one_meaning_in_two_spellings_has_one_id():
    one = text_of("[{to: [{ipBlock: {cidr: 10.0.0.7/8}}], ports: [{port: dns, protocol: UDP}], iface: [b, a]}]")
    other = text_of("[{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: '53', protocol: udp}], iface: [a, b]}]")

    assert rules_of(one) == rules_of(other)


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        ("{to: [{ipBlock: {cidr: 10.0.0.0/33}}]}", "no IPv4 or IPv6 network"),
        ("{to: [{ipBlock: {cidr: '10.0.0.0/8 accept'}}]}", "no IPv4 or IPv6 network"),
        ("{to: [{ipBlock: {cidr: 'fe80::1%eth0/64'}}]}", "zone"),
        ("{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}", "does not lie in"),
        ("{to: [{ipBlock: {cidr: 10.0.0.0/8, except: ['2001:db8::/32']}}]}", "does not lie in"),
        ("{ports: [{port: '22; accept'}]}", "is no port"),
        ("{ports: [{port: 0}]}", "is no port"),
        ("{ports: [{port: 65536}]}", "is no port"),
        ('{ports: [{port: "\\u0665"}]}', "is no port"),
        ("{ports: [{endPort: 9}]}", "needs a port"),
        ("{ports: [{port: 9, endPort: 8}]}", "not above it"),
        ("{ports: [{port: 9, protocol: icmp}]}", "has no ports"),
        ("{ports: [{protocol: 'tcp accept'}]}", "is no protocol"),
        ("{ports: [{}]}", "needs a port, a protocol"),
        ("{iface: ['eth*']}", "no name of an interface"),
        ("{iface: ['a\" accept #']}", "no name of an interface"),
        ("{iface: [sixteen-letters_]}", "no name of an interface"),
        ("{iface: ['']}", "no name of an interface"),
    ],
)  # fmt: skip
def test_what_nft_could_misread_is_refused_when_the_policy_is_read(flow, said):
    with pytest.raises(PolicyError, match=said):
        load_text(text_of(f"[{flow}]"))


def test_amounts_of_traffic_are_kept_as_written():
    (document,) = load_text(text_of("[{limit: 4MB, duration: 20m}]"))

    (located,) = expand(document)

    assert flow_of(located.rule).quota == "4MB per 20m"


@pytest.mark.parametrize(
    ("direction", "flow", "refused"),
    [
        ("ingress", "{ports: [{port: ssh}]}", True),
        ("ingress", "{}", True),
        ("ingress", "{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}", True),
        ("ingress", "{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: ssh}]}", False),
        ("ingress", "{iface: [wwan0]}", False),
        ("ingress", "{ports: [{port: 80}]}", False),
        ("egress", "{}", True),
        ("egress", "{ports: [{port: 4515, protocol: tcp}]}", True),
        ("egress", "{ports: [{port: dns, protocol: udp}]}", False),
    ],
)
def test_block_that_cuts_remote_login_or_the_link_is_an_error_of_lint(direction, flow, refused):
    def errors(annotations: str = "") -> list[str]:
        found = lint(load_text(text_of(f"[{flow}]", direction=direction, annotations=annotations)))
        return [finding.text for finding in found if finding.level == "error"]

    assert bool(errors()) is refused
    assert not errors(annotations=', annotations: {garrison/i-mean-it: "true"}')


def test_allow_is_a_warning_of_lint_for_each_direction():
    findings = lint(load_text(text_of("[{ports: [{port: 443}]}, {ports: [{port: 80}]}]", action="Allow")))

    assert [f.text for f in findings] == ["makes an allow-list: all else in egress gets the posture, audit by default"]
