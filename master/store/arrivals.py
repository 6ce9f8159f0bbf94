"""Numbers of arrival: one order over all lanes and days, in which nothing appears behind a reader's back.

Rules of this file:
- Numbers are taken while a transaction is open, and lanes commit in any order. A reader that goes on from the highest number it
  saw must miss nothing: so it is shown only numbers below every transaction that is still open.
- A number taken by a transaction that failed is not used again.
"""

from __future__ import annotations

import threading

from garrison.common.events import Lane

__all__ = ["Arrivals"]


class Arrivals:
    """Gives numbers of arrival out. Any thread.

    Args:
        last: The highest number in use.
    """

    def __init__(self, last: int) -> None:
        self._lock = threading.Lock()
        self._next = last + 1
        self._open: dict[Lane, int] = {}

    def take(self, lane: Lane, count: int) -> int:
        """Return the first of ``count`` numbers, for a transaction of ``lane`` that is open until ``settle``."""
        with self._lock:
            first, self._next = self._next, self._next + count
            self._open.setdefault(lane, first)
            return first

    def settle(self, lane: Lane) -> None:
        """The transaction of ``lane`` was committed, or given up."""
        with self._lock:
            self._open.pop(lane, None)

    @property
    def settled(self) -> int:
        """Highest number up to which everything is durable or will never be."""
        with self._lock:
            return min(self._open.values(), default=self._next) - 1
