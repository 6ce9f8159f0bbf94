"""Which workload an actor is in, as the kernel programs look it up: the table of ``bpf/include/workloads.h``.

Rules of this file:
- The active table is changed in place: entries are set before others are taken away, then the epoch rises, and each task looks
  anew at its next operation.
Owns: its bytes. Does not own: what holds in a cgroup (``profiles``), which workloads there are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from garrison.bpf.loader import BpfMap
from garrison.bpf.pathhash import PathHasher
from garrison.minion.enforcers.profiles import Placements, Profiles

__all__ = ["CGROUP_KEY_BYTES", "CGROUP_ROW_BYTES", "change_cgroups", "lay_out_cgroups"]

_KEY: Final = struct.Struct("=Q")
_PLACEMENT: Final = struct.Struct("=II")  # struct placement
_U32: Final = struct.Struct("=I")
_EPOCH: Final = _U32.pack(0)  # WORKLOAD_EPOCH of enum workload_figure
CGROUP_KEY_BYTES: Final = _KEY.size
CGROUP_ROW_BYTES: Final = _PLACEMENT.size


def lay_out_cgroups(placements: Placements, profiles: Profiles, hasher: PathHasher) -> dict[bytes, bytes]:
    """Return the rows of the table."""
    return {
        _KEY.pack(hasher.path(path)): _PLACEMENT.pack(profiles.number(placed.profile), placed.sticky)
        for path, placed in placements.items()
    }


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
