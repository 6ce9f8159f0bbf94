"""A bell: many wait for news, one rings. Lost wake-ups are impossible when the waiter takes its ticket before it looks."""

from __future__ import annotations

import asyncio

__all__ = ["Bell"]


class Bell:
    """Wakes everyone who waits. Only for the event loop's thread."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ticket(self) -> asyncio.Event:
        """Return what to wait for; take it before looking whether there is anything."""
        return self._event

    def ring(self) -> None:
        """Wake all who hold a ticket."""
        event, self._event = self._event, asyncio.Event()
        event.set()
