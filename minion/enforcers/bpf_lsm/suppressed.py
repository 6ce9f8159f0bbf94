"""Events that the kernel counted instead of telling: how many of each rule nobody has heard of yet.

Rules of this file:
- The kernel only adds up, by generation and rule; events carry the sum. What was told of it is kept beside it in the kernel, so
  that the next agent goes on counting from there. A crash between the two tells a
  count again, never not at all.
- A rule whose next event does not come is summed up: at most one summary for each rule in ``SUMMARY_S``.
Owns: this bookkeeping. Does not own: the rate (``event_rate.h``), events (``events``).
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from garrison.bpf.loader import BpfMap

__all__ = ["SUMMARY_S", "RuleKey", "Suppressed"]

SUMMARY_S: Final = 10.0
_KEY: Final = struct.Struct("=II")  # struct rule_key
_SUM: Final = struct.Struct("=8xQI4x")  # struct rule_rate without its time
_TOLD: Final = struct.Struct("=Q")


class RuleKey(NamedTuple):
    """A rule as the kernel numbers it. Generation 0: an attempt at the agent."""

    generation: int
    rule: int


class Suppressed:
    """The sums in the kernel, and what was told of them. Any thread may call it.

    Args:
        sums: Map ``rule_rates``.
        told: Map ``rule_told``.
    """

    def __init__(self, sums: BpfMap, told: BpfMap) -> None:
        self._sums, self._told = sums, told
        self._lock = threading.Lock()
        self._at: dict[RuleKey, float] = {}
        self._known: dict[RuleKey, int] = {key: _TOLD.unpack(told.lookup(_KEY.pack(*key)) or bytes(8))[0] for key in _keys(told)}

    def with_event(self, key: RuleKey, total: int, tell: Callable[[int], None]) -> None:
        """Have ``tell`` tell an event that knows of ``total`` suppressed ones; it gets the number of those that are news."""
        with self._lock:
            news = max(total - self._known.get(key, 0), 0)
            tell(news)
            self._at[key] = time.monotonic()
            if news:
                self._mark(key, total)

    def sum_up(self, tell: Callable[[RuleKey, int, int], None], *, at_once: bool = False) -> None:
        """Have ``tell`` tell (rule, count, number of the last one's verdict) for each rule of which something is news.

        Args:
            tell: Tells.
            at_once: Also for rules that told something a moment ago.
        """
        with self._lock:
            now = time.monotonic()
            for key, total, verdict in self._totals():
                news = total - self._known.get(key, 0)
                if news > 0 and (at_once or now - self._at.get(key, 0.0) >= SUMMARY_S):
                    tell(key, news, verdict)
                    self._at[key] = now
                    self._mark(key, total)

    def forget(self, up_to: int) -> None:
        """Drop the sums of generations up to ``up_to``, in which nothing is decided any more."""
        with self._lock:
            for key in [key for key in _keys(self._sums) if 0 < key.generation <= up_to]:
                self._sums.delete(_KEY.pack(*key))
                if key in self._known:
                    self._told.delete(_KEY.pack(*key))
                self._known.pop(key, None)
                self._at.pop(key, None)

    def _totals(self) -> Iterator[tuple[RuleKey, int, int]]:
        for key in _keys(self._sums):
            raw = self._sums.lookup(_KEY.pack(*key))
            if raw is not None:
                total, verdict = _SUM.unpack(raw)
                yield key, total, verdict

    def _mark(self, key: RuleKey, total: int) -> None:
        self._known[key] = total
        self._told.update(_KEY.pack(*key), _TOLD.pack(total))


def _keys(held: BpfMap) -> list[RuleKey]:
    found = held.keys()  # a cursor, not a view
    return [RuleKey(*_KEY.unpack(raw)) for raw in found]
