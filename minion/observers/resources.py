"""Samples the node's resources at an interval: CPU, memory, pressure, disks, network, temperatures.

Rules of this file:
- The first sample comes at once, so that a node that just booted shows figures.
- A sample is a ``metric`` event on the lane METRIC: the first to be given up when the spool is full.
"""

from __future__ import annotations

import time

from garrison.common.events import Event, Kind, Lane
from garrison.minion.observers._sample import Sampler
from garrison.minion.observers._worker import Stop, Worker
from garrison.minion.observers.base import Emit, Observer, ObserverStatus

__all__ = ["ResourceObserver"]


class ResourceObserver(Observer):
    """Emits one ``metric`` event with ``data.source = "resources"`` every ``interval_s`` seconds.

    Args:
        interval_s: Seconds from one sample to the next.
    """

    name = "resources"

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._sampler = Sampler()
        self._worker = Worker("resources", self._body)
        self._emit: Emit | None = None
        self._samples = 0

    def start(self, emit: Emit) -> None:
        """Begin to sample."""
        self._emit = emit
        self._worker.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._worker.stop()

    def status(self) -> ObserverStatus:
        """Return health: not healthy while any part of a sample cannot be read."""
        failed = "; ".join(f"{part}: {why}" for part, why in self._sampler.failed.items())
        detail = self._worker.error or failed
        counters = {"samples": self._samples, "restarts": self._worker.restarts}
        return ObserverStatus(name=self.name, healthy=not detail, detail=detail, counters=counters)

    def _body(self, stop: Stop) -> None:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            figures = self._sampler.sample()
            if self._emit is not None:
                self._emit(Event(lane=Lane.METRIC, kind=Kind.METRIC, data={"source": "resources", **figures}))
            self._samples += 1
            self._worker.works()
            # From the plan, not from the end of the sample; after a suspend no burst of what was missed.
            due = max(due + self._interval_s, time.monotonic())
