"""A plan in nft's language, in three transactions; and what passes whatever the rules say.

Rules of this file:
- Pure. A transaction is done as a whole or not at all. The first *prepares*: new chains and maps, where no packet comes. The
  second *switches*: it empties the two chains on hooks and fills them anew. The third *clears* what no packet comes to any more.
- The switch touches rules only, so a packet sees one generation from the hook on. Elements of a map that comes or goes in the
  same transaction may be missed for some microseconds (Linux 6.18: two packets a switch got through), and so may packets
  between two hooked chains of which one comes and the other goes.
- Counters stay, so that their figures are exact; the enforcer takes away those that nothing counts into any more.
- Only numbers, addresses, names of our own and names of interfaces get into the text.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from garrison.common.policy.flows import Direction
from garrison.minion.enforcers.bpf_lsm.options import EventRate
from garrison.minion.enforcers.nftables.plan import Count, End, Go, Key, Lookup, Outcome, Plan, Statement, Tell, VerdictMap

__all__ = [
    "ALWAYS",
    "FAMILY",
    "MATCHED",
    "PROBE",
    "TABLE",
    "TOLD",
    "Present",
    "Telling",
    "clear",
    "counters_of",
    "delete_counters",
    "delete_table",
    "matched",
    "names",
    "prepare",
    "switch",
    "told",
]

FAMILY: Final = "inet"
TABLE: Final = "garrison"
_WHERE: Final = f"{FAMILY} {TABLE}"
MATCHED: Final = "m_"  # how names of counters begin
TOLD: Final = "t_"
_SNAP_BYTES: Final = 128  # an IPv6 header, extension headers and the ports
_ROOT: Final = {
    Direction.INGRESS: "{ type filter hook input priority -10; policy accept; }",
    Direction.EGRESS: "{ type filter hook output priority -10; policy accept; }",
}
_HOOK: Final = {Direction.INGRESS: "input", Direction.EGRESS: "output"}
_PRIORITY: Final = -10  # just before the filters of others, so that what rules name is counted whatever those do
_NEIGHBOURS: Final = "{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }"

# What no rule is asked about: without it a node loses its addresses and neighbours, and with them whoever could mend it. (ARP is
# of another family, which the table does not see.)
ALWAYS: Final = {
    Direction.INGRESS: (
        'iifname "lo" accept',
        "ct state established,related accept",
        f"icmpv6 type {_NEIGHBOURS} ip6 hoplimit 255 accept",
        "icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept",
        "meta nfproto ipv4 udp sport 67 udp dport 68 accept",
        "ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
    ),
    Direction.EGRESS: (
        'oifname "lo" accept',
        "ct state established,related accept",
        f"icmpv6 type {_NEIGHBOURS} ip6 hoplimit 255 accept",
        "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept",
        "meta nfproto ipv4 udp sport 68 udp dport 67 accept",
        "ip6 saddr fe80::/10 udp sport 546 udp dport 547 accept",
    ),
}

# Everything that a plan uses, on no hook: no packet sees it.
PROBE: Final = f"""
table {FAMILY} {TABLE}-probe {{
  counter matched {{ }}
  chain end {{
    counter name "matched"
    limit rate 1/second burst 1 packets counter name "matched" log prefix "probe:0" group 1 snaplen {_SNAP_BYTES}
    drop
  }}
  map networks {{ type ipv4_addr : verdict; flags interval; elements = {{ 192.0.2.0-192.0.2.7 : jump end }}; }}
  map networks6 {{ type ipv6_addr : verdict; flags interval; elements = {{ 2001:db8::-2001:db8::7 : jump end }}; }}
  map ports {{ type inet_service : verdict; flags interval; elements = {{ 1-9 : jump end }}; }}
  map interfaces {{ type ifname : verdict; elements = {{ "garrison0" : jump end }}; }}
  chain start {{
    {"".join(f"{text}{chr(10)}    " for texts in ALWAYS.values() for text in texts)}
    iifname vmap @interfaces
    meta l4proto vmap {{ 6 : jump end }}
    th dport vmap @ports
    ip saddr vmap @networks
    ip6 saddr vmap @networks6
  }}
}}
delete table {FAMILY} {TABLE}-probe
"""


class Telling(msgspec.Struct, frozen=True, kw_only=True):
    """How packets are told to user space.

    Attributes:
        tag: Of the generation. Stands behind names, and before an outcome's number in the log, so that packets of another
            generation are not taken for this one's.
        group: Group of the kernel's packet log; ``None``: packets are counted only.
        rate: How many of each outcome.
    """

    tag: str
    group: int | None
    rate: EventRate = EventRate()


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the table, by name.

    Attributes:
        chains: Chains on no hook, and those on a hook that is not ours.
        roots: Chains on our hooks.
        maps: Maps and sets.
        counters: Counters: packets.
        rules: Number of rules by chain.
    """

    chains: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    maps: tuple[tuple[str, str], ...] = ()
    counters: dict[str, int] = {}
    rules: dict[str, int] = {}

    @classmethod
    def of(cls, listing: Iterable[dict[str, dict[str, object]]]) -> Present:
        """Return what a listing in nft's JSON holds."""
        chains, roots, maps = list[str](), list[str](), list[tuple[str, str]]()
        counters, rules = dict[str, int](), dict[str, int]()
        for item in listing:
            ((kind, body),) = item.items()
            name = str(body.get("name", ""))
            if kind == "chain":
                (roots if _is_root(name, body) else chains).append(name)
            elif kind in {"map", "set"}:
                maps.append((kind, name))
            elif kind == "counter":
                counters[name] = int(str(body["packets"]))
            elif kind == "rule":
                chain = str(body["chain"])
                rules[chain] = rules.get(chain, 0) + 1
        return cls(chains=tuple(chains), roots=tuple(roots), maps=tuple(maps), counters=counters, rules=rules)


def _is_root(name: str, body: dict[str, object]) -> bool:
    said = (body.get("type"), body.get("hook"), body.get("prio"), body.get("policy"))
    return name in set(Direction) and said == ("filter", _HOOK[Direction(name)], _PRIORITY, "accept")


def matched(outcome: Outcome) -> str:
    """Return the name of the counter of packets that met ``outcome``."""
    return f"{MATCHED}{_short(outcome.key)}"


def told(outcome: Outcome) -> str:
    """Return the name of the counter of packets among them that were told to user space."""
    return f"{TOLD}{_short(outcome.key)}"


def _short(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def delete_table() -> str:
    """Return what takes the table away, whether there is one or not."""
    return f"add table {_WHERE}\ndelete table {_WHERE}\n"


def delete_counters(names: Iterable[str]) -> str:
    """Return what takes counters away."""
    return "".join(f"delete counter {_WHERE} {name}\n" for name in names)


def prepare(plan: Plan, present: Present, telling: Telling) -> str:
    """Return the transaction that makes everything ``plan`` needs beside what is ``present``, and leads no packet there."""
    return _text(_preparation(plan, present, telling))


def switch(plan: Plan, telling: Telling) -> str:
    """Return the transaction from which on packets go through ``plan``."""
    return _text(_switch(plan, telling))


def clear(present: Present) -> str:
    """Return the transaction that takes away the chains, maps and counters of ``present``; no packet may come there."""
    lines = [f"flush chain {_WHERE} {name}" for name in present.chains]
    lines += [f"delete {kind} {_WHERE} {name}" for kind, name in present.maps]
    lines += [f"delete chain {_WHERE} {name}" for name in present.chains]
    return _text(lines) + delete_counters(present.counters)


def names(plan: Plan, telling: Telling) -> tuple[set[str], set[str]]:
    """Return the names of the plan's chains and maps in the table."""
    return {_own(chain.name, telling) for chain in plan.chains}, {_own(one.name, telling) for one in plan.maps}


def counters_of(plan: Plan) -> list[str]:
    """Return the names of all counters that ``plan`` uses, without repeats."""
    names = [matched(outcome) for outcome in plan.outcomes]
    tells = {s.number for chain in plan.chains for s in chain.statements if isinstance(s, Tell)}
    return list(dict.fromkeys([*names, *(told(plan.outcomes[number]) for number in sorted(tells))]))


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _own(name: str, telling: Telling) -> str:
    # By generation, since two of them are in the table at once.
    return f"{name}_{telling.tag}"


def _preparation(plan: Plan, present: Present, telling: Telling) -> Iterator[str]:
    known = present
    if set(present.chains) & set(Direction):  # somebody's table of our name: its chains are on other hooks
        yield from delete_table().splitlines()
        known = Present()
    yield f"add table {_WHERE}"
    yield from (f"add chain {_WHERE} {name.value} {text}" for name, text in _ROOT.items())
    yield from (f"add counter {_WHERE} {name}" for name in counters_of(plan) if name not in known.counters)
    yield from (f"add chain {_WHERE} {_own(chain.name, telling)}" for chain in plan.chains)
    yield from (_map(one, telling) for one in plan.maps)
    keys = {one.name: one.key for one in plan.maps}
    for chain in plan.chains:
        yield from _rules(_own(chain.name, telling), chain.statements, keys, plan, telling)


def _switch(plan: Plan, telling: Telling) -> Iterator[str]:
    keys = {one.name: one.key for one in plan.maps}
    for direction, statements in plan.roots.items():
        yield f"flush chain {_WHERE} {direction.value}"
        yield from (f"add rule {_WHERE} {direction.value} {text}" for text in ALWAYS[direction])
        yield from _rules(direction.value, statements, keys, plan, telling)


def _map(one: VerdictMap, telling: Telling) -> str:
    _, kind, ranged = one.key.value
    # Jump, not goto: at the end of a part the packet goes on where it was led from.
    elements = ", ".join(f"{_key(one.key, first, last)} : jump {_own(chain, telling)}" for first, last, chain in one.elements)
    flags = "flags interval; " if ranged else ""
    return f"add map {_WHERE} {_own(one.name, telling)} {{ type {kind} : verdict; {flags}elements = {{ {elements} }}; }}"


def _key(key: Key, first: int | str, last: int | str) -> str:
    if isinstance(first, str):
        return f'"{first}"'
    ends = [_address(key, int(end)) for end in dict.fromkeys((first, last))]
    return "-".join(ends)


def _address(key: Key, value: int) -> str:
    match key:
        case Key.SOURCE4 | Key.DEST4:
            return str(ipaddress.IPv4Address(value))
        case Key.SOURCE6 | Key.DEST6:
            return str(ipaddress.IPv6Address(value))
        case _:
            return str(value)


def _rules(chain: str, statements: Iterable[Statement], keys: dict[str, Key], plan: Plan, telling: Telling) -> Iterator[str]:
    for statement in statements:
        if text := _statement(statement, keys, plan, telling):
            yield f"add rule {_WHERE} {chain} {text}"


def _statement(statement: Statement, keys: dict[str, Key], plan: Plan, telling: Telling) -> str:
    match statement:
        case Lookup(name):
            return f"{keys[name].value[0]} vmap @{_own(name, telling)}"
        case Go(chain):
            return f"jump {_own(chain, telling)}"
        case Count(number):
            return f"counter name {matched(plan.outcomes[number])}"
        case Tell(number):
            return _tell(number, plan.outcomes[number], telling)
        case End(verdict):
            return verdict


def _tell(number: int, outcome: Outcome, telling: Telling) -> str:
    if telling.group is None:
        return ""
    rate = telling.rate
    limit = f"limit rate {rate.per_s}/second burst {rate.burst} packets " if rate.per_s else ""
    log = f'log prefix "{telling.tag}:{number}" group {telling.group} snaplen {_SNAP_BYTES}'
    return f"{limit}counter name {told(outcome)} {log}"
