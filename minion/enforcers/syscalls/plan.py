"""From a RuleSet to what the kernel filters by, and from a call to the rule that speaks of it. Pure, but for ``realpath``.

Rules of this file:
- The kernel passes on every call that a rule may speak of, and few more; ``match.decide`` says what rules mean.
- A row holds for a program, or for programs in or below a directory, which calls are passed on; it includes what rules on
  directories above say, and rules without a source.
- Rules for workloads have rows of their own for each profile that they hold in; the kernel asks the host's and those.
- Rules that name a path are held twice: as written and as links led when they were applied. Calls are compared likewise.
- What was lost is counted against every rule that may have spoken of it: exact for a rule without a path, at most for others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import msgspec

from garrison.bpf.pathhash import PathHasher
from garrison.common.policy.match import Decision, Operation, decide, source_matches
from garrison.common.policy.rules import Entity, HostScope, Other, Rule, RuleSet, SyscallPath, Verdict, WorkloadScope
from garrison.minion.enforcers.profiles import HOST_PROFILE, Placements, Profiles, needed_profiles, speaks_in
from garrison.minion.enforcers.program_row import directories_above, encode_key, flags_of, samples_of
from garrison.minion.enforcers.syscalls.layout import TARGET_MAX_BYTES, encode_row, encode_target
from garrison.minion.enforcers.syscalls.shapes import OFTEN, SHAPES

__all__ = ["TARGETS_MAX", "Plan", "call_names", "make_plan", "path_of"]

TARGETS_MAX: Final = 4096  # half the entries of the map ``targets``, which holds two generations while they change
_MAGIC: Final = ("/proc/", "/dev/")  # links in them lead anywhere


@dataclass(frozen=True)
class Plan:
    """One generation, ready for the kernel, and what its numbers mean.

    Attributes:
        generation: Its number.
        rules: By call number, ordered by id; a rule whose path leads elsewhere stands there twice.
        rows: Key → row.
        samples: By index of a row, its profile and a program that it speaks for; empty for the unknown one.
        sourced: Calls for which the program must be told.
        placed: Calls for which the workload must be told.
        targets: Keys of the prefixes that calls made often are compared with.
        profiles: What numbers of profiles mean.
        placements: What is known of the node's workloads.
    """

    generation: int
    rules: dict[int, RuleSet]
    rows: dict[bytes, bytes]
    samples: tuple[tuple[int, str], ...]
    sourced: frozenset[int]
    placed: frozenset[int]
    targets: frozenset[bytes]
    profiles: Profiles
    placements: Placements
    _held_in: dict[tuple[int, int], RuleSet] = field(default_factory=dict)

    def suspects(self, row: int, call: int) -> Iterator[str]:
        """Give the ids of the rules that may have spoken of a lost record that this row had let through."""
        if call not in self.rules or row >= len(self.samples):
            return
        profile, sample = self.samples[row]
        spoken = (
            rule for rule in self.rules[call].rules if _speaks_for(rule, self.profiles, profile) and _concerns(rule, sample)
        )
        yield from {rule.id: None for rule in spoken if rule.verdict is not Verdict.ALLOW}

    def decide(
        self, call: int, name: str, source: str, paths: Sequence[str], *, profile: int = HOST_PROFILE, also: int = HOST_PROFILE
    ) -> tuple[Decision, str] | None:
        """Return what rules say of a call and the path they say it of; ``None`` when they have nothing to say.

        Args:
            call: Its number.
            name: Its name.
            source: Path of the program; empty when unknown.
            paths: Every name of every path it was given, the likeliest first; an empty one is an unknown one.
            profile: Of the caller's workload.
            also: Of a container that it has left: what rules say of it there counts as well.
        """
        for inside in dict.fromkeys((profile, also or profile)):
            rules = self._rules_in(call, inside)
            for path in paths or ("",):
                decision = decide(rules, Operation(entity=Entity.SYSCALL, name=name, path=path, source=source))
                if decision.rule is not None and decision.verdict is not Verdict.ALLOW:
                    return decision, path
        return None

    def _rules_in(self, call: int, profile: int) -> RuleSet:
        """Return the rules on a call that hold in a profile, as rules for all who are in it."""
        if (call, profile) not in self._held_in:
            rules = self.rules.get(call, RuleSet())
            spoken = tuple(_for_all(rule) for rule in rules.rules if speaks_in(rule, self.profiles, profile))
            self._held_in[call, profile] = msgspec.structs.replace(rules, rules=spoken)
        return self._held_in[call, profile]


def make_plan(
    rules: RuleSet,
    generation: int,
    hasher: PathHasher,
    numbers: Mapping[str, int],
    placements: Placements,
    *,
    realpath: Callable[[str], str] = os.path.realpath,
) -> Plan:
    """Return what makes the system call rules of ``rules`` seen, given what is known of the node's workloads."""
    by_call = _by_call(_held(rules, realpath), numbers)
    targets = _Targets(by_call, {number: name for name, number in numbers.items()})
    profiles = Profiles(needed_profiles(placements))
    samples, rows = list[tuple[int, str]](), dict[bytes, bytes]()
    for profile, table in _tables(by_call, profiles, targets.compared):
        for kind, named, sample in samples_of(table.sources):
            key = encode_key(kind, hasher.path(named) if named else 0, profile)
            rows[key] = encode_row(generation, len(samples), table.flags, *table.bits(sample))
            samples.append((profile, sample))
    return Plan(
        generation=generation,
        rules={call: RuleSet(rules=tuple(rules_of), postures=rules.postures) for call, rules_of in by_call.items()},
        rows=rows,
        samples=tuple(samples),
        sourced=frozenset(call for call, held in by_call.items() if any(rule.sources for rule in held)),
        placed=frozenset(call for call, held in by_call.items() if any(_is_placed(rule) for rule in held)),
        targets=targets.keys,
        profiles=profiles,
        placements=placements,
    )


def _held(rules: RuleSet, realpath: Callable[[str], str]) -> Iterator[Rule]:
    for rule in rules.rules:
        if rule.entity is not Entity.SYSCALL or not isinstance(rule.target, Other):
            continue
        yield rule
        if (path := path_of(rule)) is None:
            continue
        found = realpath(path.path)
        if path.path.endswith("/"):
            found = found.rstrip("/") + "/"
        if found != path.path:
            spec = msgspec.json.encode(SyscallPath(found, path.recursive)).decode()
            yield msgspec.structs.replace(rule, target=Other(rule.target.value, spec))


def _by_call(rules: Iterable[Rule], numbers: Mapping[str, int]) -> dict[int, list[Rule]]:
    """Return the rules by call, without calls that no rule can report."""
    found: dict[int, list[Rule]] = {}
    for rule in rules:
        for name in call_names(rule):
            if name in numbers and (path_of(rule) is None or name in SHAPES):
                found.setdefault(numbers[name], []).append(rule)
    return {call: held for call, held in found.items() if any(r.verdict is not Verdict.ALLOW for r in held)}


# ---- who ---------------------------------------------------------------------------------------------------------------
def _is_placed(rule: Rule) -> bool:
    return isinstance(rule.scope, WorkloadScope)


def _for_all(rule: Rule) -> Rule:
    return msgspec.structs.replace(rule, scope=HostScope()) if _is_placed(rule) else rule


def _speaks_for(rule: Rule, profiles: Profiles, profile: int) -> bool:
    """Whether rows of a profile let a call through for ``rule``: those for all are looked up in the host's."""
    return speaks_in(rule, profiles, profile) and _is_placed(rule) == (profile != HOST_PROFILE)


def _tables(by_call: Mapping[int, Sequence[Rule]], profiles: Profiles, compared: frozenset[int]) -> Iterator[tuple[int, _Table]]:
    """Give each profile that has rules of its own, the host's always, with what they are."""
    for profile in (HOST_PROFILE, *profiles.concerned(chain.from_iterable(by_call.values()))):
        spoken = ((call, [rule for rule in held if _speaks_for(rule, profiles, profile)]) for call, held in by_call.items())
        yield profile, _Table(dict(spoken), compared)


class _Targets:
    """Which calls' paths are compared in the kernel, and with what."""

    def __init__(self, by_call: Mapping[int, Sequence[Rule]], names: Mapping[int, str]) -> None:
        prefixes = {prefix for held in by_call.values() for rule in held for prefix in _prefixes(rule)}
        fits = len(prefixes) + len(_MAGIC) <= TARGETS_MAX
        self.compared = frozenset(call for call in by_call if fits and names[call] in OFTEN)
        wanted = prefixes | {os.fsencode(m) for m in _MAGIC} if self.compared else set()
        self.keys = frozenset(map(encode_target, wanted))


class _Table:
    """Which calls of which program are passed on, by rules of one profile."""

    def __init__(self, by_call: Mapping[int, Sequence[Rule]], compared: frozenset[int]) -> None:
        self._free = dict[tuple[int, int], tuple[Rule, int]]()
        self._by_source = dict[str, dict[tuple[int, int], tuple[Rule, int]]]()
        self._compared = compared
        for call, held in by_call.items():
            for index, rule in enumerate(held):
                self._add(call, index, rule)
        self.sources = frozenset(self._by_source)
        self.flags = flags_of(self.sources)

    def _add(self, call: int, index: int, rule: Rule) -> None:
        if rule.verdict is Verdict.ALLOW:
            return
        if not rule.sources:
            self._free[call, index] = rule, call
        for source in rule.sources:
            self._by_source.setdefault(source.value, {})[call, index] = rule, call

    def bits(self, sample: str) -> tuple[set[int], set[int]]:
        """Return (calls whatever they are given, calls whose path is looked at) for the program ``sample``."""
        calls, paths = set[int](), set[int]()
        for rule, call in self._concerned(sample):
            compared = call in self._compared and bool(_prefixes(rule))
            (paths if compared else calls).add(call)
        return calls, paths - calls

    def _concerned(self, sample: str) -> Iterator[tuple[Rule, int]]:
        yield from self._free.values()
        named = (sample, *directories_above(sample)) if sample else tuple(self._by_source)
        for value in named:
            yield from (item for item in self._by_source.get(value, {}).values() if _concerns(item[0], sample))


def _concerns(rule: Rule, sample: str) -> bool:
    return not sample or source_matches(rule.sources, sample)


def _prefixes(rule: Rule) -> tuple[bytes, ...]:
    """Return what the text of a path that ``rule`` names begins with; nothing when it is too long to be compared."""
    path = path_of(rule)
    if path is None:
        return ()
    prefix = os.fsencode(path.path) + (b"" if path.path.endswith("/") else b"\0")
    return (prefix,) if len(prefix) <= TARGET_MAX_BYTES else ()


def call_names(rule: Rule) -> list[str]:
    """Return the names of the calls that a rule speaks of."""
    return rule.target.value.split(",") if isinstance(rule.target, Other) else []


def path_of(rule: Rule) -> SyscallPath | None:
    """Return the path that a rule names; ``None`` when it means calls whatever they are given."""
    spec = rule.target.spec if isinstance(rule.target, Other) else ""
    return msgspec.json.decode(spec, type=SyscallPath) if spec else None
