"""Tables as bytes, in the layout of ``bpf/include/rule_tables.h``.

Rules of this file:
- Pure. What a file's inode is and how a component is hashed are arguments.
- Sizes are asserted in the C header and compared with these in a test.
Owns: layout. Does not own: meaning (``program``), maps and switching (``enforcer``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from garrison.bpf.pathhash import PathHasher
from garrison.common import limits
from garrison.common.policy.match import Decision
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Verdict
from garrison.minion.enforcers.bpf_lsm.domains import domain_hash
from garrison.minion.enforcers.bpf_lsm.program import Node, PathSets, Program, Record
from garrison.minion.enforcers.bpf_lsm.subjects import SUBJECTS, capability_bits, preset_bits
from garrison.minion.enforcers.cgroup_table import CGROUP_KEY_BYTES, CGROUP_ROW_BYTES, lay_out_cgroups
from garrison.minion.enforcers.profiles import HOST_PROFILE, Placements, profile_part, workload_scopes

__all__ = ["ENTITIES", "TABLES", "TableType", "Tables", "lay_out", "lay_out_extension", "rule_at"]

ENTITIES: Final = (Entity.PROCESS, Entity.FILE)  # enum entity
_VERDICTS: Final = {Verdict.ALLOW: 1, Verdict.AUDIT: 2, Verdict.BLOCK: 3}  # enum verdict; 0: nothing fired or granted
_OUTCOME: Final = struct.Struct("=BBxxI")
_NODE: Final = struct.Struct("=10I")
_HEAD: Final = struct.Struct("=10I256s")
_PAIR: Final = struct.Struct("=II")
_TRIPLE: Final = struct.Struct("=III")
_INODE: Final = struct.Struct("=QI4x")
_ARG: Final = struct.Struct("=IIQ")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_SUBJECT_HEAD: Final = struct.Struct("=QQ6I")
_HAS_ANCHORS, _HAS_INODES = 3, 6  # fields of ``_HEAD``
_ARGUMENT_BYTES: Final = 256  # ARG_BYTES of subject.h
_POSTURE_OF: Final = 0xFFFF_FFFF
_TRACE_SET: Final = 0xFFFF_FFFF - 16
_POSTURES: Final = ENTITIES + SUBJECTS

InodeOf = Callable[[str], tuple[int, int] | None]
"""Path → (device as the kernel numbers it, inode number); ``None`` when nothing is there, or with a final slash no directory."""

Tables = Mapping[str, Mapping[bytes, bytes]]
"""Table → key → value. Tables of numbered rows have the row's number as key, in order and without holes."""


class TableType(msgspec.Struct, frozen=True):
    """What a table's map is made as.

    Attributes:
        keyed: Keyed, or numbered rows.
        key_bytes: Size of a key.
        value_bytes: Size of a value.
        rows_max: Room for rows that come later; 0 for a table that is filled once.
    """

    keyed: bool
    key_bytes: int
    value_bytes: int
    rows_max: int = 0


TABLES: Final[Mapping[str, TableType]] = {
    "heads": TableType(False, 4, _HEAD.size),
    "nodes": TableType(True, 8, _NODE.size),
    "anchors": TableType(True, _INODE.size, 8),
    "args": TableType(True, _ARG.size, 4),
    "names": TableType(True, 8, 4),
    "dfa_states": TableType(False, 4, _TRIPLE.size),
    "dfa_slots": TableType(False, 4, _PAIR.size),
    "globs": TableType(False, 4, _PAIR.size),
    "unions": TableType(True, _TRIPLE.size, 4),
    "rows": TableType(True, _PAIR.size, 4),
    "records": TableType(False, 4, 16 * _OUTCOME.size),
    "inodes": TableType(True, _INODE.size, _TRIPLE.size),
    "subject_heads": TableType(False, 4, _SUBJECT_HEAD.size),
    "class_capabilities": TableType(True, 4, 8),
    "cgroups": TableType(True, CGROUP_KEY_BYTES, CGROUP_ROW_BYTES, rows_max=limits.LSM_WORKLOADS_MAX),
    "domains": TableType(True, 8, _PAIR.size),
}


def lay_out(
    program: Program,
    generation: int,
    *,
    hasher: PathHasher,
    inode_of: InodeOf,
    placements: Placements | None = None,
) -> Tables:
    """Return all tables of ``program``.

    Args:
        program: Compiled rules.
        generation: Number that its events carry; at least 1.
        hasher: Keyed as the loaded programs are.
        inode_of: Tells which file a path leads to now.
        placements: Where workloads are; nowhere when not given.
    """
    rows, records = _rows(program)
    anchors, inodes = dict(_anchors(program, hasher, inode_of)), dict(_inodes(program, inode_of))
    return {
        "heads": {_U32.pack(0): _head(program, generation, has_anchors=bool(anchors), has_inodes=bool(inodes))},
        "nodes": _nodes(program, hasher),
        "anchors": anchors,
        "args": dict(_args(program, hasher)),
        "names": {_U64.pack(hasher.name(name)): _U32.pack(number) for name, number in program.names.items()},
        **_automaton(program),
        "unions": {_TRIPLE.pack(*key): _U32.pack(number) for key, number in program.unions.items()},
        "rows": rows,
        "records": records,
        "inodes": inodes,
        **_subjects(program, generation, (inode_of("/") or (0, 0))[0]),
        "domains": {_U64.pack(domain_hash(hasher, domain)): _PAIR.pack(*sets) for domain, sets in program.domains.sets.items()},
        "cgroups": lay_out_cgroups(placements or {}, program.profiles, hasher),
    }


def lay_out_extension(program: Program, generation: int, *, hasher: PathHasher, heads: tuple[bytes, bytes]) -> Tables:
    """Return the tables that further profiles change, in the order to replace them in: what rows lead to comes first.

    Args:
        program: With profiles after those that it had (``extension.extended``).
        generation: Its number, which stays.
        hasher: As for ``lay_out``.
        heads: The rows of ``heads`` and ``subject_heads`` so far: what they say of files and directories stays.
    """
    rows, records = _rows(program)
    before, root_device = _HEAD.unpack(heads[0]), _SUBJECT_HEAD.unpack(heads[1])[-1]
    return {
        "records": records,
        "rows": rows,
        "args": dict(_args(program, hasher)),
        **_subjects(program, generation, root_device),
        "heads": {
            _U32.pack(0): _head(program, generation, has_anchors=bool(before[_HAS_ANCHORS]), has_inodes=bool(before[_HAS_INODES]))
        },
    }


def rule_at(program: Program, number: int) -> int | None:
    """Return the index into ``program.rules`` of the rule number in an event; ``None`` for 0."""
    return number - 1 if 0 < number <= len(program.rules) else None


def _head(program: Program, generation: int, *, has_anchors: bool, has_inodes: bool) -> bytes:
    return _HEAD.pack(
        generation,
        program.globs is not None,
        bool(program.names),
        has_anchors,
        bool(program.arguments),
        any(decision.by_posture for decision in program.postures.values()),
        has_inodes,
        bool(workload_scopes(program.rules)),
        *(program.unresolved[entity] for entity in ENTITIES),
        program.globs.classes if program.globs else bytes(256),
    )


def _nodes(program: Program, hasher: PathHasher) -> dict[bytes, bytes]:
    # Parents have lower numbers than their children, so every directory is hashed before what is in it.
    hashes = [0] * len(program.nodes)
    for (parent, part), number in sorted(program.children.items(), key=lambda item: item[1]):
        hashes[number] = hasher.below(hashes[parent], part)
    return {_U64.pack(hashes[number]): _node(node) for number, node in enumerate(program.nodes)}


def _node(node: Node) -> bytes:
    return _NODE.pack(*(n for sets in (node.process, node.file, node.source) for n in _sets(sets)), node.below)


def _sets(sets: PathSets) -> tuple[int, int, int]:
    return sets.exact, sets.child, sets.deep


def _automaton(program: Program) -> dict[str, dict[bytes, bytes]]:
    dfa = program.globs
    if dfa is None:
        return {"dfa_states": {}, "dfa_slots": {}, "globs": {}}
    return {
        "dfa_states": _numbered(_TRIPLE.pack(*row) for row in zip(dfa.base, dfa.default, dfa.accept, strict=True)),
        "dfa_slots": _numbered(_PAIR.pack(*row) for row in zip(dfa.check, dfa.next, strict=True)),
        "globs": _numbered(_PAIR.pack(*row) for row in zip(*(program.glob_sets[e] for e in ENTITIES), strict=True)),
    }


def _numbered(rows: Iterator[bytes]) -> dict[bytes, bytes]:
    return {_U32.pack(number): row for number, row in enumerate(rows)}


def _rows(program: Program) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    numbers: dict[str, int] = {rule.id: number for number, rule in enumerate(program.rules, 1)}
    indexes: dict[bytes, int] = {}
    rows: dict[bytes, bytes] = {}

    def row(found: int, subject: int, record: Record) -> None:
        packed = b"".join(_outcome(decision, numbers) for decision in record)
        rows[_PAIR.pack(found, subject)] = _U32.pack(indexes.setdefault(packed, len(indexes)))

    outcomes = [(found, subject, record) for (found, subject), record in program.records.items()]
    for (entity, subject), decision in program.postures.items():
        outcomes.append((_POSTURE_OF - _POSTURES.index(entity), subject, (decision,) * 16))
    outcomes += [(_TRACE_SET, subject, (decision,) * 16) for subject, decision in program.traces.items()]
    # By profile, so that one more profile leaves the numbers of all records before it as they are.
    for outcome in sorted(outcomes, key=lambda outcome: profile_part(outcome[1])):
        row(*outcome)
    return rows, _numbered(iter(indexes))


def _outcome(decision: Decision | None, numbers: Mapping[str, int]) -> bytes:
    if decision is None:
        return _OUTCOME.pack(0, 0, 0)
    return _OUTCOME.pack(_VERDICTS[decision.verdict], decision.by_posture, numbers[decision.rule.id] if decision.rule else 0)


def _args(program: Program, hasher: PathHasher) -> Iterator[tuple[bytes, bytes]]:
    for (number, profile), listed in program.arguments.items():
        if profile != HOST_PROFILE:
            yield _ARG.pack(number, _listing(profile), 0), _U32.pack(1)  # it has a list of its own, however short
        for argument in listed:
            raw = argument.encode("utf-8", "surrogateescape")
            if len(raw) < _ARGUMENT_BYTES:  # longer ones are listed nowhere
                yield _ARG.pack(number, _listing(profile) | len(raw), hasher.argument(raw)), _U32.pack(1)


def _listing(profile: int) -> int:
    return profile << 16


def _inodes(program: Program, inode_of: InodeOf) -> Iterator[tuple[bytes, bytes]]:
    named = {r.target.value for r in program.rules if isinstance(r.target, PathTarget) and r.target.how is PathKind.EXACT}
    named |= {s.value for r in program.rules for s in r.sources if not s.is_directory}
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    for path in sorted(named):
        inode = inode_of(path)
        if inode is not None:
            # Two named paths that are one file: the first by name stands; each still holds by its own path.
            process, file = (program.set_of(entity, path) for entity in ENTITIES)
            found.setdefault(inode, (process, file, program.class_of(path)))
    for (device, number), values in found.items():
        yield _INODE.pack(number, device), _TRIPLE.pack(*values)


def _anchors(program: Program, hasher: PathHasher, inode_of: InodeOf) -> Iterator[tuple[bytes, bytes]]:
    """Yield the deepest directory that exists on the way to each path that a rule names: what is under it is known by it."""
    known: dict[str, tuple[int, int] | None] = {}
    for path in program.directories():
        at = path
        while at not in known:
            known[at] = inode_of(f"{at}/")
            if known[at] is not None or not at:
                break
            at = at.rpartition("/")[0]
    for path, inode in known.items():
        if inode is not None:
            device, number = inode
            yield _INODE.pack(number, device), _U64.pack(hasher.path(path))


def _subjects(program: Program, generation: int, root_device: int) -> dict[str, dict[bytes, bytes]]:
    bits = capability_bits(program.records, program.postures)
    network, dns = (any(rule.entity is entity for rule in program.rules) for entity in (Entity.NETWORK, Entity.DNS))
    head = _SUBJECT_HEAD.pack(
        bits.all,
        bits.anyone,
        generation,
        network,
        dns,
        program.domains.unreadable,
        preset_bits(program.rules),
        root_device,
    )
    return {
        "subject_heads": {_U32.pack(0): head},
        "class_capabilities": {_U32.pack(subject): _U64.pack(own) for subject, own in bits.subjects.items()},
    }
