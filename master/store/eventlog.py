"""All events of the store: a file for each day and lane, a writer for each lane, one order of arrival.

Rules of this file:
- A batch is one transaction in one file, so a crash finds it whole or not at all, and its ack with it.
- Lanes are written side by side: alerts do not wait for metrics.
Owns: which parts there are. Does not own: what a lane does (``lane``), questions (``query``), what goes when (``retention``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.events import Event, Lane
from garrison.common.frames import Batch
from garrison.common.names import NodeName
from garrison.master.store import query
from garrison.master.store.arrivals import Arrivals
from garrison.master.store.catalogue import Catalogue
from garrison.master.store.dayfile import DayFile, Facts
from garrison.master.store.lane import Inflow, LaneLog, Restored, Stored
from garrison.master.store.relays import Delivery
from garrison.master.store.writer import Work, Writer

__all__ = ["EventLog"]

Listener = Callable[[], None]


class EventLog:
    """The events.

    Args:
        directory: Folder of the files; made when absent.
        clock_ns: The master's clock.

    Raises:
        StoreError: The folder cannot be used, or holds a file of a newer garrison.
    """

    def __init__(self, directory: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.catalogue: Final = Catalogue(directory)
        self.clock_ns: Final = clock_ns
        last = max((max(facts.last_id, facts.base_id) for _, facts in self.catalogue.files()), default=0)
        self._arrivals = Arrivals(last)
        self._lanes = {lane: LaneLog(lane, self.catalogue, self._arrivals, clock_ns) for lane in Lane}
        self._writers = {lane: Writer(log, f"store-{lane.name.lower()}") for lane, log in self._lanes.items()}
        self._listeners: list[Listener] = []
        self.dropping: Final = threading.RLock()  # held by whoever drops files, and by whoever must not lose one meanwhile

    def close(self) -> None:
        """Commit what is queued, checkpoint, close. Idempotent."""
        self.catalogue.close_idle()
        for writer in self._writers.values():
            writer.close()

    def on_events(self, listener: Listener) -> None:
        """Have ``listener`` called after events became durable."""
        self._listeners.append(listener)

    @property
    def waiting_bytes(self) -> int:
        """Size of batches that are not yet durable."""
        return sum(writer.waiting_bytes for writer in self._writers.values())

    @property
    def last_number(self) -> int:
        """The number of arrival up to which everything can be read."""
        return self._arrivals.settled

    # ---- in ------------------------------------------------------------------------------------------------------------
    def submit(self, node: NodeName, batch: Batch, inflow: Inflow | None = None, *, relayed: bool = False) -> Future[Stored]:
        """Queue a batch; the future's result is there when it is durable and may be acked. See ``LaneLog.insert``."""
        log, writer, inflow = self._lanes[Lane(batch.lane)], self._writers[Lane(batch.lane)], inflow or Inflow()
        size = sum(map(len, batch.events))
        future = writer.submit(lambda conn: log.insert(conn, node, batch, inflow, relayed=relayed), size_bytes=size)

        def settled(done: Future[Stored]) -> None:
            if done.exception() is not None:
                inflow.broken = True  # also when the batch was well and the commit failed
            self._tell()

        future.add_done_callback(settled)
        return future

    def submit_forward(self, delivery: Delivery) -> Future[Stored]:
        """Queue a relay's message, all of one lane; as ``submit``."""
        lane = Lane(delivery.forward.lane)
        size = sum(map(len, delivery.forward.items))
        future = self._writers[lane].submit(lambda conn: self._lanes[lane].insert_forward(conn, delivery), size_bytes=size)
        future.add_done_callback(lambda _: self._tell())
        return future

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def record(self, event: Event) -> None:
        """Store an event of the master's own, durably."""
        log = self._lanes[event.lane]
        self._writers[event.lane].submit(lambda conn: log.record(conn, event)).result()
        self._tell()

    def acked(self, node: str, epoch: str) -> dict[int, int]:
        """Return the highest durable seq by lane of one epoch of a node."""
        found = {int(lane): log.acked(node, epoch) for lane, log in self._lanes.items()}
        return {lane: seq for lane, seq in found.items() if seq}

    def highest(self, node: str, epoch: str) -> int:
        """Return the highest number of an epoch that came, over all lanes and ways; 0 for none."""
        return max(log.highest(node, epoch) for log in self._lanes.values())

    def note_acked(self, node: NodeName, epoch: str, acked: Mapping[Lane, tuple[int, int]]) -> dict[Lane, Restored]:
        """Compare with what a node was acked, by lane: highest number and count of events; record what is missing here."""
        asked: dict[Lane, Future[Restored | None]] = {}
        for lane, (seq, events) in acked.items():
            if seq > self._lanes[lane].acked(node, epoch):
                asked[lane] = self._writers[lane].submit(_noting(self._lanes[lane], node, epoch, seq, events))
        missing = {lane: found for lane, future in asked.items() if (found := future.result()) is not None}
        if missing:
            self._tell()
        return missing

    def turn(self) -> None:
        """Have every lane go on in the file of today.

        Raises:
            StoreError: One cannot.
        """
        for future in [submit(lambda _: None) for submit in self.submitters()]:
            future.result()

    def flush(self) -> None:
        """Wait until everything that was submitted so far is durable, or has failed."""
        wait([submit(lambda _: None) for submit in self.submitters()])

    def submitters(self) -> list[Callable[[Work[None]], Future[None]]]:
        """Return how to queue work with each lane's writer."""
        return [writer.submit for writer in self._writers.values()]

    # ---- out -----------------------------------------------------------------------------------------------------------
    def page(
        self, wanted: query.EventFilter, *, after: int | None = None, limit: int = limits.API_PAGE_MAX_EVENTS
    ) -> list[tuple[int, Event]]:
        """Return events with their arrival numbers, oldest first; see ``query.read_page``."""
        return query.read_page(self.catalogue, wanted, settled=self._arrivals.settled, after=after, limit=limit)

    def newest_metrics(self, names: Iterable[str]) -> list[Event]:
        """Return the newest resource sample of each node that has one."""
        return query.newest_metrics(self.catalogue, names)

    # ---- files ---------------------------------------------------------------------------------------------------------
    def drop(self, files: Sequence[DayFile]) -> list[tuple[DayFile, Facts]]:
        """Remove files, each in one step; one that is being written stays. Returns those that went.

        Raises:
            StoreError: One cannot be removed.
        """
        gone = []
        with self.dropping:
            for file in files:
                facts = self.catalogue.facts(file)
                if facts is None or file in self.catalogue.writing:
                    continue
                self.catalogue.drop(file)
                gone.append((file, facts))
        return gone


def _noting(log: LaneLog, node: NodeName, epoch: str, seq: int, events: int) -> Work[Restored | None]:
    return lambda conn: log.note_acked(conn, node, epoch, seq, events)
