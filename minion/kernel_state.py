"""What the kernel holds of us, read from its pins: without the agent, without taking anything over.

Rules of this file:
- Reads only. An agent that runs is not disturbed: no event is taken from the ring, no number is changed.
- What cannot be read is said, not guessed: tamper protection may refuse maps to everybody but the agent.
Owns: finding the pins, however many versions there are. Does not own: what is in the maps (``enforcers/bpf_lsm``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from garrison.bpf.loader import BpfMap, open_pinned_map
from garrison.common.errors import GarrisonError
from garrison.minion.enforcers.bpf_lsm.enforcer import PINS
from garrison.minion.enforcers.bpf_lsm.events import COUNTERS

__all__ = ["KernelState", "read_kernel_state"]

_ZERO: Final = bytes(4)
_U32: Final = struct.Struct("=I")


class KernelState(msgspec.Struct, frozen=True, kw_only=True):
    """One version of our programs in the kernel.

    Attributes:
        pins: Where it is pinned.
        programs: Attached programs, by name; without any, nothing is enforced.
        generation: The kernel's own number of the rules in force, which counts each change since the boot; 0 for none yet.
        counters: Decisions, blocks and so on since the programs were loaded.
        unreadable: Why ``generation`` and ``counters`` are not known.
    """

    pins: str
    programs: tuple[str, ...]
    generation: int = 0
    counters: dict[str, int] = {}
    unreadable: str = ""


def read_kernel_state(root: Path = PINS) -> list[KernelState]:
    """Return what is pinned below ``root``; nothing when the kernel enforces nothing of ours.

    Raises:
        OSError: The folder cannot be listed: not root, or no bpffs.
    """
    return [_read(folder) for folder in _folders(root)]


def _folders(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        return
    for folder in (root, *sorted(root.iterdir())):
        if (folder / "links").is_dir():
            yield folder


def _read(folder: Path) -> KernelState:
    programs = tuple(sorted(path.name for path in (folder / "links").iterdir() if not path.is_dir()))
    try:
        generation, counters = _generation(folder / "maps"), _counters(folder / "maps")
    except (GarrisonError, OSError) as err:
        return KernelState(pins=str(folder), programs=programs, unreadable=str(err))
    return KernelState(pins=str(folder), programs=programs, generation=generation, counters=counters)


def _generation(maps: Path) -> int:
    active = open_pinned_map(maps / "active")
    heads = open_pinned_map(maps / "heads")
    try:
        copy = _U32.unpack(active.lookup(_ZERO) or _ZERO)[0] & 1
        inner = heads.lookup(_U32.pack(copy))
    finally:
        active.close()
        heads.close()
    if inner is None:
        return 0
    head = BpfMap.by_id(_U32.unpack(inner)[0], name="heads")
    try:
        return int(_U32.unpack_from(head.lookup(_ZERO) or _ZERO)[0])
    finally:
        head.close()


def _counters(maps: Path) -> dict[str, int]:
    counters = open_pinned_map(maps / "counters")
    try:
        return {name: counters.lookup_sum(_U32.pack(index)) for index, name in enumerate(COUNTERS)}
    finally:
        counters.close()
