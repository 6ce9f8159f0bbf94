"""Rules on sockets, capabilities and presets in the tables of the kernel enforcer: what is no path has a number instead.

Rules of this file:
- Pure. A kind of socket is the set of names that it answers to (``protocols.socket_names``), a capability and a preset are their
  numbers. Each is a set number in the same tables as the sets of paths, so one weighing serves all.
- A set that no rule names has no record: the posture decides, as it does for paths.
- Local sockets answer to no name and never come here.
Owns: these numbers, and which of them the kernel must look at. Does not own: domains, classes and weighing (``program``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple

from garrison.common.errors import CompileError
from garrison.common.policy.match import Decision, Operation
from garrison.common.policy.models import CAPABILITIES, PRESETS, PROTOCOLS
from garrison.common.policy.protocols import socket_names
from garrison.common.policy.rules import Entity, Other, Protocol, Rule, Verdict
from garrison.minion.enforcers.profiles import ANY_CLASS, HOST_PROFILE, class_part, fallbacks, profile_part, subject_of

__all__ = [
    "SUBJECTS",
    "CapabilityBits",
    "capability_bits",
    "capability_set",
    "preset_bits",
    "preset_set",
    "socket_set",
    "subject_set",
    "subject_sets",
]

SUBJECTS: Final = (Entity.NETWORK, Entity.CAPABILITY, Entity.DNS, Entity.PRESET)
# Bits above every number that a set of paths can have; ..._SETS of subject_rules.h. Those of ``domains`` are between.
_NETWORK: Final = 1 << 30
_CAPABILITY: Final = 1 << 29
_PRESET: Final = 1 << 27
# One of each that ``socket_names`` tells apart: INET, packet, SMC and other families; every type; protocols with a name and one
# without.
_FAMILIES: Final = (2, 17, 43, 40)
_TYPES: Final = range(16)
_PROTOCOLS: Final = (0, 1, 6, 17, 58, 132, 136, 262, 255)


class CapabilityBits(NamedTuple):
    """Which capabilities must be looked at: bit n for capability n, set where some condition leads to an audit or a block.

    Attributes:
        anyone: For subjects that have no entry in ``subjects``, nor have those that they fall back to.
        subjects: Subject → bits, where they differ.
    """

    anyone: int
    subjects: dict[int, int]

    @property
    def all(self) -> int:
        """Bits of every subject together."""
        bits = self.anyone
        for more in self.subjects.values():
            bits |= more
        return bits


def socket_set(names: frozenset[str]) -> int:
    """Return the number of the sockets that answer to ``names``."""
    return _NETWORK | sum(1 << PROTOCOLS.index(name) for name in names)


def capability_set(name: str) -> int:
    """Return the number of a capability."""
    return _CAPABILITY | CAPABILITIES.index(name)


def preset_set(name: str) -> int:
    """Return the number of a preset."""
    return _PRESET | PRESETS.index(name)


def preset_bits(rules: Sequence[Rule]) -> int:
    """Return which presets some rule asks for: bit n for preset n."""
    names = (name for rule in rules if rule.entity is Entity.PRESET for name in _names(rule))
    return sum(1 << number for number in {PRESETS.index(name) for name in names})


def subject_set(operation: Operation) -> int:
    """Return the set that names what a network, capability or preset operation is about."""
    if operation.entity is Entity.NETWORK:
        return socket_set(operation.protocols)
    return capability_set(operation.name) if operation.entity is Entity.CAPABILITY else preset_set(operation.name)


def subject_sets(rules: Sequence[Rule]) -> Iterator[tuple[int, frozenset[int]]]:
    """Yield set number and indexes of the rules that name it, for each kind of socket, capability and preset that a rule names.

    Raises:
        CompileError: A network rule names no protocol, a capability rule no capability of Linux, or a preset rule no preset.
    """
    named: dict[tuple[Entity, str], set[int]] = {}
    for index, rule in enumerate(rules):
        if rule.entity in SUBJECTS and rule.entity is not Entity.DNS:
            for name in _names(rule):
                named.setdefault((rule.entity, name), set()).add(index)
    for names in _SOCKETS:
        members = frozenset[int]().union(*(named.get((Entity.NETWORK, name), ()) for name in names))
        if members:
            yield socket_set(names), members
    for name in CAPABILITIES:
        if members := frozenset(named.get((Entity.CAPABILITY, name), ())):
            yield capability_set(name), members
    for name in PRESETS:
        if members := frozenset(named.get((Entity.PRESET, name), ())):
            yield preset_set(name), members


def capability_bits(
    records: Mapping[tuple[int, int], Sequence[Decision | None]], postures: Mapping[tuple[Entity, int], Decision]
) -> CapabilityBits:
    """Return the capabilities that the kernel must look at.

    Args:
        records: (set, subject) → outcome by condition.
        postures: (entity, subject) → outcome where no rule spoke.
    """
    speaking = {subject for found, subject in records if found & _CAPABILITY}
    speaking |= {subject for entity, subject in postures if entity is Entity.CAPABILITY}
    classes = {ANY_CLASS} | {class_part(subject) for subject in speaking}
    found = {ANY_CLASS: _bits(ANY_CLASS, records, postures)}
    for profile in sorted({HOST_PROFILE} | {profile_part(subject) for subject in speaking}):
        for class_ in sorted(classes):
            subject = subject_of(class_, profile)
            own = _bits(subject, records, postures)
            # The first of a profile stands for its other classes, so it must be there.
            if class_ == ANY_CLASS or own != found[subject_of(ANY_CLASS, profile)]:
                found[subject] = own
    return CapabilityBits(found.pop(ANY_CLASS), found)


def _bits(
    subject: int, records: Mapping[tuple[int, int], Sequence[Decision | None]], postures: Mapping[tuple[Entity, int], Decision]
) -> int:
    order = fallbacks(subject)
    posture = next((postures[Entity.CAPABILITY, s] for s in order if (Entity.CAPABILITY, s) in postures), None)
    seen = 0
    for number in range(len(CAPABILITIES)):
        found = _CAPABILITY | number
        record = next((records[found, s] for s in order if (found, s) in records), (None,))
        seen |= any(_is_seen(decision or posture) for decision in record) << number
    return seen


def _is_seen(decision: Decision | None) -> bool:
    return decision is not None and decision.verdict is not Verdict.ALLOW


def _names(rule: Rule) -> tuple[str, ...]:
    match rule.target:
        case Protocol(name) if rule.entity is Entity.NETWORK and name in PROTOCOLS:
            return (name,)
        case Other(value) if rule.entity is Entity.CAPABILITY and all(name in CAPABILITIES for name in value.split(",")):
            return tuple(value.split(","))
        case Other(value) if rule.entity is Entity.PRESET and value in PRESETS:
            return (value,)
        case _:
            raise CompileError(f"rule {rule.id}: a {rule.entity} rule cannot name {rule.target!r}")


def _socket_kinds() -> Iterator[frozenset[str]]:
    for family, kind, protocol in product(_FAMILIES, _TYPES, _PROTOCOLS):
        yield socket_names(family, kind, protocol)


_SOCKETS: Final = tuple(sorted(set(_socket_kinds()), key=socket_set))
