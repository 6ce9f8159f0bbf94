"""The binary half that this backend shares with ``bpf/syscalls.bpf.c``. Mirrors ``bpf/include/syscalls.h``."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from garrison.bpf.records import ACTOR_BYTES, ActorRecord, decode_actor, decode_names, text
from garrison.common.errors import FrameError
from garrison.minion.enforcers.syscalls.numbers import CALLS_MAX

__all__ = [
    "COUNTERS",
    "DROP_KEY",
    "ROW_BYTES",
    "TARGET_MAX_BYTES",
    "CallPath",
    "CallRecord",
    "decode_call",
    "encode_bits",
    "encode_row",
    "encode_target",
]

_BITS: Final = CALLS_MAX // 8
_ROW_HEAD: Final = struct.Struct("=IIII")
_TARGET_BYTES: Final = 256
_NAMES_BYTES: Final = 512 + 256
_TEXT_BYTES: Final = 768
_HEAD: Final = struct.Struct("=qII3IIIBBxxi4x")  # struct call_record from ``result`` to ``pad2``
_NO_ROW: Final = 0xFFFF_FFFF
_ARGS_BYTES: Final = 64
_PATH: Final = struct.Struct("=iiQ")
_EXE_AT: Final = ACTOR_BYTES + _HEAD.size + _ARGS_BYTES
_PATHS_AT: Final = _EXE_AT + _NAMES_BYTES
_PATH_BYTES: Final = _PATH.size + _NAMES_BYTES + _TEXT_BYTES
ROW_BYTES: Final = _ROW_HEAD.size + 2 * _BITS
TARGET_MAX_BYTES: Final = _TARGET_BYTES - 1  # longer ones are not compared in the kernel
DROP_KEY: Final = struct.Struct("=III")  # generation, row, call
COUNTERS: Final = ("seen", "unresolved", "dropped", "dropped_unnamed", "calls_32bit")


class CallPath(NamedTuple):
    """A path of a call as the kernel saw it.

    Attributes:
        base: Directory that a relative text begins at, or the object of a descriptor; empty when it is not known whole.
        text: As the caller wrote it; empty when the call was given a descriptor only.
        text_known: ``text`` is all of it.
    """

    base: str
    text: str
    text_known: bool


class CallRecord(NamedTuple):
    """One call as the program wrote it.

    Attributes:
        rows: Numbers of the rows that let it through.
        profile: Of the caller's workload.
        also: Of a container that it has left; 0 for none.
        exe: Empty when it is not known whole.
        result: ``None`` when it is not known.
    """

    actor: ActorRecord
    generation: int
    call: int
    rows: tuple[int, ...]
    profile: int
    also: int
    result: int | None
    exe: str
    paths: tuple[CallPath, ...]


def encode_bits(calls: Iterable[int]) -> bytes:
    """Return a set of call numbers."""
    return sum(1 << call for call in set(calls)).to_bytes(_BITS, "little")


def encode_row(generation: int, index: int, flags: int, calls: Iterable[int], paths: Iterable[int]) -> bytes:
    """Return a row: calls that are reported whatever they are given, and calls whose path must be looked at first."""
    return _ROW_HEAD.pack(generation, index, flags, 0) + encode_bits(calls) + encode_bits(paths)


def encode_target(prefix: bytes) -> bytes:
    """Return the key of a prefix of at most ``TARGET_MAX_BYTES``."""
    return struct.pack("=I", len(prefix) * 8) + prefix.ljust(_TARGET_BYTES, b"\0")


def decode_call(raw: bytes) -> CallRecord:
    """Return the call in ``raw``.

    Raises:
        FrameError: It is shorter than a call: object and agent do not belong together.
    """
    try:
        result, generation, call, *rows, profile, also, count, returned, used = _HEAD.unpack_from(raw, ACTOR_BYTES)
        exe, known = decode_names(raw[_EXE_AT:_PATHS_AT], used)
        paths = tuple(_decode_path(raw, _PATHS_AT + index * _PATH_BYTES) for index in range(count))
        spoke = tuple(row for row in rows if row != _NO_ROW)
        told, program = result if returned else None, exe if known else ""
        return CallRecord(decode_actor(raw), generation, call, spoke, profile, also, told, program, paths)
    except struct.error as err:
        raise FrameError(f"not a record of syscalls: {err}") from err


def _decode_path(raw: bytes, at: int) -> CallPath:
    base_used, text_used, _ = _PATH.unpack_from(raw, at)
    text_at = at + _PATH.size + _NAMES_BYTES
    base, known = decode_names(raw[at + _PATH.size : text_at], base_used)
    written = text(raw[text_at : text_at + max(text_used - 1, 0)])
    return CallPath(base if known else "", written, 0 <= text_used < _TEXT_BYTES)
