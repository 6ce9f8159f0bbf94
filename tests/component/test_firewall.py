"""Firewall rules in the real kernel: what passes, is dropped, is told, and what happens when things change or run full."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from component.firewall_nodes import ICMP, ICMPV6, TCP, UDP, Link, Traffic, inside, until
from garrison.common.errors import BackendUnsupportedError, KernelError
from garrison.common.events import Kind
from garrison.common.policy.firewall import Packet, decide_packet
from garrison.common.policy.flows import Direction, FlowSpec, IpNetworks, PortRange
from garrison.common.policy.load import load_text
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.rules import Entity, Mode, Other, Posture, Rule, RuleSet, Verdict
from garrison.minion.enforcers.bpf_lsm.options import EventRate
from garrison.minion.enforcers.nftables.nft import Nft

pytestmark = pytest.mark.root

OUT, IN = Direction.EGRESS, Direction.INGRESS
_numbers = itertools.count()

FOREIGN = """
table inet other {
  counter hits { }
  set known { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
  chain in { type filter hook input priority 0; policy accept; ip saddr @known drop; }
}
table ip nat {
  chain post { type nat hook postrouting priority 100; oifname "none0" masquerade; }
}
"""


@pytest.fixture(scope="module")
def wires(tmp_path_factory) -> Iterator[Link]:
    link = Link(f"gfw{os.getpid() % 100_000}", tmp_path_factory.mktemp("firewall"))
    yield link
    link.close()


@pytest.fixture
def link(wires) -> Iterator[Link]:
    wires.events.clear()
    wires.enforcer = wires.new_enforcer()
    yield wires
    with inside(wires.node):
        wires.enforcer.release()


def rule(direction: Direction, *ports: PortRange, peers=(), interfaces=(), verdict=Verdict.BLOCK, name="fw", **fields) -> Rule:
    flow = FlowSpec(direction=direction, peers=tuple(peers), ports=ports, interfaces=tuple(interfaces))
    target = Other(direction.value, msgspec.json.encode(flow).decode())
    return Rule(id=f"{name}/{next(_numbers):012}", policy=name, entity=Entity.FIREWALL, verdict=verdict, target=target, **fields)


def packet(direction: Direction, protocol: int, peer: str = "10.77.0.2", port: int = 0, interface: str = "eth0") -> Packet:
    return Packet(direction=direction, protocol=protocol, peer=ipaddress.ip_address(peer), port=port, interface=interface)


PACKETS = (
    *(packet(way, protocol, peer, port)
      for way in Direction for protocol in (TCP, UDP) for peer in ("10.77.0.2", "10.77.1.2", "fd77::2", "fd77:0:1::2")
      for port in (2000, 2001)),
    *(packet(way, UDP, "10.78.0.2", 2000, "wwan0") for way in Direction),
    *(packet(way, ICMP, "10.77.0.2") for way in Direction),
    *(packet(way, ICMPV6, "fd77::2") for way in Direction),
)  # fmt: skip
FAR = [IpNetworks("10.77.1.2")]
CASES = {
    "everything out": [rule(OUT)],
    "everything in": [rule(IN)],
    "tcp": [rule(OUT, PortRange("tcp")), rule(IN, PortRange("tcp"))],
    "udp range": [rule(OUT, PortRange("udp", 1900, 2000)), rule(IN, PortRange("udp", 2001, 2001))],
    "any protocol with ports": [rule(OUT, PortRange("", 2000, 2000)), rule(IN, PortRange("", 2000, 2000))],
    "icmp": [rule(OUT, PortRange("icmp")), rule(IN, PortRange("icmpv6"))],
    "icmp the other way": [rule(OUT, PortRange("icmpv6")), rule(IN, PortRange("icmp"))],
    "network without a part": [
        rule(way, peers=[IpNetworks("10.77.0.0/16", ("10.77.1.0/24",)), IpNetworks("fd77::/32", ("fd77:0:1::/48",))])
        for way in Direction
    ],
    "interface": [rule(OUT, interfaces=["wwan0"]), rule(IN, interfaces=["wwan0", "none0"])],
    "audit": [rule(OUT, PortRange("udp", 2000, 2001), verdict=Verdict.AUDIT), rule(OUT, PortRange("udp", 2001, 2001))],
    "audit mode": [rule(OUT, PortRange("tcp"), mode=Mode.AUDIT), rule(IN, mode=Mode.AUDIT)],
    "allow-list": [
        rule(OUT, PortRange("tcp", 2000, 2000), verdict=Verdict.ALLOW),
        rule(IN, peers=[IpNetworks("10.77.0.2/32"), IpNetworks("fd77::2/128")], verdict=Verdict.ALLOW),
        rule(IN, PortRange("tcp", 2001, 2001)),
    ],
    "networks on ports on interfaces": [
        rule(IN, PortRange("udp", 2000, 2000), PortRange("tcp", 2001, 2001), peers=FAR, interfaces=["eth0"]),
        rule(IN, PortRange("udp", 1, 65_535), peers=[IpNetworks("10.78.0.0/16")]),
        rule(OUT, PortRange("udp", 2000, 2000), peers=[IpNetworks("0.0.0.0/0")]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("posture", Posture)
@pytest.mark.parametrize("case", CASES)
def test_kernel_drops_passes_and_tells_as_the_rules_say(link, case, posture):
    held = link.hold(*CASES[case], posture=posture)

    for one in PACKETS:
        decision = decide_packet(held, one)
        passed, _ = link.send(one)

        assert passed == (decision.verdict is not Verdict.BLOCK), one
        if decision.verdict is Verdict.ALLOW:
            continue
        until(lambda: link.events, f"{one} is told")
        event = link.events[0]
        assert (event.verdict, event.operation) == (decision.verdict.value, one.direction.value), one
        assert decision.rule is not None
        assert (event.rule, event.policy, event.actor) == (decision.rule.id, "fw", None)
        assert event.data["interface"] == one.interface
        assert event.data["source" if one.direction is IN else "destination"] == str(one.peer)
        assert event.data.get("destination_port", 0) == one.port
        assert event.data.get("by_posture", False) == decision.by_posture


def test_published_policy_drops_outgoing_dns(link):
    text = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {name: nsp-egress-block-dns}
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: edge-1}}
  egress:
  - to: [{ipBlock: {cidr: 10.77.0.2/32}}]
    ports: [{port: dns, protocol: UDP}]
  severity: 5
  action: Block
"""
    rules = normalise([(document, Mode.ENFORCE) for document in load_text(text)], NodeFacts("edge-1")).rules
    with inside(link.node):
        reports = link.enforcer.apply(rules)

    assert [report.status for report in reports] == ["enforced"]
    assert link.send(packet(OUT, UDP, port=53))[0] is False
    (event,) = link.events
    assert (event.object, event.severity, event.result) == ("udp://10.77.0.2:53", 5, "dropped")
    assert event.data["uid"] == os.geteuid()
    assert link.send(packet(OUT, UDP, "10.77.1.2", 53))[0]
    assert link.send(packet(OUT, TCP, port=53))[0]


def test_connection_that_is_open_goes_on_and_replies_pass(link):
    link.hold(rule(OUT, PortRange("udp", 1, 1)))
    with inside(link.node):
        server = socket.create_server(("10.77.0.1", 2222))
    with inside(link.peer):
        client = socket.create_connection(("10.77.0.1", 2222), timeout=30)
    peer = server.accept()[0]

    link.hold(rule(OUT), rule(IN))
    client.sendall(b"are you there")
    assert peer.recv(64) == b"are you there"
    peer.sendall(b"yes")

    assert client.recv(64) == b"yes"
    for one in (server, client, peer):
        one.close()


def test_loopback_and_neighbour_discovery_always_pass(link):
    link.hold(rule(OUT), rule(IN))
    subprocess.run(["ip", "-n", link.node, "neigh", "flush", "dev", "eth0"], check=True)
    with inside(link.node):
        server = socket.create_server(("127.0.0.1", 2223))
        client = socket.create_connection(("127.0.0.1", 2223), timeout=30)

    # Without neighbours nothing would come as far as to be dropped by its rule.
    assert link.send(packet(OUT, UDP, "fd77::2", 2000))[0] is False
    subprocess.run(["ip", "-n", link.peer, "-6", "neigh", "flush", "dev", "eth0"], check=True)
    assert link.send(packet(IN, UDP, "fd77::2", 2000))[0] is False
    server.close()
    client.close()


def test_tables_of_others_are_not_touched(link):
    link.nft("-f", "-", stdin=FOREIGN)
    before = link.nft("list", "ruleset")

    try:
        link.hold(rule(OUT, PortRange("udp", 2000, 2000)), rule(IN, interfaces=["eth0"], peers=[IpNetworks("192.0.2.0/24")]))
        assert link.ruleset_of_others() == before
        link.hold(rule(OUT, PortRange("udp", 2001, 2001)))
        assert link.ruleset_of_others() == before
        with inside(link.node):
            link.enforcer.release()
        assert link.nft("list", "ruleset") == before
    finally:
        with inside(link.node):
            link.enforcer.close()
        link.nft("flush", "ruleset")


def test_swap_under_traffic_drops_nothing_allowed_and_passes_nothing_blocked(link, monkeypatch):
    blocked, sets = rule(OUT, PortRange("udp", 2000, 2000)), [rule(OUT, PortRange("udp", 9, n)) for n in (10, 11)]
    link.hold(blocked, sets[0])
    run = Nft.run
    traffic = Traffic(link)

    def run_under_traffic(self: Nft, script: str, *, what: str) -> None:
        with traffic.flowing():
            run(self, script, what=what)

    monkeypatch.setattr(Nft, "run", run_under_traffic)
    try:
        for n in range(100):
            link.hold(blocked, sets[(n + 1) % 2])
            traffic.take()
        until(lambda: traffic.take() or traffic.received >= traffic.sent, "all that was sent came")

        assert not select.select([traffic.bad], [], [], 0)[0]
    finally:
        traffic.close()
    assert traffic.received == traffic.sent
    assert traffic.refused == traffic.sent


def test_counters_are_exact_over_changes_of_rules_and_limited_alerts(link):
    link.enforcer = link.new_enforcer(rate=EventRate(per_s=1, burst=5))
    counted = rule(OUT, PortRange("udp", 2000, 2000))
    link.hold(counted)
    for n in range(120):
        with inside(link.node), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(PermissionError):
            one.sendto(b"x", ("10.77.0.2", 2000))
        if n % 20 == 0:
            link.hold(counted, rule(OUT, PortRange("udp", 9, 9)))

    with inside(link.node):
        counters = link.enforcer.status().counters

    until(lambda: len(link.events) == counters["told"], "what was told is here")
    assert counters[f"matched.{counted.id}"] == counters["blocked"] == 120
    assert 0 < counters["told"] < 120
    assert counters[f"untold.{counted.id}"] == 120 - counters["told"]
    assert counters["lost"] == counters.get("unnamed", 0) == 0

    link.hold(rule(OUT, PortRange("udp", 9, 9)))  # the rule goes, its sum stays
    with inside(link.node):
        assert link.enforcer.status().counters["matched"] == 120


@pytest.mark.parametrize("broken_step", ["prepare rules", "switch to rules"])
def test_rules_that_the_kernel_refuses_leave_the_previous_ones_in_force(link, monkeypatch, broken_step):
    held = rule(OUT, PortRange("udp", 2000, 2000))
    link.hold(held)
    before = link.nft("list", "table", "inet", "garrison")
    run = Nft.run

    def broken(self: Nft, script: str, *, what: str) -> None:
        run(self, script + ("add rule inet garrison nowhere accept\n" if what == broken_step else ""), what=what)

    monkeypatch.setattr(Nft, "run", broken)
    with pytest.raises(KernelError, match=broken_step):
        link.hold(rule(OUT, PortRange("udp", 2001, 2001)))
    monkeypatch.undo()

    assert link.nft("list", "table", "inet", "garrison") == before
    assert link.send(packet(OUT, UDP, port=2000))[0] is False
    until(lambda: link.events, "the packet is told")
    assert link.events[0].rule == held.id


def test_rules_stay_when_the_agent_is_killed_and_the_next_one_takes_over(link, tmp_path):
    script = tmp_path / "agent.py"
    rules = RuleSet(rules=(rule(OUT, PortRange("udp", 2000, 2000)),))
    script.write_text(
        "import sys, signal, msgspec\n"
        "from garrison.common.policy.rules import RuleSet\n"
        "from garrison.minion.enforcers.nftables import NftablesEnforcer\n"
        "rules = msgspec.json.decode(sys.argv[1], type=RuleSet)\n"
        "NftablesEnforcer(print).apply(rules)\n"
        "print('held', flush=True)\n"
        "signal.pause()\n"
    )
    with inside(link.node):
        agent = subprocess.Popen([sys.executable, script, msgspec.json.encode(rules)], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    assert agent.stdout.readline() == "held\n"
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    agent.stdout.close()

    with inside(link.node), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(PermissionError):
        one.sendto(b"x", ("10.77.0.2", 2000))

    with inside(link.node):
        link.enforcer.apply(rules)
    assert link.send(packet(OUT, UDP, port=2000))[0] is False
    assert link.events[0].rule == rules.rules[0].id
    with inside(link.node):
        assert link.enforcer.status().counters["matched"] == 2  # also what nobody heard of

        link.enforcer.close()
    with inside(link.node), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(PermissionError):
        one.sendto(b"x", ("10.77.0.2", 2000))
    with inside(link.node):
        link.enforcer.release()
    assert link.nft("list", "ruleset") == ""
    assert link.send(packet(OUT, UDP, port=2000))[0]


@pytest.mark.parametrize(
    "attack",
    ["flush ruleset", "delete table inet garrison", "flush chain inet garrison egress", "flush map inet garrison MAP",
     "insert rule inet garrison egress accept"],
)  # fmt: skip
def test_table_that_somebody_changes_is_restored_and_told(link, attack):
    held = rule(OUT, PortRange("udp", 2000, 2000))
    link.hold(held)
    before = link.nft("-s", "list", "table", "inet", "garrison")

    link.nft("-f", "-", stdin=attack.replace("MAP", before.partition("map ")[2].split()[0]))

    until(lambda: any(event.kind == Kind.TAMPER for event in link.events), "the change is told")
    after = link.nft("-s", "list", "table", "inet", "garrison")
    assert _without_tag(after) == _without_tag(before)
    assert link.send(packet(OUT, UDP, port=2000))[0] is False
    with inside(link.node):
        status = link.enforcer.status()
    assert status.healthy
    assert status.counters["restored"] == 1


def _without_tag(listing: str) -> str:
    return re.sub(r"_[0-9a-f]{8}\b|\b[0-9a-f]{8}:", "", listing)


def test_ten_thousand_networks_are_taken_and_each_of_them_holds(link):
    peers = [IpNetworks(f"10.{100 + (n >> 12)}.{n >> 4 & 255}.{(n & 15) * 16}/28") for n in range(0, 20_000, 2)]
    held = rule(OUT, PortRange("udp", 2000, 2000), peers=[*peers, IpNetworks("10.77.1.0/24")])

    link.hold(held)

    assert link.send(packet(OUT, UDP, port=2000))[0]
    assert link.send(packet(OUT, UDP, "10.77.1.2", port=2000))[0] is False


def test_ten_thousand_rules_are_taken(link):
    others = [
        rule(OUT, PortRange("udp", 2000, 2000), peers=[IpNetworks(f"10.{100 + (n >> 8)}.{n & 255}.0/24")]) for n in range(10_000)
    ]
    held = rule(OUT, PortRange("udp", 2000, 2000), peers=[IpNetworks("10.77.1.0/24")])

    link.hold(*others, held)

    assert link.send(packet(OUT, UDP, port=2000))[0]
    assert link.send(packet(OUT, UDP, "10.77.1.2", port=2000))[0] is False
    assert link.events[0].rule == held.id


def test_without_nft_the_probe_says_so_and_nothing_is_applied(link, tmp_path, monkeypatch):
    monkeypatch.setattr("garrison.minion.enforcers.nftables.nft._PLACES", str(tmp_path))
    monkeypatch.setattr(Nft.__init__, "__defaults__", (str(tmp_path),))
    enforcer = link.new_enforcer()

    probe = enforcer.probe()

    assert (probe.ok, probe.reason) == (False, "there is no nft on this machine (install nftables)")
    with pytest.raises(BackendUnsupportedError, match="no nft"):
        enforcer.apply(RuleSet(rules=(rule(OUT),)))
    enforcer.release()


def test_probe_leaves_nothing_behind(link):
    before = link.nft("list", "ruleset")

    with inside(link.node):
        probe = link.enforcer.probe()

    assert (probe.ok, probe.reason) == (True, "")
    assert link.nft("list", "ruleset") == before == ""
