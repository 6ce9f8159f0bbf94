"""What the kernel holds of us, read from its pins and its firewall: without the agent, without taking anything over.

Rules of this file:
- Reads only. An agent that runs is not disturbed: no event is taken from the ring, no number is changed.
- What cannot be read is said, not guessed: tamper protection may refuse maps to everybody but the agent.
Owns: finding the pins, however many versions there are. Does not own: what is in the maps (``enforcers/bpf_lsm``) and in
the table (``enforcers/nftables``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from garrison.bpf.loader import BpfMap, open_pinned_map
from garrison.common.errors import BackendUnsupportedError, GarrisonError
from garrison.minion.enforcers.bpf_lsm.enforcer import PINS
from garrison.minion.enforcers.bpf_lsm.events import COUNTERS
from garrison.minion.enforcers.bpf_lsm.options import PROTECTION, Tamper
from garrison.minion.enforcers.nftables.nft import Nft
from garrison.minion.enforcers.nftables.script import FAMILY, MATCHED, TABLE, TOLD

__all__ = ["FirewallState", "KernelState", "read_firewall_state", "read_kernel_state"]

_ZERO: Final = bytes(4)
_U32: Final = struct.Struct("=I")


class KernelState(msgspec.Struct, frozen=True, kw_only=True):
    """One version of our programs in the kernel.

    Attributes:
        pins: Where it is pinned.
        programs: Attached programs, by name; without any, nothing is enforced.
        generation: The kernel's own number of the rules in force, which counts each change since the boot; 0 for none yet.
        counters: Decisions, blocks and so on since the programs were loaded.
        tamper: What becomes of others' attempts at it while an agent lives: ``off``, ``audit``, ``block``; empty before an agent.
        unreadable: Why ``generation`` and ``counters`` are not known.
    """

    pins: str
    programs: tuple[str, ...]
    generation: int = 0
    counters: dict[str, int] = {}
    tamper: str = ""
    unreadable: str = ""


class FirewallState(msgspec.Struct, frozen=True, kw_only=True):
    """Our table in nftables.

    Attributes:
        table: Its family and name.
        chains: What is on hooks, by name; without any, nothing is enforced.
        counters: Packets that rules matched, and those of them that were told, since the table was made.
    """

    table: str
    chains: tuple[str, ...]
    counters: dict[str, int] = {}


def read_firewall_state() -> FirewallState | None:
    """Return what our table holds; ``None`` when there is none, or no nft that could have made one.

    Raises:
        KernelError: The table cannot be read.
    """
    try:
        present = Nft().table()
    except BackendUnsupportedError:
        return None
    if present is None:
        return None
    sums = {
        name: sum(packets for counter, packets in present.counters.items() if counter.startswith(prefix))
        for name, prefix in (("matched", MATCHED), ("told", TOLD))
    }
    return FirewallState(table=f"{FAMILY} {TABLE}", chains=present.roots, counters=sums)


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
        maps = folder / "maps"
        generation, counters, tamper = _generation(maps), _counters(maps), _tamper(maps)
    except (GarrisonError, OSError) as err:
        return KernelState(pins=str(folder), programs=programs, unreadable=str(err))
    return KernelState(pins=str(folder), programs=programs, generation=generation, counters=counters, tamper=tamper)


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


def _tamper(maps: Path) -> str:
    protection = open_pinned_map(maps / "protection")
    try:
        raw = protection.lookup(_ZERO)
    finally:
        protection.close()
    return Tamper(PROTECTION.unpack(raw)[2]).name.lower() if raw and any(raw) else ""


def _counters(maps: Path) -> dict[str, int]:
    counters = open_pinned_map(maps / "counters")
    try:
        return {name: counters.lookup_sum(_U32.pack(index)) for index, name in enumerate(COUNTERS)}
    finally:
        counters.close()
