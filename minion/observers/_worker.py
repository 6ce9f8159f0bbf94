"""A thread of an observer: runs a body until told to stop, and starts it again when it fails.

Rules of this file:
- A failing body never ends the observer or the agent: the failure is logged, shown in ``detail``, and tried again later.
- Stopping takes at most one wait of the body; whoever waits for descriptors also waits for ``Stop.fileno``.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Stop", "Worker"]

STOP_MAX_S: Final = 10.0  # a thread held by a dead disk must not hold the agent's end; the process's exit ends it
RETRY_S: Final = 5.0  # a source that fails at once must not spin; a person waits this long after mending it

_log = logging.getLogger(__name__)


class Stop:
    """An event that can also be waited for together with file descriptors. Holds one descriptor until ``close``."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        """Wake every waiter, now and from now on."""
        if not self._flag.is_set():
            self._flag.set()
            os.eventfd_write(self._fd, 1)

    def is_set(self) -> bool:
        """Return whether ``set`` was called."""
        return self._flag.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for ``set``, at most ``timeout_s``; returns whether it was called."""
        return self._flag.wait(timeout_s)

    def wait_for(self, fd: int, timeout_s: float) -> bool:
        """Wait until ``fd`` can be read or has an error; ``False`` when ``set`` was called or time ran out first."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._fd, select.POLLIN)
        ready = {ready_fd for ready_fd, _ in poll.poll(timeout_s * 1000)}
        return fd in ready and self._fd not in ready

    def close(self) -> None:
        """Give the descriptor back; only once nobody waits any more."""
        os.close(self._fd)


class Worker:
    """One thread.

    Args:
        name: For logs and thread listings.
        body: Runs until its ``Stop`` is set. When it raises it is called again after ``RETRY_S``.

    Attributes:
        error: Why the body failed last; empty while it runs.
        restarts: How often it failed.
    """

    def __init__(self, name: str, body: Callable[[Stop], None]) -> None:
        self.error, self.restarts = "", 0
        self._name, self._body = name, body
        self._stop: Stop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Does nothing when it runs."""
        if self._thread is None:
            self._stop = Stop()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop and join, at most ``STOP_MAX_S``. Idempotent, also before ``start``."""
        thread, stop = self._thread, self._stop
        self._thread = self._stop = None
        if thread is None or stop is None:
            return
        stop.set()
        thread.join(STOP_MAX_S)
        if thread.is_alive():
            _log.error("worker=%s stopped=no after_s=%g", self._name, STOP_MAX_S)
        else:
            stop.close()

    def _run(self, stop: Stop) -> None:
        while not stop.is_set():
            try:
                self._body(stop)
            except Exception as err:  # noqa: BLE001 - see the first rule: a bug in one source must not end the others
                self.error = f"{type(err).__name__}: {err}"
                self.restarts += 1
                _log.exception("worker=%s failed restarts=%d", self._name, self.restarts)
                stop.wait(RETRY_S)
            else:
                self.error = ""

    def works(self) -> None:
        """Tell that the body does its work again after a failure."""
        self.error = ""
