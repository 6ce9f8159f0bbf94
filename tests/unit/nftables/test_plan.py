"""Walking the chains and maps leads where ``decide_packet`` says, for every packet."""

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.errors import CompileError
from garrison.common.policy.firewall import Packet, decide_packet, effect_of, firewall_rules, flow_matches, flow_of
from garrison.common.policy.flows import IP_PROTOCOLS, PORTED, Direction, FlowSpec, IpNetworks, PortRange, network_of
from garrison.common.policy.rules import Entity, Mode, Other, Posture, Postures, Rule, RuleSet, Verdict, WorkloadScope
from garrison.minion.enforcers.nftables import plan as plan_module
from garrison.minion.enforcers.nftables.plan import Count, End, Go, Key, Lookup, Outcome, Plan, Tell, make_plan
from garrison.minion.enforcers.nftables.report import report_rules

NETWORKS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "255.255.255.255/32", "::/0", "2001:db8::/32",
            "2001:db8:1::/48", "2001:db8:1::7/128")  # fmt: skip
PEERS = ("0.0.0.1", "9.255.255.255", "10.0.0.1", "10.1.1.1", "10.1.2.3", "10.1.2.4", "11.0.0.0", "255.255.255.255", "::1",
         "2001:db8::1", "2001:db8:1::7", "2001:db8:1::8", "2001:db9::")  # fmt: skip
PORTS = (1, 21, 22, 23, 53, 443, 6000, 6063, 6064, 65_535)
INTERFACES = ("eth0", "wwan0", "")


def rule(number: int, flow: FlowSpec, verdict: Verdict = Verdict.BLOCK, mode: Mode = Mode.ENFORCE, **fields) -> Rule:
    target = Other(flow.direction.value, msgspec.json.encode(flow).decode())
    return Rule(id=f"p/{number:03}", policy="p", entity=Entity.FIREWALL, verdict=verdict, target=target, mode=mode, **fields)


def walk(plan: Plan, packet: Packet) -> tuple[Outcome | None, str]:
    """What nft would do, in Python: the outcome that was counted, and how it ended."""
    chains = {chain.name: chain.statements for chain in plan.chains}
    maps = {one.name: one for one in plan.maps}
    counted: list[Outcome] = []

    def key(of: Key) -> int | str | None:
        peer = packet.peer
        assert peer is not None
        match of:
            case Key.IIF:
                return packet.interface if packet.direction is Direction.INGRESS else None
            case Key.OIF:
                return packet.interface if packet.direction is Direction.EGRESS else None
            case Key.PROTOCOL:
                return packet.protocol
            case Key.PORT:
                return packet.port
            case Key.SOURCE4 | Key.SOURCE6:
                fits = packet.direction is Direction.INGRESS and peer.version == int(of.name[-1])
            case Key.DEST4 | Key.DEST6:
                fits = packet.direction is Direction.EGRESS and peer.version == int(of.name[-1])
        return int(peer) if fits else None

    def go(statements) -> str:
        for statement in statements:
            match statement:
                case Lookup(name):
                    one = maps[name]
                    wanted = key(one.key)
                    targets = [chain for first, last, chain in one.elements if wanted is not None and first <= wanted <= last]
                    assert len(targets) <= 1, "elements of a map overlap"
                    end = go(chains[targets[0]]) if targets else ""
                case Go(name):
                    end = go(chains[name])
                case Count(number):
                    counted.append(plan.outcomes[number])
                    end = ""
                case Tell():
                    end = ""
                case End(verdict):
                    return verdict
            if end:
                return end
        return ""

    end = go(plan.roots[packet.direction])
    assert len(counted) <= 1
    return (counted[0] if counted else None), end or "accept"


def check(rules: RuleSet, packet: Packet) -> None:
    decision = decide_packet(rules, packet)

    outcome, end = walk(make_plan(rules), packet)

    assert end == ("drop" if decision.verdict is Verdict.BLOCK else "accept")
    assert (outcome is None) == (decision.rule is None)
    if outcome is not None:
        assert outcome.verdict is decision.verdict
        assert outcome.by_posture == decision.by_posture
        # Of several rules with the same say, nft may name another than the oracle: one that says it.
        saying = [r for r in firewall_rules(rules) if effect_of(r) is decision.verdict and flow_matches(flow_of(r), packet)]
        assert outcome.rule in ([decision.rule] if decision.by_posture else saying)


@st.composite
def peers(draw) -> IpNetworks:
    cidr = draw(st.sampled_from(NETWORKS))
    whole = network_of(cidr)
    inside = [n for n in NETWORKS if network_of(n).version == whole.version and network_of(n).subnet_of(whole)]
    return IpNetworks(cidr, tuple(draw(st.lists(st.sampled_from(inside), max_size=2, unique=True))))


@st.composite
def ports(draw) -> PortRange:
    protocol = draw(st.sampled_from(("", *IP_PROTOCOLS)))
    if (protocol and protocol not in PORTED) or draw(st.booleans()):
        return PortRange(protocol or "tcp")
    first, last = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
    return PortRange(protocol, first, last)


flows = st.builds(
    FlowSpec,
    direction=st.sampled_from(Direction),
    peers=st.lists(peers(), max_size=3).map(tuple),
    ports=st.lists(ports(), max_size=3).map(tuple),
    interfaces=st.lists(st.sampled_from(INTERFACES[:2]), max_size=2, unique=True).map(tuple),
)
said = st.tuples(flows, st.sampled_from(Verdict), st.sampled_from(Mode))
packets = st.builds(
    lambda direction, protocol, peer, port, interface: Packet(
        direction=direction,
        protocol=protocol,
        peer=ipaddress.ip_address(peer),
        port=port if protocol in {IP_PROTOCOLS[name] for name in PORTED} else 0,
        interface=interface,
    ),
    st.sampled_from(Direction),
    st.sampled_from((*IP_PROTOCOLS.values(), 47)),
    st.sampled_from(PEERS),
    st.sampled_from(PORTS),
    st.sampled_from(INTERFACES),
)


@given(st.lists(said, max_size=8), st.sampled_from(Posture), st.lists(packets, min_size=1, max_size=8))
def test_maps_lead_where_the_rules_say(saids, posture, some):
    rules = tuple(rule(n, flow, verdict, mode) for n, (flow, verdict, mode) in enumerate(saids))

    for packet in some:
        check(RuleSet(rules=rules, postures=Postures(network=posture)), packet)


@given(st.lists(said, max_size=8))
def test_elements_of_a_map_are_apart_and_in_order(saids):
    plan = make_plan(RuleSet(rules=tuple(rule(n, *one) for n, one in enumerate(saids))))

    for one in plan.maps:
        for before, after in zip(one.elements, one.elements[1:], strict=False):
            assert before[1] < after[0]
        assert all(first <= last for first, last, _ in one.elements)


def test_ten_thousand_rules_on_networks_are_two_look_ups():
    flow = [
        FlowSpec(
            direction=Direction.EGRESS, peers=(IpNetworks(f"10.{n >> 8}.{n & 255}.0/24"),), ports=(PortRange("tcp", 443, 443),)
        )
        for n in range(10_000)
    ]

    plan = make_plan(RuleSet(rules=tuple(rule(n, one) for n, one in enumerate(flow))))

    root = plan.roots[Direction.EGRESS]
    assert len(root) == 1  # protocol, then port, then network: three maps, and one chain for each rule
    assert sorted(one.key.name for one in plan.maps) == ["DEST4", "PORT", "PROTOCOL"]
    assert max(len(chain.statements) for chain in plan.chains) == 3


def test_networks_and_ports_that_meet_in_too_many_ways_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "NFT_ELEMENTS_MAX", 1_000)
    flow = [
        FlowSpec(direction=Direction.EGRESS, peers=(IpNetworks(f"10.0.{n}.0/24"),), ports=(PortRange("tcp", 1 + n, 60_000 - n),))
        for n in range(100)
    ]

    with pytest.raises(CompileError, match="more than 1000 ways"):
        plan_module.make_plan(RuleSet(rules=tuple(rule(n, one) for n, one in enumerate(flow))))


def test_rules_that_cannot_be_held_are_said_to_be_impossible_and_are_not_in_the_plan():
    flow = FlowSpec(direction=Direction.INGRESS)
    quota = FlowSpec(direction=Direction.INGRESS, quota="10mb per 1h")
    rules = RuleSet(rules=(rule(1, flow, scope=WorkloadScope(labels=("app=web",))), rule(2, quota)))

    reports = report_rules(rules)

    assert [report.status for report in reports] == ["impossible", "impossible"]
    assert make_plan(rules).outcomes == ()


def test_block_in_audit_mode_and_audit_are_reported_as_audited():
    flow = FlowSpec(direction=Direction.INGRESS)
    rules = RuleSet(
        rules=(rule(1, flow, mode=Mode.AUDIT), rule(2, flow, Verdict.AUDIT), rule(3, flow), rule(4, flow, Verdict.ALLOW))
    )

    assert [report.status for report in report_rules(rules)] == ["audited", "audited", "enforced", "enforced"]


def test_without_a_packet_log_every_rule_is_degraded():
    (report,) = report_rules(RuleSet(rules=(rule(1, FlowSpec(direction=Direction.INGRESS)),)), silent="no packet log")

    assert (report.status, report.reason) == ("degraded", "no packet log")
