r"""Globs of many rules as one deterministic automaton over the bytes of a path.

Rules of this file:
- Same language as ``common.policy.glob``; a test draws patterns and paths and compares the two.
- It reads a path from its end: the kernel gives the components of a path from the last to the first, and so no program needs a
  buffer for the whole path.
- State 0 is dead: no glob can match any more. State 1 is the start. One step a byte, two array reads a step, whatever the number
  of globs: rows are stored as exceptions from a default, packed into one array (the layout that AppArmor's tables use).
- Too many states is an error here; who calls decides what a rule that does not fit becomes.
Owns: building and walking. Does not own: what a match means.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import CompileError
from garrison.common.policy.glob import expand_braces

__all__ = ["DEAD", "START", "Dfa", "build_dfa"]

DEAD: Final = 0
START: Final = 1
_SEARCH_ROWS: Final = 4
_ALL: Final = (1 << 256) - 1
_SLASH: Final = 1 << ord("/")
_NOT_SLASH: Final = _ALL & ~_SLASH


class Dfa(msgspec.Struct, frozen=True, kw_only=True):
    """A packed automaton.

    Attributes:
        classes: 256 bytes: byte → class; bytes of a class behave alike everywhere.
        base: State → offset of its row in ``check`` and ``next``.
        default: State → where it goes when its row has no entry for the class.
        accept: State → index into ``accepted``; 0 for nothing.
        check: Slot → owning state; 0 for free.
        next: Slot → next state.
        accepted: Sets of glob numbers; number 0 is the empty set.
    """

    classes: bytes
    base: Sequence[int]
    default: Sequence[int]
    accept: Sequence[int]
    check: Sequence[int]
    next: Sequence[int]
    accepted: tuple[frozenset[int], ...]

    def step(self, state: int, byte: int) -> int:
        """Return the state after ``byte``."""
        slot = self.base[state] + self.classes[byte]
        return self.next[slot] if self.check[slot] == state else self.default[state]

    def walk(self, path: bytes) -> int:
        """Return the index into ``accepted`` of the globs that match the whole of ``path``."""
        state = START
        for byte in reversed(path):
            state = self.step(state, byte)
            if state == DEAD:
                return 0
        return self.accept[state]


class _Nfa:
    """Positions with byte-consuming edges; globs that end alike share positions."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int]]] = [[]]  # position → (mask of bytes, next position)
        self.skips: list[list[int]] = [[]]  # position → positions reached without a byte
        self.accepts: dict[int, set[int]] = {}
        self._shared: dict[tuple[int, str], int] = {}

    def add(self, number: int, pattern: str) -> None:
        position = 0
        for piece, mask in reversed(list(_pieces(pattern))):
            position = self._extend(position, piece, mask)
        self.accepts.setdefault(position, set()).add(number)

    def _extend(self, position: int, piece: str, mask: int) -> int:
        if (found := self._shared.get((position, piece))) is not None:
            return found
        if piece == "/**":  # before a slash: nothing, or a slash and anything; read from its end
            inner, end = self._new(), self._new()
            self.skips[position] += [inner, end]
            self.edges[inner] += [(_ALL, inner), (_SLASH, end)]
        elif piece in {"*", "**"}:
            end = self._new()
            self.skips[position].append(end)
            self.edges[end].append((mask, end))
        else:
            end = self._new()
            self.edges[position].append((mask, end))
        self._shared[(position, piece)] = end
        return end

    def _new(self) -> int:
        self.edges.append([])
        self.skips.append([])
        return len(self.edges) - 1

    def closure(self, positions: Iterable[int]) -> frozenset[int]:
        found, todo = set[int](), list(positions)
        while todo:
            position = todo.pop()
            if position not in found:
                found.add(position)
                todo += self.skips[position]
        return frozenset(found)


def _pieces(pattern: str) -> Iterable[tuple[str, int]]:
    raw, i = pattern.encode("utf-8", "surrogateescape"), 0
    while i < len(raw):
        if raw.startswith(b"/**/", i):
            yield "/**", _ALL
            i += 3  # the slash behind it comes next, so that /**/**/ works too
        elif raw.startswith(b"**", i):
            yield "**", _ALL
            i += 2
        elif raw[i : i + 1] == b"*":
            yield "*", _NOT_SLASH
            i += 1
        elif raw[i : i + 1] == b"?":
            yield "?", _NOT_SLASH
            i += 1
        elif raw[i : i + 1] == b"[":
            mask, end = _class(raw, i)
            yield f"[{mask:x}", mask
            i = end
        else:
            i += raw[i : i + 1] == b"\\"
            yield f"={raw[i]}", 1 << raw[i]
            i += 1


def _class(raw: bytes, start: int) -> tuple[int, int]:
    i = start + 1
    negated = raw[i : i + 1] in {b"!", b"^"}
    i += negated
    mask, first = 0, True
    while first or raw[i : i + 1] != b"]":
        if raw[i + 1 : i + 2] == b"-" and raw[i + 2 : i + 3] not in {b"]", b""}:
            mask |= sum(1 << byte for byte in range(raw[i], raw[i + 2] + 1))
            i += 3
        else:
            mask |= 1 << raw[i]
            i += 1
        first = False
    return (_ALL & ~mask if negated else mask) & _NOT_SLASH, i + 1


def build_dfa(globs: Mapping[int, str]) -> Dfa:
    """Return the automaton of ``globs`` (number → checked pattern).

    Raises:
        CompileError: It takes more than ``GLOB_STATES_MAX`` states.
    """
    nfa = _Nfa()
    for number, pattern in globs.items():
        for part in expand_braces(pattern):
            nfa.add(number, part)
    classes, representatives = _byte_classes(nfa)
    rows, accepts = _determinise(nfa, representatives)
    return _pack(classes, len(representatives), rows, accepts)


def _byte_classes(nfa: _Nfa) -> tuple[bytes, list[int]]:
    masks = {mask for edges in nfa.edges for mask, _ in edges}
    keys: dict[tuple[bool, ...], int] = {}
    classes, representatives, ordered = bytearray(256), list[int](), sorted(masks)
    for byte in range(256):
        key = tuple(bool(mask >> byte & 1) for mask in ordered)
        if key not in keys:
            keys[key] = len(representatives)
            representatives.append(byte)
        classes[byte] = keys[key]
    return bytes(classes), representatives


def _determinise(nfa: _Nfa, representatives: Sequence[int]) -> tuple[list[list[int]], list[frozenset[int]]]:
    empty, start = frozenset[int](), nfa.closure([0])
    numbers = {empty: DEAD, start: START}
    order, rows = [empty, start], list[list[int]]()
    for positions in order:  # grows while it is walked
        row = []
        edges = [edge for position in positions for edge in nfa.edges[position]]
        for byte in representatives:
            reached = nfa.closure(to for mask, to in edges if mask >> byte & 1)
            if reached not in numbers:
                if len(order) >= limits.GLOB_STATES_MAX:
                    raise CompileError(
                        f"the globs of this node take more than {limits.GLOB_STATES_MAX} states",
                        hint="use directories where a glob only ends in **, and fewer globs with * before their last part",
                    )
                numbers[reached] = len(order)
                order.append(reached)
            row.append(numbers[reached])
        rows.append(row)
    return rows, [frozenset(n for p in positions for n in nfa.accepts.get(p, ())) for positions in order]


def _pack(classes: bytes, width: int, rows: Sequence[Sequence[int]], accepts: Sequence[frozenset[int]]) -> Dfa:
    base, default = array("I", [0] * len(rows)), array("I", [0] * len(rows))
    check, following = array("I", [0] * width), array("I", [0] * width)
    for state, row in enumerate(rows):
        default[state] = Counter(row).most_common(1)[0][0]
        exceptions = [(c, to) for c, to in enumerate(row) if to != default[state]]
        # First fit within the last rows' width: searching all holes would take quadratic time for a few per cent of the space.
        offset = max(0, len(check) - _SEARCH_ROWS * width)
        while any(check[offset + c] for c, _ in exceptions if offset + c < len(check)):
            offset += 1
        base[state] = offset
        missing = offset + width - len(check)
        if missing > 0:
            check.extend([0] * missing)
            following.extend([0] * missing)
        for c, to in exceptions:
            check[offset + c], following[offset + c] = state, to
    accepted = list(dict.fromkeys([frozenset[int](), *accepts]))
    numbers = {found: number for number, found in enumerate(accepted)}
    return Dfa(
        classes=classes,
        base=base,
        default=default,
        accept=array("I", [numbers[found] for found in accepts]),
        check=check,
        next=following,
        accepted=tuple(accepted),
    )
