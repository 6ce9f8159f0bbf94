"""How much a spool may hold, and which lanes give way when it is full. Pure.

Rules of this file:
- The total is one bound; each lane owns a floor of it that no other lane can take. A quiet node's alerts may fill all of it.
- Over the total, the least precious lane above its floor gives way first, its oldest events first.
- A tenth is freed at once, so that a full spool writes one gap record per tenth and not one per commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.events import Lane

__all__ = ["PAGE_BYTES", "SpoolCaps", "stored_bytes"]

PAGE_BYTES: Final = 4096  # SQLite's page; file systems and flash like it
_ROW_OVERHEAD_BYTES: Final = 48  # cell pointer, header, six integers
_FREED_TO: Final = 0.9

# Shares of the floors. Alerts are evidence; metrics of an hour ago are worth little, but the last ones of a dark site are.
_SHARES: Final[Mapping[Lane, float]] = {Lane.ALERT: 0.5, Lane.SHELL: 0.25, Lane.ERROR: 0.1, Lane.STATE: 0.1, Lane.METRIC: 0.05}


def stored_bytes(body_bytes: int) -> int:
    """Return the space in the file that a row with a body of ``body_bytes`` takes: whole pages, or a fair part of one."""
    row = body_bytes + _ROW_OVERHEAD_BYTES
    if row > PAGE_BYTES:
        return -(-row // PAGE_BYTES) * PAGE_BYTES
    return PAGE_BYTES // (PAGE_BYTES // row)


class SpoolCaps(msgspec.Struct, frozen=True):
    """Bounds of a spool.

    Attributes:
        total_bytes: Space of all lanes in the database; its write-ahead log comes on top, at most a 32nd and 4 MiB.
        floors: Space of each lane that other lanes cannot take.
    """

    total_bytes: int
    floors: dict[Lane, int]

    @classmethod
    def of_total(cls, total_bytes: int) -> SpoolCaps:
        """Share ``total_bytes`` out over the lanes."""
        floors = {lane: int(total_bytes * _FREED_TO * share) for lane, share in _SHARES.items()}
        return cls(total_bytes, floors)

    @property
    def segment_bytes(self) -> int:
        """How large a row of events may be: whole rows are dropped, so they must be small beside the smallest floor."""
        return min(limits.SPOOL_SEGMENT_MAX_BYTES, self.total_bytes // 256)

    def surplus(self, used: Mapping[Lane, int]) -> dict[Lane, int]:
        """Return how many bytes each lane must free, the least precious first; empty when ``used`` fits."""
        total = sum(used.values())
        if total <= self.total_bytes:
            return {}
        need = total - int(self.total_bytes * _FREED_TO)
        plan: dict[Lane, int] = {}
        for lane in sorted(Lane, reverse=True):
            take = min(need, max(0, used.get(lane, 0) - self.floors[lane]))
            if take > 0:
                plan[lane] = take
                need -= take
        return plan
