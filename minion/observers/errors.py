"""Collects errors: from the systemd journal, the kernel log, and log files that the settings name.

Rules of this file:
- One thread a source; a source that fails is opened again where it was and keeps none of the others.
- At least once over a crash, once over a clean stop: see ``_positions``.
- A storm passes as some messages of each kind and exact counts of the rest: see ``_repeats``. A position never runs ahead of a
  count that was not told yet.
- What was there before the very first start is history and is not collected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from garrison.common.events import Event
from garrison.minion.observers._finding import Source
from garrison.minion.observers._journal import Journal, find_journal
from garrison.minion.observers._kernel_log import KernelLog
from garrison.minion.observers._log_files import LogFiles
from garrison.minion.observers._positions import Positions
from garrison.minion.observers._repeats import Repeats
from garrison.minion.observers._worker import Stop, Worker
from garrison.minion.observers.base import Emit, Observer, ObserverStatus

__all__ = ["ErrorObserver"]

_BUSY_S: Final = 0.5  # a turn while counts or positions wait for their time
_IDLE_S: Final = 30.0  # a turn of a source that wakes by itself
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class ErrorObserver(Observer):
    """Emits ``error`` events with ``data.source`` of ``journal``, ``kernel`` or ``file``.

    Args:
        files: Log files to follow by name.
        state_dir: Where positions are kept.
        journal: Where the journal is; ``None`` for this machine's own, which may appear later.
        kernel_log: The kernel log's device.
    """

    name = "errors"

    def __init__(
        self,
        *,
        files: tuple[Path, ...],
        state_dir: Path,
        journal: Path | None = None,
        kernel_log: Path = Path("/dev/kmsg"),
    ) -> None:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        sources: list[tuple[Source, Callable[[], bool]]] = [
            (KernelLog(boot, kernel_log), _always),
            (Journal(journal), _always if journal else lambda: find_journal() is not None),
        ]
        if files:
            sources.append((LogFiles(files), _always))
        self._feeds = [_Feed(source, Positions(state_dir / f"{source.name}.json"), present) for source, present in sources]

    def start(self, emit: Emit) -> None:
        """Begin to read all sources."""
        for feed in self._feeds:
            feed.start(emit)

    def stop(self) -> None:
        """Stop reading; positions are written."""
        for feed in self._feeds:
            feed.stop()

    def status(self) -> ObserverStatus:
        """Return health of all sources; a machine without a journal is healthy and its detail says so."""
        problems = [problem for feed in self._feeds if (problem := feed.problem)]
        absent = [f"{feed.name}: not on this machine" for feed in self._feeds if feed.absent]
        counters: dict[str, int] = {}
        for feed in self._feeds:
            counters |= feed.counters()
        return ObserverStatus(name=self.name, healthy=not problems, detail="; ".join(problems + absent), counters=counters)


def _always() -> bool:
    return True


class _Feed:
    """One source, its thread, its position and its counts."""

    def __init__(self, source: Source, positions: Positions, present: Callable[[], bool]) -> None:
        self.name = source.name
        self.absent = False
        self._source, self._positions, self._present = source, positions, present
        self._repeats = Repeats()
        self._worker = Worker(f"errors-{source.name}", self._body)
        self._emit: Emit | None = None
        self._emitted = self._found = 0
        self._opened = False

    def start(self, emit: Emit) -> None:
        self._emit = emit
        self._worker.start()

    def stop(self) -> None:
        self._worker.stop()

    @property
    def problem(self) -> str:
        return "; ".join(
            f"{self.name}: {text}" for text in (self._worker.error, self._source.error, self._positions.error) if text
        )

    def counters(self) -> dict[str, int]:
        """Return what was found, told and folded into counts, by source."""
        own = {
            "found": self._found,
            "events": self._emitted,
            "folded": self._repeats.suppressed,
            "restarts": self._worker.restarts,
        }
        return {f"{self.name}_{key}": value for key, value in own.items()} | self._source.counters

    def _body(self, stop: Stop) -> None:
        while not self._present():
            self.absent = True
            if stop.wait(_IDLE_S):
                return
        self.absent = False
        source, positions = self._source, self._positions
        try:
            source.open(source.position() if self._opened else positions.load())
            if not self._opened:
                # From here on a first start is a first start no more: errors while the agent is down are found later.
                positions.settle(source.position())
            self._opened = True
            self._follow(stop)
        finally:
            self._tell(self._repeats.flush())
            if self._opened:
                positions.settle(source.position())
            source.close()

    def _follow(self, stop: Stop) -> None:
        busy = True
        while not stop.is_set():
            findings = self._source.read(stop, _BUSY_S if busy else _IDLE_S)
            self._worker.works()
            now = time.monotonic()
            self._found += len(findings)
            for finding in findings:
                self._tell(self._repeats.take(finding, now))
            self._tell(self._repeats.tick(now))
            if not self._repeats.outstanding:
                self._positions.note(self._source.position(), now)
            busy = bool(findings) or self._repeats.outstanding or self._positions.settling

    def _tell(self, events: list[Event]) -> None:
        self._emitted += len(events)
        if self._emit is not None:
            for event in events:
                self._emit(event)
