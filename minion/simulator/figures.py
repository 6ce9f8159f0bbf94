"""What a simulated fleet counts. Pure.

Rules of this file:
- Latencies are kept as counts of classes 2 % apart: any number of them takes little memory, and those of processes add up.
"""

from __future__ import annotations

import math
from collections import Counter

import msgspec

__all__ = ["Figures", "Latencies"]

_STEP = math.log(1.02)


class Latencies(msgspec.Struct):
    """Durations, as counts by class. ``classes``: number of the class → how many fell into it."""

    classes: Counter[int] = msgspec.field(default_factory=Counter)

    def add(self, seconds: float, count: int = 1) -> None:
        """Count ``count`` durations of ``seconds``."""
        self.classes[math.floor(math.log(max(seconds, 1e-6)) / _STEP)] += count

    def merge(self, other: Latencies) -> None:
        """Take the counts of ``other`` in."""
        self.classes.update(other.classes)

    def percentile(self, percent: float) -> float:
        """Return the seconds that ``percent`` of all stayed below, 2 % exact; 0 when there are none."""
        total = sum(self.classes.values())
        seen = 0
        for number in sorted(self.classes):
            seen += self.classes[number]
            if seen >= total * percent / 100:
                return math.exp((number + 1) * _STEP)
        return 0.0


class Figures(msgspec.Struct, kw_only=True):
    """Figures of a pool or, added up, of a fleet.

    Attributes:
        nodes: Simulated.
        served: Have their welcome now.
        made: Events made.
        sent: Events sent, repeats included.
        acked: Events that the master acknowledged.
        welcomes: How often a node was welcomed.
        lost: Connections that ended without our doing.
        refused: Refusals, by code.
        unanswered: Attempts that got no answer in time: no connection, no handshake, or no welcome.
        told_to_wait: How often the master said that a node's turn would come.
        assignments: Assignments that came; a simulated node applies nothing.
        latencies: From the making of an event to its ack.
    """

    nodes: int = 0
    served: int = 0
    made: int = 0
    sent: int = 0
    acked: int = 0
    welcomes: int = 0
    lost: int = 0
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    unanswered: int = 0
    told_to_wait: int = 0
    assignments: int = 0
    latencies: Latencies = msgspec.field(default_factory=Latencies)

    def add(self, other: Figures) -> None:
        """Add the figures of another pool to these."""
        for name in ("nodes", "served", "made", "sent", "acked", "welcomes", "lost", "unanswered", "told_to_wait", "assignments"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused.update(other.refused)
        self.latencies.merge(other.latencies)
