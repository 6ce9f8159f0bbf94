"""Firewall rules as chains and verdict maps: a packet costs a few look-ups, however many rules there are.

Rules of this file:
- Pure. What a rule means is ``common.policy.firewall``'s; a property test walks the plan and compares.
- One stage for each say, block before audit before allow, then the posture of the direction. Within a stage: rules with an
  interface, then for each protocol and each part of its ports the networks, cut so that each address leads to one rule: the
  smallest id of those that say the same.
- A rule has one chain, which counts, tells and ends; wherever it is meant, a map leads there.
- Nothing here is text from a policy but names of interfaces, whose alphabet ``flows`` checked.
Owns: the shape. Does not own: nft's language (``script``), what always passes (``script``), counters' lives (``enforcer``).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, Literal

import msgspec

from garrison.common import limits
from garrison.common.errors import CompileError
from garrison.common.policy.firewall import effect_of, firewall_rules, flow_of, posture_decision, speaking
from garrison.common.policy.flows import IP_PROTOCOLS, PORTED, Direction, IpNetworks, PortRange, network_of
from garrison.common.policy.rules import Rule, RuleSet, Verdict

__all__ = ["Chain", "Count", "End", "Go", "Key", "Lookup", "Outcome", "Plan", "Tell", "VerdictMap", "make_plan"]

_TOP: Final = {4: (1 << 32) - 1, 6: (1 << 128) - 1}


class Key(Enum):
    """What a map is asked for: nft's expression, the type of its keys, whether they are ranges."""

    IIF = ("iifname", "ifname", False)
    OIF = ("oifname", "ifname", False)
    PROTOCOL = ("meta l4proto", "inet_proto", False)
    PORT = ("th dport", "inet_service", True)
    SOURCE4 = ("ip saddr", "ipv4_addr", True)
    SOURCE6 = ("ip6 saddr", "ipv6_addr", True)
    DEST4 = ("ip daddr", "ipv4_addr", True)
    DEST6 = ("ip6 daddr", "ipv6_addr", True)


class Lookup(msgspec.Struct, frozen=True):
    """Go where the map ``map`` leads; on with the next statement if nowhere."""

    map: str


class Go(msgspec.Struct, frozen=True):
    """Go through a chain, and on with the next statement if it did not end the packet's way."""

    chain: str


class Count(msgspec.Struct, frozen=True):
    """Count the packet for outcome ``number``."""

    number: int


class Tell(msgspec.Struct, frozen=True):
    """Tell the packet to user space for outcome ``number``, as far as its rate allows."""

    number: int


class End(msgspec.Struct, frozen=True):
    """The packet's way ends here."""

    verdict: Literal["accept", "drop"]


Statement = Lookup | Go | Count | Tell | End


class Chain(msgspec.Struct, frozen=True):
    """Statements under a name."""

    name: str
    statements: tuple[Statement, ...]


class VerdictMap(msgspec.Struct, frozen=True):
    """From a key to the chain that goes on with it.

    Attributes:
        name: Its name.
        key: What is looked up.
        elements: First and last key (the same for keys that are no ranges) and a chain. Disjoint and ascending.
    """

    name: str
    key: Key
    elements: tuple[tuple[int | str, int | str, str], ...]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a packet can end; its number is its place in ``Plan.outcomes``.

    Attributes:
        rule: The rule that decides; for a posture the allow rule that made the list.
        verdict: What is decided.
        by_posture: The posture decides.
        key: Stable name for counters: the rule's id, and the direction for a posture.
    """

    rule: Rule
    verdict: Verdict
    by_posture: bool = False
    key: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be in the table.

    Attributes:
        roots: For each direction what a packet goes through, after what always passes.
        chains: All chains.
        maps: All maps.
        outcomes: By number.
    """

    roots: Mapping[Direction, tuple[Statement, ...]]
    chains: tuple[Chain, ...]
    maps: tuple[VerdictMap, ...]
    outcomes: tuple[Outcome, ...]


def make_plan(rules: RuleSet) -> Plan:
    """Return the plan of all rules that the node can hold.

    Raises:
        CompileError: Addresses and ports meet in more than ``NFT_ELEMENTS_MAX`` ways.
    """
    builder = _Builder(firewall_rules(rules))
    roots = {direction: builder.direction(direction, rules) for direction in Direction}
    return Plan(roots=roots, chains=tuple(builder.chains), maps=tuple(builder.maps), outcomes=tuple(builder.outcomes))


class _Builder:
    """Makes chains and maps, each content once."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = sorted(rules, key=lambda rule: rule.id)  # so that the smallest number is the smallest id
        self._flows = [flow_of(rule) for rule in self._rules]
        self._ranges = [_ranges(flow.peers) for flow in self._flows]
        self.chains: list[Chain] = []
        self.maps: list[VerdictMap] = []
        self.outcomes: list[Outcome] = []
        self._ends: dict[int, str] = {}
        self._known: dict[tuple[Direction, tuple[int, ...]], tuple[Statement, ...]] = {}
        self._interned: dict[tuple[Statement, ...], str] = {}
        self._elements = 0

    # ---- stages ----------------------------------------------------------------------------------------------------------
    def direction(self, direction: Direction, rules: RuleSet) -> tuple[Statement, ...]:
        numbers = [n for n, flow in enumerate(self._flows) if flow.direction is direction]
        statements: list[Statement] = []
        for effect in (Verdict.BLOCK, Verdict.AUDIT, Verdict.ALLOW):
            of_stage = [n for n in numbers if effect_of(self._rules[n]) is effect]
            statements += self._stage(direction, of_stage)
        held = [self._rules[n] for n in numbers]
        if speaking(held, Verdict.ALLOW):
            decision = posture_decision(rules.postures.network, held)
            assert decision.rule is not None  # noqa: S101 - there is a list
            key = f"{decision.rule.id} {direction.value}"
            outcome = Outcome(rule=decision.rule, verdict=decision.verdict, by_posture=True, key=key)
            statements.append(Go(self._end(f"else_{direction.value}", outcome)))
        return tuple(statements)

    def _stage(self, direction: Direction, numbers: Sequence[int]) -> list[Statement]:
        by_interface: dict[str, list[int]] = {}
        anywhere: list[int] = []
        for n in numbers:
            for interface in self._flows[n].interfaces:
                by_interface.setdefault(interface, []).append(n)
            if not self._flows[n].interfaces:
                anywhere.append(n)
        key = Key.IIF if direction is Direction.INGRESS else Key.OIF
        elements = [(name, name, self._chain(self._layers(direction, of))) for name, of in sorted(by_interface.items())]
        return [*self._lookup(key, elements), *self._layers(direction, anywhere)]

    def _layers(self, direction: Direction, numbers: Sequence[int]) -> tuple[Statement, ...]:
        plain = [n for n in numbers if not self._flows[n].ports]
        by_protocol: dict[str, list[tuple[int, PortRange]]] = {}
        for n in numbers:
            for port in self._flows[n].ports:
                for protocol in [port.protocol] if port.protocol else PORTED:
                    by_protocol.setdefault(protocol, []).append((n, port))
        elements = [
            (IP_PROTOCOLS[name], IP_PROTOCOLS[name], self._chain(self._protocol(direction, named)))
            for name, named in sorted(by_protocol.items(), key=lambda item: IP_PROTOCOLS[item[0]])
        ]
        return (*self._networks(direction, plain), *self._lookup(Key.PROTOCOL, elements))

    def _protocol(self, direction: Direction, named: Sequence[tuple[int, PortRange]]) -> tuple[Statement, ...]:
        plain = [n for n, port in named if port.every_port]
        parts = _parts([(port.first, port.last, n) for n, port in named if not port.every_port])
        elements = [(first, last, self._chain(self._networks(direction, of))) for first, last, of in parts]
        return (*self._networks(direction, plain), *self._lookup(Key.PORT, elements))

    def _networks(self, direction: Direction, numbers: Iterable[int]) -> tuple[Statement, ...]:
        chosen = tuple(sorted(set(numbers)))
        if not chosen:
            return ()
        known = self._known.get((direction, chosen))
        if known is None:
            known = self._known[direction, chosen] = self._cut(direction, chosen)
        return known

    def _cut(self, direction: Direction, numbers: Sequence[int]) -> tuple[Statement, ...]:
        least = numbers[0]
        if not self._flows[least].peers:
            return (Go(self._rule_end(least)),)
        statements: list[Statement] = []
        keys = (Key.SOURCE4, Key.SOURCE6) if direction is Direction.INGRESS else (Key.DEST4, Key.DEST6)
        for version, key in zip((4, 6), keys, strict=True):
            cells = [(first, last, n) for n in numbers for first, last in self._ranges[n][version]]
            statements += self._lookup(key, [(a, b, self._rule_end(n)) for a, b, n in _winners(cells)])
        return tuple(statements)

    # ---- ends ------------------------------------------------------------------------------------------------------------
    def _rule_end(self, number: int) -> str:
        if number not in self._ends:
            rule = self._rules[number]
            outcome = Outcome(rule=rule, verdict=effect_of(rule), key=rule.id)
            self._ends[number] = self._end(f"rule_{number}", outcome)
        return self._ends[number]

    def _end(self, name: str, outcome: Outcome) -> str:
        number = len(self.outcomes)
        self.outcomes.append(outcome)
        told = () if outcome.verdict is Verdict.ALLOW else (Tell(number),)
        end = End("drop" if outcome.verdict is Verdict.BLOCK else "accept")
        self.chains.append(Chain(name, (Count(number), *told, end)))
        return name

    # ---- pieces ----------------------------------------------------------------------------------------------------------
    def _chain(self, statements: tuple[Statement, ...]) -> str:
        if len(statements) == 1 and isinstance(statements[0], Go):
            return statements[0].chain
        if statements not in self._interned:
            self._interned[statements] = name = f"part_{len(self._interned)}"
            self.chains.append(Chain(name, statements))
        return self._interned[statements]

    def _lookup(self, key: Key, elements: Sequence[tuple[int | str, int | str, str]]) -> list[Statement]:
        if not elements:
            return []
        self._elements += len(elements)
        if self._elements > limits.NFT_ELEMENTS_MAX:
            raise _too_many()
        name = f"map_{len(self.maps)}"
        self.maps.append(VerdictMap(name, key, tuple(elements)))
        return [Lookup(name)]


def _too_many() -> CompileError:
    return CompileError(
        f"addresses and ports of firewall rules meet in more than {limits.NFT_ELEMENTS_MAX} ways",
        hint="give one list of networks all its ports in one entry",
    )


# ---- ranges ------------------------------------------------------------------------------------------------------------
def _ranges(peers: Sequence[IpNetworks]) -> dict[int, list[tuple[int, int]]]:
    """Return the addresses of ``peers`` by IP version; all when there are none."""
    if not peers:
        return {version: [(0, top)] for version, top in _TOP.items()}
    found: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for peer in peers:
        network = network_of(peer.cidr)
        holes = sorted(_bounds(other) for other in peer.without)
        at, last = _bounds(peer.cidr)
        for first_out, last_out in holes:
            if first_out > at:
                found[network.version].append((at, first_out - 1))
            at = max(at, last_out + 1)
        if at <= last:
            found[network.version].append((at, last))
    return found


def _bounds(cidr: str) -> tuple[int, int]:
    network = network_of(cidr)
    return int(network.network_address), int(network.broadcast_address)


def _winners(cells: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return ``cells`` (first, last, number) cut so that each key is in at most one: that with the smallest number."""
    starts = sorted(cells)
    edges = sorted({first for first, _, _ in cells} | {last + 1 for _, last, _ in cells})
    alive: list[tuple[int, int]] = []  # number, last
    found: list[tuple[int, int, int]] = []
    at = 0
    for first, after in itertools.pairwise(edges):
        while at < len(starts) and starts[at][0] <= first:
            heapq.heappush(alive, (starts[at][2], starts[at][1]))
            at += 1
        while alive and alive[0][1] < first:
            heapq.heappop(alive)
        if not alive:
            continue
        number = alive[0][0]
        if found and found[-1][1] + 1 == first and found[-1][2] == number:
            found[-1] = (found[-1][0], after - 1, number)
        else:
            found.append((first, after - 1, number))
    return found


def _parts(cells: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Return ``cells`` (first, last, number) cut so that each key is in at most one, with all numbers that are about it."""
    changes: dict[int, list[tuple[int, int]]] = {}
    for first, last, number in cells:
        changes.setdefault(first, []).append((number, 1))
        changes.setdefault(last + 1, []).append((number, -1))
    alive: dict[int, int] = {}
    found: list[tuple[int, int, tuple[int, ...]]] = []
    met = 0
    for first, after in itertools.pairwise(sorted(changes)):
        for number, step in changes[first]:
            alive[number] = alive.get(number, 0) + step
            if not alive[number]:
                del alive[number]
        numbers = tuple(sorted(alive))
        met += len(numbers)
        if met > limits.NFT_ELEMENTS_MAX:
            raise _too_many()
        if not numbers:
            continue
        if found and found[-1][1] + 1 == first and found[-1][2] == numbers:
            found[-1] = (found[-1][0], after - 1, numbers)
        else:
            found.append((first, after - 1, numbers))
    return found
