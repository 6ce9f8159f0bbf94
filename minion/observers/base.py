"""What every observer does: it starts, emits events from threads of its own, and says how it is doing.

Rules of this file:
- An observer never blocks the agent and never raises after ``start``: what goes wrong shows in ``status``.
- It emits events without ``node``, ``epoch`` and ``seq``; the recorder stamps clocks that it left at 0.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

import msgspec

from garrison.common.events import Event

__all__ = ["Emit", "Observer", "ObserverStatus"]

Emit = Callable[[Event], None]
"""Takes an event; never blocks, never raises, may be called from any thread."""


class ObserverStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an observer is doing.

    Attributes:
        name: Its name.
        healthy: It sees what it should see.
        detail: One line for a person when it does not.
        counters: Figures by name: seen, dropped, restarts.
    """

    name: str
    healthy: bool
    detail: str = ""
    counters: Mapping[str, int] = {}


class Observer(abc.ABC):
    """One source of events."""

    name: str

    @abc.abstractmethod
    def start(self, emit: Emit) -> None:
        """Begin to observe; returns once it does.

        Raises:
            GarrisonError: It cannot work here; the agent reports that and goes on without it.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop and join its threads. Idempotent, also before ``start``."""

    @abc.abstractmethod
    def status(self) -> ObserverStatus:
        """Return health and counters; cheap, called every few seconds."""
