"""What a collector does beside reading its socket: tasks of its own, and how many requests a session may have in work.

Rules of this file:
- What a task raises is logged, never lost. Ending waits for all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.master.collector.sessions import Session

__all__ = ["Work"]

_log = logging.getLogger(__name__)


class Work:
    """Tasks of one collector."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` beside everything else; what it raises is logged."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)
        return task

    def request(self, session: Session, work: Coroutine[Any, Any, None]) -> None:
        """Run what a session asked for.

        Raises:
            FrameError: It has too many requests in work already.
        """
        if session.requests >= limits.SESSION_REQUESTS_MAX:
            work.close()
            raise FrameError(f"more than {limits.SESSION_REQUESTS_MAX} requests at once")
        session.requests += 1

        def done(_: asyncio.Task[None]) -> None:
            session.requests -= 1

        self.spawn(work).add_done_callback(done)

    async def end(self) -> None:
        """Cancel what still runs, and wait for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("task=failed", exc_info=task.exception())
