"""What the settings say about the kernel enforcer. Light: the settings' other readers need no libbpf."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

import msgspec

__all__ = ["PROTECTION", "EventRate", "LsmOptions", "Tamper"]

PROTECTION: Final = struct.Struct("=QI4xI4x")  # struct protection: inode and device of the pins, what becomes of attempts

_RATE: Final = struct.Struct("=QQ")  # struct event_rate


class Tamper(IntEnum):
    """What becomes of others' attempts at pins, maps and process of the agent. Source: enum tamper."""

    OFF = 0
    AUDIT = 1
    BLOCK = 2


class EventRate(msgspec.Struct, frozen=True, kw_only=True):
    """How many events each rule may tell; those above are counted.

    Attributes:
        per_s: In the long run; 0 for no limit.
        burst: At once; at least 1.
    """

    per_s: int = 100
    burst: int = 200

    def packed(self) -> bytes:
        """Return it as ``struct event_rate``."""
        interval_ns = 1_000_000_000 // self.per_s if self.per_s else 0
        return _RATE.pack(interval_ns, (self.burst - 1) * interval_ns)


class LsmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the kernel enforcer."""

    tamper: Tamper = Tamper.AUDIT
    rate: EventRate = EventRate()
