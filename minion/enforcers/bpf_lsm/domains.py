"""Rules on domains as tables: a domain that some rule names has two sets of rules, for itself and for what is below it.

Rules of this file:
- Pure. The kernel finds the longest domain of the table that a name ends in, label by label; ``set_of`` does the same.
- Labels are compared in lower case, byte by byte; a name that is asked for has no others.
- A query that cannot be read has a set of its own: every block rule counts.
Owns: these numbers. Does not own: what a rule on a domain means (``common.policy.match``), how a query is read (the kernel).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from garrison.bpf.pathhash import PathHasher
from garrison.common.errors import CompileError
from garrison.common.policy.rules import Entity, Other, Rule, Verdict

__all__ = ["DomainSets", "Domains", "domain_hash", "number_domains"]

_SETS: Final = 1 << 28  # above every number that a set of paths can have, below those of ``subjects``
_NO_SET: Final = 0
_Labels = tuple[str, ...]


class DomainSets(NamedTuple):
    """Numbers of the sets of rules that name a domain itself, and what is below it."""

    exact: int
    below: int


class Domains(msgspec.Struct, frozen=True, kw_only=True):
    """What rules say of domains.

    Attributes:
        sets: Domain → its sets.
        members: Set → indexes of its rules.
        unreadable: Set of a query that cannot be read.
    """

    sets: dict[str, DomainSets]
    members: dict[int, frozenset[int]]
    unreadable: int

    def set_of(self, name: str) -> int:
        """Return the set of the rules that name ``name``; of an empty one, which stands for a query that cannot be read."""
        if not name:
            return self.unreadable
        labels = _labels(name)
        for taken in range(len(labels)):
            if found := self.sets.get(".".join(labels[taken:])):
                return found.below if taken else found.exact
        return _NO_SET


def number_domains(rules: Sequence[Rule]) -> Domains:
    """Return what those of ``rules`` that are about domains say.

    Raises:
        CompileError: One of them names none.
    """
    named: dict[str, tuple[set[int], set[int]]] = {}  # rules on the domain itself and all below; on what is below alone
    blocks = set[int]()
    for index, rule in enumerate(rules):
        if rule.entity is not Entity.DNS:
            continue
        if not isinstance(rule.target, Other) or not rule.target.value:
            raise CompileError(f"rule {rule.id}: a rule on domains cannot name {rule.target!r}")
        domain = rule.target.value.removeprefix("*.").lower()
        both = named.setdefault(domain, (set(), set()))
        both[domain != rule.target.value.lower()].add(index)
        if rule.verdict is Verdict.BLOCK:
            blocks.add(index)
    return _number(named, frozenset(blocks))


def domain_hash(hasher: PathHasher, domain: str) -> int:
    """Return the hash by which the kernel knows ``domain``: that of a path from the top level down."""
    found = 0
    for label in reversed(_labels(domain)):
        found = hasher.below(found, label.encode("utf-8", "surrogateescape"))
    return found


def _number(named: dict[str, tuple[set[int], set[int]]], blocks: frozenset[int]) -> Domains:
    numbers: dict[frozenset[int], int] = {frozenset(): _NO_SET}

    def number(members: frozenset[int]) -> int:
        return numbers.setdefault(members, _SETS + len(numbers))

    sets = {}
    for domain, (deep, _) in named.items():
        above = frozenset(index for outer in _above(domain) for members in named.get(outer, ()) for index in members)
        sets[domain] = DomainSets(number(above | deep), number(above | deep | named[domain][1]))
    unreadable = number(blocks)
    return Domains(sets=sets, members={n: members for members, n in numbers.items() if members}, unreadable=unreadable)


def _above(domain: str) -> Iterator[str]:
    labels = _labels(domain)
    return (".".join(labels[taken:]) for taken in range(1, len(labels)))


def _labels(domain: str) -> _Labels:
    bare = domain.removesuffix(".").lower()
    return tuple(bare.split(".")) if bare else ()
