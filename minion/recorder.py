"""Where every part of the agent puts its events: into the spool, or aside while the spool cannot be opened.

Rules of this file:
- Enforcement does not wait for telemetry: a node whose disk is full or damaged enforces all the same.
- Nothing is dropped without a count: what does not fit aside becomes a gap event once the spool is there.
- ``emit`` never blocks and never raises; any thread may call it, also before ``open``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import SpoolError
from garrison.common.events import Event, Kind, Lane
from garrison.minion.spool import Spool, SpoolCaps

__all__ = ["Recorder"]

_ASIDE_MAX_EVENTS: Final = 10_000  # about 5 MB; a node that boots with a dead disk logs a few hundred events a minute

_log = logging.getLogger(__name__)


class Recorder:
    """Takes events from the first moment on and hands them to the spool.

    Args:
        directory: The spool's.
        caps: The spool's.
        boot: The kernel's id of this boot.
        complete: Adds to an event what its maker does not know; must not raise or wait.
    """

    def __init__(
        self, directory: Path, caps: SpoolCaps, *, boot: str, complete: Callable[[Event], Event] = lambda event: event
    ) -> None:
        self._directory, self._caps, self._boot, self._complete = directory, caps, boot, complete
        self._lock = threading.Lock()
        self._aside: deque[Event] = deque()
        self._lost: Counter[Lane] = Counter()
        self.spool: Spool | None = None
        self.error = ""

    def emit(self, event: Event) -> None:
        """Record ``event``, completed, and stamped with the clocks where the observer did not."""
        event = self._complete(event)
        stamped = msgspec.structs.replace(
            event, ts=event.ts or time.time_ns(), mono=event.mono or time.monotonic_ns(), boot=event.boot or self._boot
        )
        spool = self.spool
        if spool is not None:
            spool.put(stamped)
            return
        with self._lock:
            if self.spool is not None:
                self.spool.put(stamped)
            elif len(self._aside) < _ASIDE_MAX_EVENTS:
                self._aside.append(stamped)
            else:
                self._lost[stamped.lane] += 1

    def open(self) -> bool:
        """Try to open the spool and move everything over; ``False`` with ``error`` set when it cannot be opened now."""
        if self.spool is not None:
            return True
        try:
            spool = Spool.open(self._directory, self._caps, boot=self._boot)
        except (SpoolError, OSError) as err:
            if str(err) != self.error:
                _log.error("spool=closed directory=%s error=%s", self._directory, err)
            self.error = str(err)
            return False
        with self._lock:
            while self._aside:
                spool.put(self._aside.popleft())
            for lane, count in self._lost.items():
                spool.put(_gap(lane, count, self.error, self._boot))
            self._lost.clear()
            self.spool = spool
        self.error = ""
        return True

    def close(self, timeout_s: float = 5.0) -> None:
        """Make everything durable, as far as the disk lets us, and close."""
        if self.spool is not None:
            if not self.spool.flush(timeout_s):
                _log.error("spool=unflushed timeout_s=%s", timeout_s)
            self.spool.close()


def _gap(lane: Lane, count: int, reason: str, boot: str) -> Event:
    return Event(
        ts=time.time_ns(),
        mono=time.monotonic_ns(),
        boot=boot,
        lane=lane,
        kind=Kind.GAP,
        severity=7,
        data={"count": count, "first_seq": 0, "last_seq": 0, "reason": f"the spool could not be opened: {reason}"},
    )
