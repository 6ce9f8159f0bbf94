"""What firewall rules cost the packet that begins a flow, and how long it takes to put them in place.

The unit is one UDP packet from a new socket over a veth pair, to an address that no rule names: it goes through all. Ratios are
to the same without our table, in the same run.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from component.firewall_nodes import Link, inside
from garrison.common.policy.flows import Direction, FlowSpec, IpNetworks, PortRange
from garrison.common.policy.rules import Entity, Other, Rule, Verdict

_PACKETS = 5_000
_ROUNDS = 7
_numbers = itertools.count()


def run() -> dict[str, float]:
    """Return ratios and seconds by name; needs root."""
    networks = [IpNetworks(f"10.{100 + (n >> 8)}.{n & 255}.0/24") for n in range(10_000)]
    kinds: dict[str, list[Rule]] = {
        "1_rule": [_rule(networks[0])],
        "1_rule_of_10000_networks": [_rule(*networks)],
        "10000_rules": [_rule(network) for network in networks],
    }
    with tempfile.TemporaryDirectory() as work:
        link = Link(f"gbf{os.getpid() % 100_000}", Path(work))
        try:
            return _measure(link, kinds)
        finally:
            link.close()


def _measure(link: Link, kinds: dict[str, list[Rule]]) -> dict[str, float]:
    found: dict[str, float] = {}
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(_ROUNDS):
        with inside(link.node):
            link.enforcer.release()
        without = _flows_s(link)
        for name, rules in kinds.items():
            began = time.perf_counter()
            link.hold(*rules)
            if not turn:
                found[f"apply_{name}_s"] = round(time.perf_counter() - began, 2)
            ratios[name].append(_flows_s(link) / without)
    with inside(link.node):
        link.enforcer.release()
    return found | {f"flow_{name}_x": round(statistics.median(of), 2) for name, of in ratios.items()}


def _flows_s(link: Link) -> float:
    with inside(link.node):
        began = time.perf_counter()
        for _ in range(_PACKETS):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.sendto(b"x", ("10.77.0.2", 2001))
        return time.perf_counter() - began


def _rule(*peers: IpNetworks) -> Rule:
    flow = FlowSpec(direction=Direction.EGRESS, peers=peers, ports=(PortRange("udp", 2000, 2002),))
    target = Other("egress", msgspec.json.encode(flow).decode())
    return Rule(id=f"b/{next(_numbers):06}", policy="b", entity=Entity.FIREWALL, verdict=Verdict.BLOCK, target=target)
