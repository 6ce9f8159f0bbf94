"""A RuleSet as tables for the kernel: a tree of path components, an automaton for globs, and every outcome weighed beforehand.

Rules of this file:
- Pure. ``Program.decide`` walks the tables exactly as the BPF programs do; tests hold it equal to ``common.policy.match.decide``.
- A path is looked up once: component by component in the tree (exact paths, directories), byte by byte in the automaton (globs),
  and by its last component (names). Each answer is the number of a *set* of rules, whose outcomes were weighed at compile time.
- An actor is looked up once: its program's path leads to a *class*, the set of sources that it answers to, its cgroup to a
  *profile*, the set of scopes that it is in. Both make its *subject*.
- An outcome depends on set, subject and four conditions (owner, write, terminal, arguments): a record of 16 entries, shared. A
  profile has entries of its own only for sets about which one of its rules speaks, and then for every class that the set has.
- Nothing here costs more for more rules but memory, and that is capped: past a cap compiling fails, naming the cap.
Owns: what is looked up, in which order, and what falls back to what. Does not own: how tables are laid out in maps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, product, starmap
from operator import attrgetter
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import CompileError
from garrison.common.policy.match import Decision, Operation, makes_list, weigh, weigh_posture
from garrison.common.policy.rules import Entity, Mode, PathKind, PathTarget, Rule, RuleSet, Verdict, WorkloadScope
from garrison.minion.enforcers.bpf_lsm.dfa import Dfa, build_dfa
from garrison.minion.enforcers.bpf_lsm.domains import Domains, number_domains
from garrison.minion.enforcers.bpf_lsm.subjects import SUBJECTS, subject_set, subject_sets
from garrison.minion.enforcers.profiles import (
    ANY_CLASS,
    CLASS_MAX,
    HOST_PROFILE,
    Profile,
    Profiles,
    class_part,
    fallbacks,
    speaks_in,
    subject_of,
)

__all__ = [
    "ARGS_LISTED",
    "CONDITIONS",
    "NO_SET",
    "OWNER",
    "TTY",
    "WRITE",
    "Node",
    "Program",
    "Record",
    "compile_program",
]

NO_SET: Final = 0  # no rule named the path
UNKNOWN_CLASS: Final = 1  # a program whose path cannot be told: sources of block rules count, sources of allow rules do not
OWNER, WRITE, TTY, ARGS_LISTED = 1, 2, 4, 8  # bits of a condition
CONDITIONS: Final = 16

_PATH_ENTITIES: Final = (Entity.PROCESS, Entity.FILE)
_ENTITIES: Final = _PATH_ENTITIES + SUBJECTS
_Members = frozenset[int]

Record = tuple[Decision | None, ...]
"""What becomes of an operation, by condition; ``None`` where no rule fires or grants and the posture decides."""


class PathSets(msgspec.Struct, frozen=True):
    """Numbers of sets for one entity at a node.

    Attributes:
        exact: The path ends here.
        child: It ends one component below, at a component the node does not know.
        deep: It ends further below.
    """

    exact: int = 0
    child: int = 0
    deep: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A component of the tree. ``source`` holds classes, the others sets; ``below``: file rules about anything at or below it."""

    process: PathSets
    file: PathSets
    source: PathSets
    below: int = 0


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """All tables.

    Attributes:
        rules: Rules by number; numbers start at 1 in events, 0 means none.
        children: (node, component) → node; the root is node 0.
        nodes: Node by number.
        names: Basename of a program → set, for ``execname``.
        globs: Automaton, or ``None`` without globs; its accepted sets are of rule numbers.
        glob_sets: Entity → accepted index → set.
        unions: (tree set, glob set, name set) → their union; absent where only the first is there.
        records: (set, subject) → record; a subject without an own record falls back (``profiles.fallbacks``).
        postures: (entity, subject) → record when no rule named the path; falls back likewise.
        unresolved: Entity → set of rules that count when the path cannot be told.
        traces: Subject → what becomes of others that take such a program over: it is allowed something that they may not be.
        arguments: (set, profile) → arguments whose being kept is the ``ARGS_LISTED`` condition; those of the host where a profile
            has none for the set.
        profiles: Numbers of profiles.
        domains: Domain → sets.
    """

    rules: tuple[Rule, ...]
    children: dict[tuple[int, bytes], int]
    nodes: tuple[Node, ...]
    names: dict[bytes, int]
    globs: Dfa | None
    glob_sets: dict[Entity, tuple[int, ...]]
    unions: dict[tuple[int, int, int], int]
    records: dict[tuple[int, int], Record]
    postures: dict[tuple[Entity, int], Decision]
    unresolved: dict[Entity, int]
    traces: dict[int, Decision]
    arguments: dict[tuple[int, int], tuple[str, ...]]
    profiles: Profiles
    domains: Domains

    def decide(self, operation: Operation, profile: int = HOST_PROFILE) -> Decision:
        """Return the decision for an operation by an actor in ``profile``, by table look-ups alone; labels are not looked at."""
        entity, subject = operation.entity, subject_of(self.class_of(operation.source), profile)
        found = self._subject(operation) if entity in SUBJECTS else self.set_of(entity, operation.path)
        record = next((self.records[found, s] for s in fallbacks(subject) if (found, s) in self.records), None)
        decision = record[self._condition(found, profile, operation)] if record else None
        if decision is not None:
            return decision
        postures = (self.postures[entity, s] for s in fallbacks(subject) if (entity, s) in self.postures)
        return next(postures, Decision(verdict=Verdict.ALLOW))

    def class_of(self, program: str) -> int:
        """Return the class of an acting program."""
        return self._walk(program, _SOURCE) if program else UNKNOWN_CLASS

    def set_of(self, entity: Entity, path: str) -> int:
        """Return the set of rules that name ``path``."""
        if not path:
            return self.unresolved[entity]
        in_tree = self._walk(path, _PICK[entity])
        raw = _raw(path)
        by_glob = self.glob_sets[entity][self.globs.walk(raw)] if self.globs else NO_SET
        by_name = self.names.get(raw.rpartition(b"/")[2], NO_SET) if entity is Entity.PROCESS else NO_SET
        return self.unions[in_tree, by_glob, by_name] if by_glob or by_name else in_tree

    def _subject(self, operation: Operation) -> int:
        return self.domains.set_of(operation.name) if operation.entity is Entity.DNS else subject_set(operation)

    def directories(self) -> set[str]:
        """Return, without their final slash, the directories that rules and sources name, and those of files that they name."""
        found = set[str]()
        for rule in self.rules:
            if isinstance(rule.target, PathTarget) and rule.target.how in {PathKind.EXACT, PathKind.DIRECTORY}:
                found.add(rule.target.value.rpartition("/")[0])
            found.update(source.value.rpartition("/")[0] for source in rule.sources)
        return found

    def _walk(self, path: str, pick: Callable[[Node], PathSets]) -> int:
        node, parts = 0, _components(path)
        for depth, part in enumerate(parts):
            following = self.children.get((node, part))
            if following is None:
                sets = pick(self.nodes[node])
                return sets.child if depth == len(parts) - 1 else sets.deep
            node = following
        return pick(self.nodes[node]).exact

    def _condition(self, found: int, profile: int, operation: Operation) -> int:
        listed = self.arguments.get((found, profile), self.arguments.get((found, HOST_PROFILE)))
        kept = listed is not None and bool(operation.args) and all(a in listed for a in operation.args or ())
        return OWNER * operation.is_owner | WRITE * operation.write | TTY * operation.tty | ARGS_LISTED * kept


_SOURCE: Final[Callable[[Node], PathSets]] = attrgetter("source")
_PICK: Final[dict[Entity, Callable[[Node], PathSets]]] = {Entity.PROCESS: attrgetter("process"), Entity.FILE: attrgetter("file")}


def compile_program(rules: RuleSet, profiles: Sequence[Profile] = ()) -> Program:
    """Return the tables for the rules of ``rules`` that this enforcer knows.

    Args:
        rules: For the host, and for workloads.
        profiles: In which workloads can be (``profiles.needed_profiles``); each once, none empty.

    Raises:
        CompileError: The tables would take more than ``LSM_NODES_MAX``, ``LSM_RECORDS_MAX`` or ``GLOB_STATES_MAX``; or a
            rule names something that is not of its kind.
    """
    return _Compiler(rules, Profiles(profiles)).program()


class _Names:
    """Numbers for frozen sets; the same set has one number."""

    def __init__(self, first: int) -> None:
        self.members: dict[int, _Members] = {0: frozenset()}
        self._numbers: dict[tuple[str, _Members], int] = {}
        self._next = first

    def number(self, space: str, members: _Members) -> int:
        """Return the number of ``members``; the empty set is 0 in every space."""
        if not members:
            return 0
        number = self._numbers.setdefault((space, members), self._next)
        if number == self._next:
            self.members[number] = members
            self._next += 1
        return number


class _Own:
    """What is named at a node itself: three lists for each of process, file and source."""

    __slots__ = ("children", "named")

    def __init__(self) -> None:
        self.children: dict[bytes, int] = {}
        self.named: dict[tuple[str, str], set[int]] = {}


class _Compiler:
    def __init__(self, rules: RuleSet, profiles: Profiles) -> None:
        self._rules = tuple(r for r in rules.rules if r.entity in _ENTITIES)
        self._postures, self._profiles = rules.postures, profiles
        sources = sorted({s for r in self._rules for s in r.sources}, key=lambda s: (s.value, s.recursive))
        self._source_numbers = {source: number for number, source in enumerate(sources)}
        self._sets, self._classes = _Names(first=1), _Names(first=UNKNOWN_CLASS + 1)
        self._tree: list[_Own] = [_Own()]
        self._nodes: list[Node] = []
        self._domains = number_domains(self._rules)

    def program(self) -> Program:
        self._plant()
        self._number_nodes()
        if max(self._classes.members) > CLASS_MAX:
            raise CompileError(f"the sources of this node's rules make more than {CLASS_MAX} classes of programs")
        names = self._number_names()
        globs, glob_sets = self._number_globs()
        unions = self._number_unions(glob_sets, set(names.values()))
        unresolved = {e: self._sets.number(e, _numbers(self._of(e), Verdict.BLOCK)) for e in _PATH_ENTITIES}
        return Program(
            rules=self._rules,
            children={(n, part): child for n, own in enumerate(self._tree) for part, child in own.children.items()},
            nodes=tuple(self._nodes),
            names=names,
            globs=globs,
            glob_sets=glob_sets,
            unions=unions,
            records=self._weigh_records(),
            postures=self._weigh_postures(),
            unresolved=unresolved,
            traces=self._traces(),
            arguments=self._arguments,
            profiles=self._profiles,
            domains=self._domains,
        )

    # ---- the tree ------------------------------------------------------------------------------------------------------
    def _plant(self) -> None:
        for number, rule in self._of(*_PATH_ENTITIES):
            target = rule.target
            if isinstance(target, PathTarget) and target.how in {PathKind.EXACT, PathKind.DIRECTORY}:
                how = "exact" if target.how is PathKind.EXACT else "deep" if target.recursive else "child"
                self._name(target.value, rule.entity, how, number)
            elif isinstance(target, PathTarget) and target.how is PathKind.GLOB:
                self._name(_fixed_directory(target.value), rule.entity, "inside", number)
        for source, number in self._source_numbers.items():
            how = "exact" if not source.is_directory else "deep" if source.recursive else "child"
            self._name(source.value, "source", how, number)

    def _name(self, path: str, space: str, how: str, number: int) -> None:
        node = 0
        for part in _components(path):
            children = self._tree[node].children
            if part not in children:
                if len(self._tree) >= limits.LSM_NODES_MAX:
                    raise CompileError(f"the paths of this node's rules have more than {limits.LSM_NODES_MAX} components")
                children[part] = len(self._tree)
                self._tree.append(_Own())
            node = children[part]
        self._tree[node].named.setdefault((space, how), set()).add(number)

    def _number_nodes(self) -> None:
        spaces = (Entity.PROCESS.value, Entity.FILE.value, "source")
        self._nodes = [Node(process=PathSets(), file=PathSets(), source=PathSets())] * len(self._tree)
        none = {space: frozenset[int]() for space in spaces}
        below = self._refusals_below()
        todo: list[tuple[int, dict[str, _Members], dict[str, _Members]]] = [(0, none, none)]
        while todo:
            number, deep_above, child_above = todo.pop()
            own, sets, deep, child = self._tree[number], dict[str, PathSets](), dict[str, _Members](), dict[str, _Members]()
            for space in spaces:
                deep[space] = _with(deep_above[space], own.named.get((space, "deep")))
                child[space] = _with(deep[space], own.named.get((space, "child")))
                exact = _with(child_above[space], own.named.get((space, "exact")))
                sets[space] = PathSets(*(self._number(space, m) for m in (exact, child[space], deep[space])))
            self._nodes[number] = Node(**sets, below=self._sets.number(Entity.FILE, frozenset(below[number])))
            todo += [(inner, deep, child) for inner in own.children.values()]

    def _refusals_below(self) -> list[set[int]]:
        """Return for each node the file rules that refuse something at or below it: moving it away would be a way around them."""
        below = [
            {n for (space, _), members in own.named.items() if space == Entity.FILE for n in members if self._refuses(n)}
            for own in self._tree
        ]
        for number in range(len(self._tree) - 1, -1, -1):  # children have higher numbers than their parents
            for child in self._tree[number].children.values():
                below[number] |= below[child]
        return below

    def _refuses(self, number: int) -> bool:
        rule = self._rules[number]
        return rule.verdict is not Verdict.ALLOW or rule.exempts

    def _number(self, space: str, members: _Members) -> int:
        return (self._classes if space == "source" else self._sets).number(space, members)

    # ---- names, globs, and what they come to together --------------------------------------------------------------------
    def _number_names(self) -> dict[bytes, int]:
        found: dict[bytes, set[int]] = {}
        for number, rule in self._of(Entity.PROCESS):
            if isinstance(rule.target, PathTarget) and rule.target.how is PathKind.NAME:
                found.setdefault(_raw(rule.target.value), set()).add(number)
        return {name: self._sets.number(Entity.PROCESS, frozenset(members)) for name, members in found.items()}

    def _number_globs(self) -> tuple[Dfa | None, dict[Entity, tuple[int, ...]]]:
        globs = {
            number: rule.target.value
            for number, rule in self._of(*_PATH_ENTITIES)
            if isinstance(rule.target, PathTarget) and rule.target.how is PathKind.GLOB
        }
        if not globs:
            return None, dict.fromkeys(_PATH_ENTITIES, (0,))
        dfa = build_dfa(globs)
        return dfa, {
            entity: tuple(
                self._sets.number(entity, frozenset(n for n in accepted if self._rules[n].entity is entity))
                for accepted in dfa.accepted
            )
            for entity in _PATH_ENTITIES
        }

    def _number_unions(self, glob_sets: dict[Entity, tuple[int, ...]], names: set[int]) -> dict[tuple[int, int, int], int]:
        unions: dict[tuple[int, int, int], int] = {}
        for entity in _PATH_ENTITIES:
            in_tree = {0} | {n for node in self._nodes for n in msgspec.structs.astuple(getattr(node, entity.value))}
            by_name = {0} | (names if entity is Entity.PROCESS else set())
            by_glob = {0} | set(glob_sets[entity])
            if len(in_tree) * len(by_name) * len(by_glob) > limits.LSM_RECORDS_MAX:
                raise CompileError(
                    f"paths, globs and names of this node's {entity} rules meet in more than {limits.LSM_RECORDS_MAX} ways"
                )
            for key in product(sorted(in_tree), sorted(by_glob), sorted(by_name)):
                if key[1] or key[2]:
                    unions[key] = self._sets.number(entity, frozenset().union(*(self._sets.members[n] for n in key)))
        return unions

    # ---- outcomes --------------------------------------------------------------------------------------------------------
    def _weigh_records(self) -> dict[tuple[int, int], Record]:
        records: dict[tuple[int, int], Record] = {}
        shared: dict[Record, Record] = {}
        weighed: dict[tuple[object, ...], Record] = {}
        for number, members in chain(self._sets.members.items(), subject_sets(self._rules), self._domains.members.items()):
            for profile, class_, rules in self._by_subject([self._rules[n] for n in members]):
                operations = _operations(self._arguments.get((number, profile), ()))
                if len(records) >= limits.LSM_RECORDS_MAX:
                    raise CompileError(
                        f"targets, sources and workloads of this node's rules meet in more than {limits.LSM_RECORDS_MAX} ways"
                    )
                # Many kinds of socket have the same rules.
                same = (operations, *(rule.id for rule in rules))
                if same not in weighed:
                    record = tuple(weigh(rules, operation) for operation in operations)
                    weighed[same] = shared.setdefault(record, record)
                records[number, subject_of(class_, profile)] = weighed[same]
        return records

    def _weigh_postures(self) -> dict[tuple[Entity, int], Decision]:
        return {
            (entity, subject_of(class_, profile)): weigh_posture(self._postures, rules, entity)
            for entity in _ENTITIES
            for profile, class_, rules in self._by_subject([rule for _, rule in self._of(entity) if makes_list(rule)])
        }

    def _by_subject(self, rules: Sequence[Rule]) -> Iterator[tuple[int, int, list[Rule]]]:
        """Yield profile, class and the rules that speak there, for the host and for each profile that can differ from it."""
        for profile in (HOST_PROFILE, *self._profiles.concerned(rules)):
            for class_, speaking in self._by_class([r for r in rules if speaks_in(r, self._profiles, profile)]):
                yield profile, class_, speaking

    def _traces(self) -> dict[int, Decision]:
        found: dict[int, Decision] = {}
        granting = [rule for rule in self._rules if rule.verdict is Verdict.ALLOW and rule.sources]
        # Those of the host first: in a profile they hold too, and stand in its row where they are the stricter.
        for rule in sorted(granting, key=lambda rule: isinstance(rule.scope, WorkloadScope)):
            verdict = Verdict.BLOCK if rule.mode is Mode.ENFORCE else Verdict.AUDIT
            classes = {c for s in rule.sources for c in self._answering.get(self._source_numbers[s], ())}
            profiles = self._profiles.concerned([rule]) if isinstance(rule.scope, WorkloadScope) else [HOST_PROFILE]
            for subject in starmap(subject_of, product(classes, profiles)):
                held = found.get(subject) or found.get(class_part(subject))
                if held is None or (verdict is Verdict.BLOCK and held.verdict is not verdict):
                    held = Decision(verdict=verdict, rule=rule)
                found[subject] = held
        return found

    def _by_class(self, rules: Sequence[Rule]) -> Iterator[tuple[int, list[Rule]]]:
        """Yield the rules that speak for ``ANY_CLASS`` and for each class that can differ from it."""
        anyone = _thin(r for r in rules if not r.sources)
        yield ANY_CLASS, anyone
        speaking: dict[int, dict[str, Rule]] = {}
        for rule in rules:
            classes = {c for s in rule.sources for c in self._answering.get(self._source_numbers[s], ())}
            if rule.sources and rule.verdict is not Verdict.ALLOW:
                classes.add(UNKNOWN_CLASS)
            for class_ in classes:
                speaking.setdefault(class_, {})[rule.id] = rule
        if any(rule.sources for rule in rules):
            speaking.setdefault(UNKNOWN_CLASS, {})
        for class_, more in sorted(speaking.items()):
            yield class_, [*anyone, *_thin(more.values())]

    @cached_property
    def _answering(self) -> dict[int, list[int]]:
        """Source number → classes that hold it. Read only once all nodes are numbered."""
        found: dict[int, list[int]] = {}
        for class_, members in self._classes.members.items():
            for source in members:
                found.setdefault(source, []).append(class_)
        return found

    @cached_property
    def _arguments(self) -> dict[tuple[int, int], tuple[str, ...]]:
        # A set with two different lists keeps none: then no argument is listed, blocks fire and allows do not grant.
        found: dict[tuple[int, int], tuple[str, ...]] = {}
        for number, members in self._sets.members.items():
            rules = [self._rules[n] for n in members]
            if all(rule.allowed_args is None for rule in rules):
                continue
            for profile in (HOST_PROFILE, *self._profiles.concerned(rules)):
                lists = {r.allowed_args for r in rules if speaks_in(r, self._profiles, profile)} - {None}
                found[number, profile] = (lists.pop() or ()) if len(lists) == 1 else ()
        return found

    def _of(self, *entities: Entity) -> Iterator[tuple[int, Rule]]:
        return ((number, rule) for number, rule in enumerate(self._rules) if rule.entity in entities)


def _thin(rules: Iterable[Rule]) -> list[Rule]:
    """Of rules that weigh the same keep the one that is named: 10,000 like rules weigh as one."""
    found: dict[tuple[object, ...], Rule] = {}
    for r in sorted(rules, key=lambda r: r.id):
        found.setdefault((r.policy, r.verdict, r.mode, r.owner_only, r.read_only, r.no_tty, r.allowed_args, bool(r.sources)), r)
    return list(found.values())


def _operations(listed: tuple[str, ...]) -> tuple[Operation, ...]:
    """Return an operation for each condition. Entity and target are not looked at: the set tells what its rules are about."""
    return tuple(
        Operation(
            entity=Entity.PROCESS,
            is_owner=bool(bits & OWNER),
            write=bool(bits & WRITE),
            tty=bool(bits & TTY),
            args=listed[:1] if bits & ARGS_LISTED else None,
        )
        for bits in range(CONDITIONS)
    )


def _with(members: _Members, more: set[int] | None) -> _Members:
    return members | more if more else members


def _numbers(rules: Iterable[tuple[int, Rule]], verdict: Verdict) -> _Members:
    return frozenset(number for number, rule in rules if rule.verdict is verdict)


def _fixed_directory(glob: str) -> str:
    """Return the directory that everything a glob matches is in, as far as it is spelt out."""
    return re.split(r"[*?\[{\\]", glob, maxsplit=1)[0].rpartition("/")[0]


def _components(path: str) -> list[bytes]:
    return [part for part in _raw(path).split(b"/") if part]


def _raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
