"""What firewall rules mean: one pure function from a RuleSet and the packet that begins a flow to a decision.

Rules of this file:
- A rule matches when direction, peer, protocol, destination port and interface do. The peer is the source of what comes in and
  the destination of what goes out; the port is the destination's, both ways.
- Block beats audit beats allow, whatever file it came from, as everywhere (``match``).
- An allow rule makes an allow-list for its direction: what no rule names gets the network posture there.
- Only what begins a flow is judged; replies and what belongs to it (ICMP errors) go through, and so does loopback.
Owns: meaning. Does not own: the words (``flows``), how nft is told (the node's backend), what must never be cut (``never_deny``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from garrison.common.policy.flows import IP_PROTOCOLS, PORTED, Direction, FlowSpec, IpNetworks, PortRange, network_of, read_flow
from garrison.common.policy.match import Decision
from garrison.common.policy.rules import Entity, HostScope, Mode, Other, Posture, Rule, RuleSet, Verdict

__all__ = ["Packet", "decide_packet", "effect_of", "firewall_rules", "flow_matches", "flow_of", "posture_decision", "speaking"]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """The packet that begins a flow.

    Attributes:
        direction: Which way.
        protocol: Number of its protocol.
        peer: The other side; ``None`` for anybody: then only rules match that name everybody.
        port: Destination port; 0 when the protocol has none.
        interface: Where it comes in or goes out; empty for any: then only rules match that name none.
    """

    direction: Direction
    protocol: int
    peer: IpAddress | None = None
    port: int = 0
    interface: str = ""


_PORTED_NUMBERS: Final = frozenset(IP_PROTOCOLS[name] for name in PORTED)


def flow_of(rule: Rule) -> FlowSpec:
    """Return what a firewall rule names."""
    assert isinstance(rule.target, Other)  # noqa: S101 - expand makes no other
    return read_flow(rule.target.spec)


def firewall_rules(rules: RuleSet) -> tuple[Rule, ...]:
    """Return the firewall rules that hold for the node as a whole and can be held: without quota."""
    return tuple(
        r for r in rules.rules if r.entity is Entity.FIREWALL and isinstance(r.scope, HostScope) and not flow_of(r).quota
    )


def effect_of(rule: Rule) -> Verdict:
    """Return what comes of a rule in its mode."""
    return Verdict.AUDIT if rule.verdict is Verdict.BLOCK and rule.mode is Mode.AUDIT else rule.verdict


def decide_packet(rules: RuleSet, packet: Packet) -> Decision:
    """Return the decision for ``packet``; of several rules with the same say, the one with the smallest id is named."""
    held = [rule for rule in firewall_rules(rules) if flow_of(rule).direction is packet.direction]
    named = [rule for rule in held if flow_matches(flow_of(rule), packet)]
    for verdict in (Verdict.BLOCK, Verdict.AUDIT, Verdict.ALLOW):
        if said := speaking(named, verdict):
            return Decision(verdict=verdict, rule=said[0])
    return posture_decision(rules.postures.network, held)


def posture_decision(posture: Posture, held: Iterable[Rule]) -> Decision:
    """Return what happens to a packet that none of ``held``, the rules of its direction, names."""
    lists = speaking(held, Verdict.ALLOW)
    if not lists:
        return Decision(verdict=Verdict.ALLOW)
    enforced = [rule for rule in lists if rule.mode is Mode.ENFORCE]
    if posture is Posture.BLOCK and enforced:
        return Decision(verdict=Verdict.BLOCK, rule=enforced[0], by_posture=True)
    return Decision(verdict=Verdict.AUDIT, rule=lists[0], by_posture=True)


def speaking(rules: Iterable[Rule], effect: Verdict) -> Sequence[Rule]:
    """Return the rules of ``rules`` with that effect, by id."""
    return sorted((rule for rule in rules if effect_of(rule) is effect), key=lambda rule: rule.id)


def flow_matches(flow: FlowSpec, packet: Packet) -> bool:
    """Return whether ``flow`` names ``packet``."""
    return (
        flow.direction is packet.direction
        and (not flow.interfaces or packet.interface in flow.interfaces)
        and (not flow.ports or any(_port_matches(port, packet) for port in flow.ports))
        and (not flow.peers or any(_peer_matches(peer, packet.peer) for peer in flow.peers))
    )


def _port_matches(port: PortRange, packet: Packet) -> bool:
    if packet.protocol not in ({IP_PROTOCOLS[port.protocol]} if port.protocol else _PORTED_NUMBERS):
        return False
    return port.every_port or port.first <= packet.port <= port.last


def _peer_matches(peer: IpNetworks, address: IpAddress | None) -> bool:
    if address is None:
        return network_of(peer.cidr).prefixlen == 0 and not peer.without
    return address in network_of(peer.cidr) and not any(address in network_of(other) for other in peer.without)
