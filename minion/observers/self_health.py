"""Reports what the agent itself costs and holds back: CPU, memory, descriptors, threads, the spool's figures.

Rules of this file:
- Its events are of kind ``self``, not ``metric``: figures of the agent never pass for figures of the node.
- Events that the spool lost are never silent: the report says so as soon as the count rises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import psutil

from garrison.common import limits
from garrison.common.events import Event, Lane, Scalar
from garrison.minion.observers._worker import Stop, Worker
from garrison.minion.observers.base import Emit, Observer, ObserverStatus

__all__ = ["KIND_SELF", "SelfObserver", "flatten"]

KIND_SELF: Final = "self"
_LOOK_S: Final = 5.0  # how soon a loss of events is reported, whatever the interval


def flatten(value: Any, prefix: str = "") -> dict[str, Scalar | list[Scalar]]:
    """Return nested mappings and structs as one level, keys joined by dots; lists become their lengths.

    Enumerations become their lower-case names when they are keys. Anything else unknown becomes its text.
    """
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        found: dict[str, Scalar | list[Scalar]] = {}
        for key, inner in value.items():
            name = str(getattr(key, "name", key)).lower()
            found |= flatten(inner, f"{prefix}.{name}" if prefix else name)
        return found
    if value is None or isinstance(value, str | int | float | bool):
        return {prefix: value}
    return {prefix: len(value) if hasattr(value, "__len__") else str(value)}


class SelfObserver(Observer):
    """Emits one ``self`` event on the lane METRIC every ``interval_s`` seconds, the first at once.

    Args:
        interval_s: Seconds between reports.
        spool_stats: Returns the spool's figures as a struct or mapping; ``None`` while there is no spool.
    """

    name = "self"

    def __init__(self, interval_s: float, spool_stats: Callable[[], Any]) -> None:
        self._interval_s, self._spool_stats = interval_s, spool_stats
        self._worker = Worker("self", self._body)
        self._process = psutil.Process()
        self._emit: Emit | None = None
        self._cpu_s, self._cpu_at = self._cpu_now(), time.monotonic()
        self._reports, self._lost = 0, 0

    def start(self, emit: Emit) -> None:
        """Begin to report."""
        self._emit = emit
        self._worker.start()

    def stop(self) -> None:
        """Stop reporting."""
        self._worker.stop()

    def status(self) -> ObserverStatus:
        """Return health: not healthy when the last report could not be made."""
        counters = {"reports": self._reports, "spool_lost": self._lost, "restarts": self._worker.restarts}
        return ObserverStatus(name=self.name, healthy=not self._worker.error, detail=self._worker.error, counters=counters)

    def _body(self, stop: Stop) -> None:
        due = time.monotonic()
        while not stop.is_set():
            spool = flatten(self._spool_stats() or {})
            lost = _losses(spool)
            if time.monotonic() >= due or lost > self._lost:
                self._report(spool, lost)
                due = time.monotonic() + self._interval_s
                self._worker.works()
            stop.wait(min(_LOOK_S, max(0.0, due - time.monotonic())))

    def _report(self, spool: dict[str, Scalar | list[Scalar]], lost: int) -> None:
        data: dict[str, Scalar | list[Scalar]] = {"source": "self", **self._own_figures(), "spool_lost": lost}
        for name, value in spool.items():
            if len(data) < limits.EVENT_DATA_MAX_KEYS:
                data[f"spool.{name}"] = value
        severity = 7 if lost > self._lost else 1
        self._lost, self._reports = lost, self._reports + 1
        if self._emit is not None:
            self._emit(Event(lane=Lane.METRIC, kind=KIND_SELF, severity=severity, data=data))

    def _own_figures(self) -> dict[str, Scalar]:
        now, cpu_s = time.monotonic(), self._cpu_now()
        seconds = max(now - self._cpu_at, 1e-3)
        percent = 100 * (cpu_s - self._cpu_s) / seconds
        self._cpu_s, self._cpu_at = cpu_s, now
        with self._process.oneshot():
            return {
                "cpu_percent_of_one_core": round(percent, 2),
                "cpu_total_s": round(cpu_s, 2),
                "rss_bytes": self._process.memory_info().rss,
                "fd_count": self._process.num_fds(),
                "thread_count": self._process.num_threads(),
            }

    def _cpu_now(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)


def _losses(spool: Mapping[str, Scalar | list[Scalar]]) -> int:
    """Return the sum of all figures whose name says that events were lost."""
    return sum(v for k, v in spool.items() if isinstance(v, int) and {"lost", "dropped"} & set(k.replace(".", "_").split("_")))
