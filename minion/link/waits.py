"""How long to wait before the next attempt. Pure but for chance.

Rules of this file:
- After a lost connection once and briefly; while nobody is reached, or after a refusal, longer each time up to a bound.
- All waits are jittered: 10,000 nodes must not come back in the same instant.
- A conversation of some length was a good one: waits begin anew after it.
"""

from __future__ import annotations

import random
from typing import Final

from garrison.minion.link.causes import Failure
from garrison.minion.link.settings import LinkSettings

__all__ = ["Waits"]

_GROWTH: Final = 2.0
_STABLE_S: Final = 5.0
_LOST_SPREAD: Final = 4.0  # a lost master's nodes come back over so many times the shortest wait


class Waits:
    """Waits of one link.

    Args:
        settings: Shortest and longest waits.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._wait_s = settings.reconnect_min_s

    def served(self, for_s: float) -> None:
        """Note that a conversation ended after ``for_s`` seconds."""
        if for_s > _STABLE_S:
            self._wait_s = self._settings.reconnect_min_s

    def after(self, kind: Failure) -> float:
        """Return how many seconds to wait after a failure."""
        s = self._settings
        if kind is Failure.LOST:
            return random.uniform(s.reconnect_min_s, s.reconnect_min_s * _LOST_SPREAD)  # noqa: S311 - spreads, hides nothing
        longest = s.unreachable_max_s if kind is Failure.UNREACHABLE else s.reconnect_max_s
        wait_s = min(self._wait_s, longest)
        self._wait_s = min(wait_s * _GROWTH, longest)
        return random.uniform(0.5, 1.0) * wait_s  # noqa: S311
