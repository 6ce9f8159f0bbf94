"""Compiles rules into the table that the responder decides by. Pure: the same rules and inodes give the same bytes.

Rules of this file:
- The binary form is that of ``table.h``; a test draws rules and operations and holds the responder's decisions to
  ``common.policy.match.decide``.
- Rules are numbered in the order of their ids, so that the smallest number is the smallest id.
- What a rule costs at run time depends on how many rules name the same path, not on how many there are.
Owns: the table's bytes. Does not own: which files must be watched (``marks``), what can be enforced (``reports``).
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from garrison.common.errors import CompileError
from garrison.common.policy.glob import expand_braces, literal_prefix
from garrison.common.policy.match import makes_list, posture_of
from garrison.common.policy.rules import Entity, Mode, PathKind, PathTarget, Posture, Rule, RuleSet, Source, Verdict
from garrison.minion.enforcers.fanotify.globs import compile_glob

__all__ = ["ENTITIES", "VERDICTS", "FileId", "Mark", "build_table"]

MAGIC: Final = b"GARRFAN\0"
VERSION: Final = 1
NONE: Final = 0xFFFFFFFF
ENTITIES: Final = (Entity.PROCESS, Entity.FILE)  # in the order of enum entity
VERDICTS: Final = (Verdict.ALLOW, Verdict.AUDIT, Verdict.BLOCK)  # in the order of enum verdict

_OWNER_ONLY, _READ_ONLY, _NO_TTY, _ENFORCED = 1, 2, 4, 8
_EXACT, _DIRECTORY, _NAME, _INODE, _SOURCE, _SOURCE_DIR, _LOADER = 1, 2, 3, 4, 5, 6, 7

_HEADER: Final = struct.Struct("<8s4I14I" + 2 * "IIIBBxx")
_RULE: Final = struct.Struct("<BBBxIII")
_SLOT: Final = struct.Struct("<IIII")
_GLOB: Final = struct.Struct("<IIII")
_MARK: Final = struct.Struct("<IIIIQ")
_SET: Final = struct.Struct("<4I")

FileId = tuple[int, int]
"""Device and inode number of a file, as ``stat`` tells them."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What the responder must watch.

    Attributes:
        path: A file, a directory (and what is directly in it), or any path on a file system.
        mask: ``FAN_*_PERM`` bits.
        filesystem: The whole file system that ``path`` is on.
        optional: Go on when the kernel cannot watch it.
    """

    path: str
    mask: int
    filesystem: bool = False
    optional: bool = False


def build_table(
    rules: RuleSet,
    *,
    generation: int,
    marks: Sequence[Mark] = (),
    file_id: Callable[[str], FileId | None] = lambda _: None,
    loaders: Iterable[FileId] = (),
) -> bytes:
    """Return the table for ``rules``.

    Args:
        rules: Path rules for processes and files, in host scope; sorted by id.
        generation: Comes back in every record.
        marks: What to watch.
        file_id: Tells the identity of an existing file: exact targets hold by it, too.
        loaders: Dynamic loaders: opened for execution on behalf of other programs.

    Raises:
        CompileError: A rule is not of that kind, or a path cannot be a file name.
    """
    return _Builder(rules, file_id).build(generation, marks, loaders)


class _Builder:
    """Collects words, bytes and index entries; ``build`` lays them out."""

    def __init__(self, rules: RuleSet, file_id: Callable[[str], FileId | None]) -> None:
        self._set, self._rules, self._file_id = rules, rules.rules, file_id
        self._words, self._bytes = list[int](), bytearray()
        self._known: dict[bytes, int] = {}
        self._globs: list[tuple[int, int, int, int]] = []
        self._lists: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        # Directories have three lists: direct children, everything below, globs.
        self._dirs: dict[tuple[int, bytes], tuple[list[int], list[int], list[int]]] = defaultdict(lambda: ([], [], []))
        self._source_dirs: dict[bytes, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        self._source_sets: dict[tuple[Source, ...], int] = {(): 0}
        self._policies: dict[str, int] = {}
        self._argument_words = list[int]()  # words that are offsets into the bytes, whose place is known last
        self._smallest = _smallest_allows(self._rules)

    def build(self, generation: int, marks: Sequence[Mark], loaders: Iterable[FileId]) -> bytes:
        head_bytes = _HEADER.size
        packed_rules = b"".join(self._rule(number, rule) for number, rule in enumerate(self._rules))
        self._index_sources()
        sets = b"".join(self._allows_of_set(key) for key in self._source_sets)
        heads = [field for entity in ENTITIES for field in self._entity(entity)]
        slots = self._slots(loaders)
        packed_marks = [(self._text(_encode(m.path) + b"\0"), m) for m in marks]
        globs = b"".join(_GLOB.pack(*glob) for glob in self._globs)
        words = struct.pack(f"<{len(self._words)}I", *self._words)
        mark_size = _MARK.size * len(marks)
        counts = [len(self._rules), len(self._source_sets), len(slots), len(self._globs), len(marks), len(self._words)]
        sizes = [len(packed_rules), len(sets), _SLOT.size * len(slots), len(globs), mark_size, len(words)]
        offsets = [head_bytes]
        for size in sizes:
            offsets.append(_aligned(offsets[-1] + size))
        base = offsets[-1]
        body = [
            packed_rules,
            sets,
            b"".join(_SLOT.pack(kind, base + key, length, at) if kind else bytes(_SLOT.size) for kind, key, length, at in slots),
            globs,
            b"".join(
                _MARK.pack(base + at, len(_encode(m.path)), m.filesystem | m.optional << 1, 0, m.mask) for at, m in packed_marks
            ),
            self._rebased(words, base),
            bytes(self._bytes),
        ]
        sections = [n for pair in zip(offsets, [*counts, len(self._bytes)], strict=True) for n in pair]
        total = _aligned(base + len(self._bytes))
        header = _HEADER.pack(MAGIC, VERSION, total, generation, len(self._policies), *sections, *heads)
        out = bytearray(header)
        for offset, part in zip(offsets, body, strict=True):
            out += bytes(offset - len(out)) + part
        return bytes(out + bytes(total - len(out)))

    # ---- rules ---------------------------------------------------------------------------------------------------------
    def _rule(self, number: int, rule: Rule) -> bytes:
        if rule.entity not in ENTITIES or not isinstance(rule.target, PathTarget):
            raise CompileError(f"rule {rule.id}: fanotify has no {rule.entity} rules")
        entity = ENTITIES.index(rule.entity)
        self._index_target(number, entity << 8, rule.target)
        source_set = self._source_sets.setdefault(rule.sources, len(self._source_sets))
        policy = self._policies.setdefault(rule.policy, len(self._policies))
        flags = (
            _OWNER_ONLY * rule.owner_only
            | _READ_ONLY * rule.read_only
            | _NO_TTY * rule.no_tty
            | _ENFORCED * (rule.mode is Mode.ENFORCE)
        )
        return _RULE.pack(entity, VERDICTS.index(rule.verdict), flags, source_set, policy, self._arguments(rule))

    def _arguments(self, rule: Rule) -> int:
        if rule.allowed_args is None:
            return NONE
        at = len(self._words)
        texts = [_encode(text) for text in rule.allowed_args]
        self._words += [len(texts), *(n for text in texts for n in (self._text(text), len(text)))]
        self._argument_words += [at + 1 + 2 * i for i in range(len(texts))]
        return at

    def _rebased(self, words: bytes, base: int) -> bytes:
        out = bytearray(words)
        for at in self._argument_words:
            struct.pack_into("<I", out, 4 * at, self._words[at] + base)
        return bytes(out)

    def _index_target(self, number: int, entity: int, target: PathTarget) -> None:
        value = _encode(target.value)
        match target.how:
            case PathKind.EXACT:
                self._lists[_EXACT | entity, value].append(number)
                identity = self._file_id(target.value)
                if identity is not None:
                    self._lists[_INODE | entity, struct.pack("<QQ", *identity)].append(number)
            case PathKind.DIRECTORY:
                self._dirs[_DIRECTORY | entity, value][target.recursive].append(number)
            case PathKind.NAME:
                self._lists[_NAME | entity, value].append(number)
            case PathKind.GLOB:
                self._index_glob(number, entity, target.value)

    def _index_glob(self, number: int, entity: int, pattern: str) -> None:
        for part in expand_braces(pattern):
            prefix = literal_prefix(part)
            # Matching starts at the last slash of the literal directory: ``/**/`` may begin there.
            skipped = len(prefix) - 1 if part.startswith("/") else 0
            program = compile_glob(part[skipped:])
            glob = len(self._globs)
            start = len(_encode(prefix)) - 1 if skipped else 0
            self._globs.append((number, len(self._words), len(program), start))
            self._words += program
            self._dirs[_DIRECTORY | entity, _encode(prefix)][2].append(glob)

    # ---- sources and allow-lists ---------------------------------------------------------------------------------------
    def _index_sources(self) -> None:
        for sources, number in self._source_sets.items():
            for source in sources:
                value = _encode(source.value)
                if source.is_directory:
                    self._source_dirs[value][source.recursive].append(number)
                else:
                    self._lists[_SOURCE, value].append(number)

    def _allows_of_set(self, sources: tuple[Source, ...]) -> bytes:
        allows = [self._allows(entity, sources) for entity in ENTITIES]
        return _SET.pack(*(a for a, _ in allows), *(e for _, e in allows))

    def _allows(self, entity: Entity, sources: tuple[Source, ...]) -> tuple[int, int]:
        return self._smallest.get((entity, sources), (NONE, NONE))

    def _entity(self, entity: Entity) -> tuple[int, int, int, int, int]:
        mine = [(number, rule) for number, rule in enumerate(self._rules) if rule.entity is entity]
        blocks = self._list([number for number, rule in mine if rule.verdict is Verdict.BLOCK])
        any_allow, enforced = self._allows(entity, ())
        posture = posture_of(self._set.postures, entity) is Posture.BLOCK
        return blocks, any_allow, enforced, posture, any(rule.sources for _, rule in mine)

    # ---- index ---------------------------------------------------------------------------------------------------------
    def _slots(self, loaders: Iterable[FileId]) -> list[tuple[int, int, int, int]]:
        entries = [(kind, key, self._list(items)) for (kind, key), items in self._lists.items()]
        entries += [(kind, key, self._split_list(lists)) for (kind, key), lists in self._dirs.items()]
        entries += [(_SOURCE_DIR, key, self._split_list(lists)) for key, lists in self._source_dirs.items()]
        entries += [(_LOADER, struct.pack("<QQ", *identity), 0) for identity in sorted(set(loaders))]
        size = 1 << max(4, (2 * len(entries)).bit_length())  # at most half full: short probes, and one is always empty
        slots = [(0, 0, 0, 0)] * size
        for kind, key, at in entries:
            place = _slot_hash(kind, key) & (size - 1)
            while slots[place][0]:
                place = (place + 1) & (size - 1)
            slots[place] = (kind, self._text(key), len(key), at)
        return slots

    def _list(self, items: Sequence[int]) -> int:
        at = len(self._words)
        self._words += [len(items), *items]
        return at

    def _split_list(self, lists: Sequence[Sequence[int]]) -> int:
        at = len(self._words)
        self._words += [*(len(items) for items in lists), *(item for items in lists for item in items)]
        return at

    def _text(self, text: bytes) -> int:
        if text not in self._known:
            self._known[text] = len(self._bytes)
            self._bytes += text
        return self._known[text]


def _smallest_allows(rules: Sequence[Rule]) -> dict[tuple[Entity, tuple[Source, ...]], tuple[int, int]]:
    """Return by entity and sources the smallest rule that makes an allow-list, and the smallest in mode enforce."""
    found: dict[tuple[Entity, tuple[Source, ...]], tuple[int, int]] = {}
    for number, rule in enumerate(rules):
        if makes_list(rule):
            any_allow, enforced = found.get((rule.entity, rule.sources), (NONE, NONE))
            mine = number if rule.mode is Mode.ENFORCE else NONE
            found[rule.entity, rule.sources] = (min(any_allow, number), min(enforced, mine))
    return found


def _encode(path: str) -> bytes:
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as err:
        raise CompileError(f"{path!r} cannot be a file name") from err
    if b"\0" in raw:
        raise CompileError(f"{path!r} holds a NUL")
    return raw


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7


_MASK64: Final = (1 << 64) - 1


def _slot_hash(kind: int, key: bytes) -> int:
    """Return the FNV-1a of the key, mixed with its kind, as ``find`` in ``table.c`` takes it."""
    value = 0xCBF29CE484222325
    for byte in key:
        value = ((value ^ byte) * 0x100000001B3) & _MASK64
    return (((value ^ kind) * 0x100000001B3) & _MASK64) >> 32
