"""The table of cgroups in the kernel: who is where, kept up to date between generations; and cgroups as they are made.

Rules of this file:
- The table of the active copy is changed in place: entries are set before others are taken away, then the epoch rises, and each
  task looks anew at its next operation.
- A workload whose combination of scopes this generation does not know counts as unknown: rules of every scope that refuse or
  watch hold in it. The enforcer makes a new generation then, if it can.
Owns: these maps. Does not own: generations (``enforcer``), what a profile is (``profiles``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from garrison.bpf.loader import BpfMap
from garrison.bpf.ring import RingReader
from garrison.common.errors import FrameError
from garrison.minion.enforcers.base import CgroupMade

__all__ = ["CGROUP_RECORD_BYTES", "CgroupFeed", "change_cgroups", "decode_cgroup", "workload_counters"]

_U32: Final = struct.Struct("=I")
_EPOCH, _MISSED = (_U32.pack(figure) for figure in (0, 1))  # enum workload_figure
_RECORD: Final = struct.Struct("=Q1024s")  # struct cgroup_made
CGROUP_RECORD_BYTES: Final = _RECORD.size


def change_cgroups(table: BpfMap, figures: BpfMap, before: Mapping[bytes, bytes], after: Mapping[bytes, bytes]) -> None:
    """Make the active table hold ``after`` instead of ``before``, and have tasks look anew.

    Raises:
        KernelError: Not all of it could be written; the rest is as before.
    """
    table.update_batch({key: value for key, value in after.items() if before.get(key) != value})
    for key in before.keys() - after.keys():
        table.delete(key)
    (epoch,) = _U32.unpack(figures.lookup(_EPOCH) or bytes(4))
    figures.update(_EPOCH, _U32.pack(epoch + 1 & 0xFFFF_FFFF))


def workload_counters(figures: BpfMap) -> dict[str, int]:
    """Return what the programs count of cgroups."""
    return {"cgroups_missed": _missed(figures)}


def decode_cgroup(raw: bytes) -> CgroupMade:
    """Return the cgroup in ``raw``.

    Raises:
        FrameError: It has another size.
    """
    if len(raw) != CGROUP_RECORD_BYTES:
        raise FrameError(f"cgroup record of {len(raw)} bytes, {CGROUP_RECORD_BYTES} expected")
    number, path = _RECORD.unpack(raw)
    return CgroupMade(number, path.partition(b"\0")[0].decode("utf-8", "surrogateescape"))


class CgroupFeed:
    """Hands over cgroups as they are made, from a thread of its own.

    Args:
        ring: Map ``cgroups_made``.
        figures: Map ``workload_figures``.
        take: Called with each; with number 0 when some were missed.
    """

    def __init__(self, ring: BpfMap, figures: BpfMap, take: Callable[[CgroupMade], None]) -> None:
        self._figures, self._take = figures, take
        self._missed = 0
        self._tell_missed()
        self._reader = RingReader(ring, self._on_record, name="lsm-cgroups")

    def close(self) -> None:
        """Hand over what is left and end. Idempotent; not from ``take``."""
        self._reader.close()

    def _on_record(self, raw: bytes) -> None:
        self._take(decode_cgroup(raw))
        self._tell_missed()

    def _tell_missed(self) -> None:
        missed = _missed(self._figures)
        if missed != self._missed:
            self._missed = missed
            self._take(CgroupMade(0, ""))


def _missed(figures: BpfMap) -> int:
    number: int = _U32.unpack(figures.lookup(_MISSED) or bytes(4))[0]
    return number
