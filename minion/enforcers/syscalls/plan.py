"""From a RuleSet to what the kernel filters by, and from a call to the rule that speaks of it. Pure, but for ``realpath``.

Rules of this file:
- The kernel passes on every call that a rule may speak of, and few more; ``match.decide`` says what rules mean.
- A row holds for a program, or for programs in or below a directory, which calls are passed on; it includes what rules on
  directories above say, and rules without a source.
- Rules that name a path are held twice: as written and as links led when they were applied. Calls are compared likewise.
- What was lost is counted against every rule that may have spoken of it: exact for a rule without a path, at most for others.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from garrison.bpf.pathhash import PathHasher
from garrison.common.frames import RuleReport
from garrison.common.policy.match import Decision, Operation, decide, source_matches
from garrison.common.policy.rules import Entity, HostScope, Mode, Other, Rule, RuleSet, RuleStatus, SyscallPath, Verdict
from garrison.minion.enforcers.syscalls.layout import TARGET_MAX_BYTES, RowKind, encode_key, encode_row, encode_target
from garrison.minion.enforcers.syscalls.shapes import OFTEN, SHAPES

__all__ = ["BACKEND", "SOURCE_DEPTH_MAX", "TARGETS_MAX", "Plan", "make_plan", "report_rules"]

BACKEND: Final = "syscalls"
SOURCE_DEPTH_MAX: Final = 480  # WALK_STEPS of path_hash.h, less mounts on the way
TARGETS_MAX: Final = 4096  # half the entries of the map ``targets``, which holds two generations while they change
_NOBODY: Final = "\0"  # a file name that no file can have: stands for "some other program"
_MAGIC: Final = ("/proc/", "/dev/")  # links in them lead anywhere

_WORKLOAD: Final = "selects workloads by label; system calls are not told apart by workload"
_ONLY_AUDIT: Final = "rules on system calls audit, whatever their action"
_NO_LIST: Final = "an allow of system calls makes no list, and exempts nobody here"


class Plan(NamedTuple):
    """One generation, ready for the kernel, and what its numbers mean.

    Attributes:
        rules: By call number, ordered by id; a rule whose path leads elsewhere stands there twice.
        rows: Key → row.
        samples: By index of a row, a program that it speaks for; empty for the unknown one.
        sourced: Calls for which the program must be told.
        targets: Keys of the prefixes that calls made often are compared with.
    """

    rules: dict[int, RuleSet]
    rows: dict[bytes, bytes]
    samples: tuple[str, ...]
    sourced: frozenset[int]
    targets: frozenset[bytes]

    def suspects(self, row: int, call: int) -> Iterator[str]:
        """Give the ids of the rules that may have spoken of a lost record."""
        if call not in self.rules or row >= len(self.samples):
            return
        sample = self.samples[row]
        yield from {r.id: None for r in self.rules[call].rules if r.verdict is not Verdict.ALLOW and _concerns(r, sample)}

    def decide(self, call: int, name: str, source: str, paths: Sequence[str]) -> tuple[Decision, str] | None:
        """Return what rules say of a call and the path they say it of; ``None`` when they have nothing to say.

        Args:
            call: Its number.
            name: Its name.
            source: Path of the program; empty when unknown.
            paths: Every name of every path it was given, the likeliest first; an empty one is an unknown one.
        """
        rules = self.rules.get(call, RuleSet())
        for path in paths or ("",):
            decision = decide(rules, Operation(entity=Entity.SYSCALL, name=name, path=path, source=source))
            if decision.rule is not None and decision.verdict is not Verdict.ALLOW:
                return decision, path
        return None


def report_rules(rules: RuleSet, numbers: Mapping[str, int], machine: str) -> tuple[RuleReport, ...]:
    """Return what becomes of each system call rule here; other rules are left out."""
    return tuple(_report(rule, numbers, machine) for rule in rules.rules if rule.entity is Entity.SYSCALL)


def make_plan(
    rules: RuleSet,
    generation: int,
    hasher: PathHasher,
    numbers: Mapping[str, int],
    realpath: Callable[[str], str] = os.path.realpath,
) -> Plan:
    """Return what makes the system call rules of ``rules`` seen."""
    by_call = _by_call(_held(rules, realpath), numbers)
    table = _Table(by_call, {number: name for name, number in numbers.items()})
    samples, rows = list[str](), dict[bytes, bytes]()

    def add(key: bytes, sample: str) -> None:
        calls, paths = table.bits(sample)
        rows[key] = encode_row(generation, len(samples), directories=bool(table.directories), calls=calls, paths=paths)
        samples.append(sample)

    add(encode_key(RowKind.OTHER), _NOBODY)
    add(encode_key(RowKind.UNKNOWN), "")
    for path in table.programs:
        add(encode_key(RowKind.PROGRAM, hasher.path(path)), path)
    for directory in table.directories:
        number = hasher.path(directory)
        add(encode_key(RowKind.DIRECT, number), directory + _NOBODY)
        add(encode_key(RowKind.BELOW, number), f"{directory}{_NOBODY}/{_NOBODY}")
    sourced = frozenset(call for call, rules_of in by_call.items() if any(rule.sources for rule in rules_of))
    held = {call: RuleSet(rules=tuple(rules_of), postures=rules.postures) for call, rules_of in by_call.items()}
    return Plan(held, rows, tuple(samples), sourced, table.targets)


def _held(rules: RuleSet, realpath: Callable[[str], str]) -> Iterator[Rule]:
    for rule in rules.rules:
        if rule.entity is not Entity.SYSCALL or not isinstance(rule.scope, HostScope) or not isinstance(rule.target, Other):
            continue
        yield rule
        if (path := _path_of(rule)) is None:
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
        for name in _names(rule):
            if name in numbers and (_path_of(rule) is None or name in SHAPES):
                found.setdefault(numbers[name], []).append(rule)
    return {call: held for call, held in found.items() if any(r.verdict is not Verdict.ALLOW for r in held)}


class _Table:
    """Which calls of which program are passed on."""

    def __init__(self, by_call: Mapping[int, Sequence[Rule]], names: Mapping[int, str]) -> None:
        self._free = dict[tuple[int, int], tuple[Rule, int]]()
        self._by_source = dict[str, dict[tuple[int, int], tuple[Rule, int]]]()
        prefixes = {prefix for held in by_call.values() for rule in held for prefix in _prefixes(rule)}
        fits = len(prefixes) + len(_MAGIC) <= TARGETS_MAX
        self._compared = {call for call in by_call if fits and names[call] in OFTEN}
        self.targets = frozenset(encode_target(p) for p in (prefixes | {m.encode() for m in _MAGIC}) if fits and self._compared)
        for call, held in by_call.items():
            for index, rule in enumerate(held):
                self._add(call, index, rule)
        self.programs = sorted(value for value in self._by_source if not value.endswith("/"))
        self.directories = sorted(value for value in self._by_source if value.endswith("/"))

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
        named = (sample, *_directories_above(sample)) if sample else tuple(self._by_source)
        for value in named:
            yield from (item for item in self._by_source.get(value, {}).values() if _concerns(item[0], sample))


def _concerns(rule: Rule, sample: str) -> bool:
    return not sample or source_matches(rule.sources, sample)


def _directories_above(path: str) -> Iterator[str]:
    directory = posixpath.dirname(path)
    while directory:
        yield directory if directory.endswith("/") else directory + "/"
        directory = posixpath.dirname(directory) if directory != "/" else ""


def _prefixes(rule: Rule) -> tuple[bytes, ...]:
    """Return what the text of a path that ``rule`` names begins with; nothing when it is too long to be compared."""
    path = _path_of(rule)
    if path is None:
        return ()
    prefix = os.fsencode(path.path) + (b"" if path.path.endswith("/") else b"\0")
    return (prefix,) if len(prefix) <= TARGET_MAX_BYTES else ()


def _names(rule: Rule) -> list[str]:
    return rule.target.value.split(",") if isinstance(rule.target, Other) else []


def _path_of(rule: Rule) -> SyscallPath | None:
    spec = rule.target.spec if isinstance(rule.target, Other) else ""
    return msgspec.json.decode(spec, type=SyscallPath) if spec else None


# ---- the report ------------------------------------------------------------------------------------------------------
def _report(rule: Rule, numbers: Mapping[str, int], machine: str) -> RuleReport:
    if not isinstance(rule.scope, HostScope):
        return _line(rule, RuleStatus.IMPOSSIBLE, _WORKLOAD)
    names = _names(rule)
    unknown = [name for name in names if name not in numbers]
    pathless = [name for name in names if name in numbers and name not in SHAPES] if _path_of(rule) else []
    reasons = [f"{machine} has no system call {', '.join(unknown)}"] if unknown else []
    reasons += [f"no path is given to {', '.join(pathless)}"] if pathless else []
    if len(unknown) + len(pathless) == len(names):
        return _line(rule, RuleStatus.IMPOSSIBLE, "; ".join(reasons))
    if rule.verdict is Verdict.ALLOW and not rule.exempts:
        return _line(rule, RuleStatus.INERT, _NO_LIST)
    if any(source.value.count("/") > SOURCE_DEPTH_MAX for source in rule.sources):
        reasons.append(f"a source lies deeper than {SOURCE_DEPTH_MAX} components: programs there count as unknown")
    if reasons:
        return _line(rule, RuleStatus.DEGRADED, "; ".join(reasons))
    refuses = rule.verdict is Verdict.BLOCK and rule.mode is Mode.ENFORCE
    return _line(rule, RuleStatus.AUDITED, _ONLY_AUDIT if refuses else "")


def _line(rule: Rule, status: RuleStatus, reason: str) -> RuleReport:
    return RuleReport(rule=rule.id, status=status, backend=BACKEND, reason=reason)
