"""A thread that calls somebody whenever a socket has something to read, until it is told to end."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from typing import Protocol

__all__ = ["Pump"]

_log = logging.getLogger(__name__)


class _Readable(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Pump:
    """Calls ``on_ready`` from a thread of its own; once more when it ends, so that what has come is not lost.

    Args:
        source: What is waited for; closed at the end.
        on_ready: Must read all there is, or be called again. What it raises is logged and counted.
        name: Of the thread.
    """

    def __init__(self, source: _Readable, on_ready: Callable[[], None], *, name: str) -> None:
        self._source, self._on_ready, self._name = source, on_ready, name
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Read what is left and end. Not from the thread itself."""
        os.write(self._wake, b"x")
        self._thread.join()
        self._source.close()
        os.close(self._wake)
        os.close(self._woken)

    def _run(self) -> None:
        ready: list[int] = []
        poller = select.poll()
        poller.register(self._source.fileno(), select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        while self._woken not in ready:
            ready = [fd for fd, _ in poller.poll()]
            try:
                self._on_ready()
            except Exception:  # noqa: BLE001 - one bad message must not silence the others
                self.failed += 1
                _log.exception("thread=%s message=failed", self._name)
