"""The store as the rest of the master sees it: questions answered by readers, changes handed to the writers.

Rules of this file:
- Nodes, bundles and jobs are in ``store.db``; events are in files by day and lane in ``events`` beside it.
- ``submit_*`` return futures that are resolved when the change is durable; the plain methods wait for that.
- Readers are read-only connections, taken from a small pool; any thread may ask.
- Those who wait for news register a listener; it is called from the writer's threads and must only wake somebody.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import StoreError
from garrison.common.events import Event, Lane
from garrison.common.frames import ApplyReport, Batch, Hello, JobOutput, JobResult, RuleReport
from garrison.common.names import Digest, NodeName
from garrison.master.jobs.records import JobNode, JobOutputLine, JobRequest, JobView, Status
from garrison.master.records import NodeBrief, StoredAssignment, StoredBundle
from garrison.master.store import bundles, jobs, nodes, query, relays
from garrison.master.store.backup import Backup
from garrison.master.store.eventlog import EventLog
from garrison.master.store.keeper import Keeper
from garrison.master.store.lane import Inflow, Restored, Stored
from garrison.master.store.nodes import NodeRow
from garrison.master.store.retention import Retention
from garrison.master.store.schema import migrate, version
from garrison.master.store.upgrade import move_events
from garrison.master.store.writer import OneFile, Work, Writer, connect

__all__ = ["Store"]

EVENTS_FOLDER: Final = "events"
_ONE_TABLE: Final = 1  # version of a store whose events are a table
_READERS_KEPT: Final = 8
_BLOBS_KEPT: Final = 8  # whole files, read piece by piece by many nodes at once

Listener = Callable[[], None]


class Store:
    """The master's durable store.

    Args:
        path: SQLite file; made when absent. The folder ``events`` beside it holds the events.
        retention: How long events are kept; for ever when not given.
        clock_ns: The master's clock.

    Raises:
        StoreError: It cannot be opened, or is of a newer garrison.
    """

    def __init__(self, path: Path, retention: Retention | None = None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        conn = connect(path, read_only=False)
        path.chmod(0o600)
        directory = path.parent / EVENTS_FOLDER
        try:
            if version(conn) == _ONE_TABLE:
                move_events(conn, directory, clock_ns)
                migrate(conn)
                conn.execute("VACUUM")  # what is left is small; where the events were goes back to the disk
            migrate(conn)
            self.event_log: Final = EventLog(directory, clock_ns)
        except BaseException:
            conn.close()
            raise
        self._writer = Writer(OneFile(conn))
        self._readers: list[sqlite3.Connection] = []
        self._blobs: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._assignment_listeners: list[Callable[[tuple[NodeName, ...]], None]] = []
        self.keeper: Final = Keeper(self.event_log, retention or Retention(days={}), path, self.note, self.set_note)

    def close(self) -> None:
        """Commit what is queued, checkpoint, close. Idempotent."""
        with self._lock:
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()
        self.event_log.close()
        self._writer.close()

    def flush(self) -> None:
        """Wait until everything that was submitted so far is durable, or has failed."""
        self._do(lambda _: None)
        self.event_log.flush()

    @property
    def waiting_bytes(self) -> int:
        """Size of batches that are not yet durable."""
        return self._writer.waiting_bytes + self.event_log.waiting_bytes

    def on_events(self, listener: Listener) -> None:
        """Have ``listener`` called after events became durable."""
        self.event_log.on_events(listener)

    def on_assignments(self, listener: Callable[[tuple[NodeName, ...]], None]) -> None:
        """Have ``listener`` called with the nodes whose new assignments became durable."""
        self._assignment_listeners.append(listener)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            conn = self._readers.pop() if self._readers else None
        conn = conn or connect(self._path, read_only=True)
        try:
            yield conn
        except sqlite3.Error as err:
            conn.close()
            raise StoreError("the store cannot answer") from err
        with self._lock:
            if len(self._readers) < _READERS_KEPT:
                self._readers.append(conn)
                return
        conn.close()

    def _do(self, work: Work[object]) -> None:
        self._writer.submit(work).result()

    # ---- events ------------------------------------------------------------------------------------------------------
    def submit_batch(
        self, node: NodeName, batch: Batch, inflow: Inflow | None = None, *, relayed: bool = False
    ) -> Future[Stored]:
        """Queue a batch; the future's result is there when it is durable and may be acked.

        Args:
            node: Whose key it came under.
            batch: As ``decode_up`` checked it.
            inflow: Of the connection it came on: after a batch of it failed, no later one is stored.
            relayed: It did not come on the node's own link: the mark that is acked to the node stays.
        """
        return self.event_log.submit(node, batch, inflow, relayed=relayed)

    def submit_forward(self, delivery: relays.Delivery) -> Future[Stored]:
        """Queue what a relay sent; as ``submit_batch``."""
        return self.event_log.submit_forward(delivery)

    def acked(self, node: NodeName, epoch: str) -> dict[int, int]:
        """Return the highest durable seq by lane of one epoch of a node."""
        return self.event_log.acked(node, epoch)

    def highest(self, node: NodeName, epoch: str) -> int:
        """Return the highest number of an epoch that came, over all lanes and ways; 0 for none."""
        return self.event_log.highest(node, epoch)

    def note_acked(self, node: NodeName, epoch: str, acked: Mapping[Lane, tuple[int, int]]) -> dict[Lane, Restored]:
        """Compare with what a node says it was acked; what is missing is recorded, durably; see ``LaneLog.note_acked``."""
        return self.event_log.note_acked(node, epoch, acked)

    def events_page(
        self, wanted: query.EventFilter, *, after: int | None = None, limit: int = limits.API_PAGE_MAX_EVENTS
    ) -> list[tuple[int, Event]]:
        """Return events with their arrival numbers, oldest first; see ``query.read_page``."""
        return self.event_log.page(wanted, after=after, limit=limit)

    def last_event_number(self) -> int:
        """Return the arrival number up to which everything can be read, 0 for none."""
        return self.event_log.last_number

    def newest_metrics(self, names: Iterable[str]) -> list[Event]:
        """Return the newest resource sample of each node that has one."""
        return self.event_log.newest_metrics(names)

    # ---- keeping -----------------------------------------------------------------------------------------------------
    def backup(self, directory: Path) -> Backup:
        """Return a backup into ``directory``, not begun yet."""
        return Backup(self.event_log, self._path, self._writer, directory)

    def note(self, name: str) -> str:
        """Return a note of the store's own, empty for none."""
        with self._reading() as conn:
            row = conn.execute("SELECT text FROM notes WHERE name = ?", (name,)).fetchone()
        return "" if row is None else str(row[0])

    def set_note(self, name: str, text: str) -> None:
        """Keep a note, durably."""
        self._do(lambda conn: conn.execute("INSERT OR REPLACE INTO notes (name, text) VALUES (?, ?)", (name, text)))

    # ---- nodes -------------------------------------------------------------------------------------------------------
    def nodes(self) -> list[NodeRow]:
        """Return all nodes, by name."""
        with self._reading() as conn:
            return nodes.all_nodes(conn)

    def node(self, name: str) -> NodeRow | None:
        """Return one node, if it is known."""
        with self._reading() as conn:
            return next(iter(nodes.all_nodes(conn, name)), None)

    def node_rules(self, name: str) -> Sequence[RuleReport]:
        """Return the compile report of what a node enforces."""
        with self._reading() as conn:
            return nodes.rules_of(conn, name)

    def node_states(self) -> dict[NodeName, NodeBrief]:
        """Return all accepted nodes."""
        with self._reading() as conn:
            return {brief.name: brief for brief in nodes.node_briefs(conn)}

    def rejected_keys(self) -> set[str]:
        """Return the keys that were rejected."""
        with self._reading() as conn:
            return nodes.rejected(conn)

    def accept_nodes(self, wanted: Mapping[NodeName, str]) -> set[NodeName]:
        """Accept keys by name, durably, all or none; return whose was not accepted before; see ``nodes.accept``."""
        return self._writer.submit(lambda conn: {name for name, key in wanted.items() if nodes.accept(conn, name, key)}).result()

    def retire_nodes(self, names: Collection[str]) -> set[str]:
        """Retire nodes, durably, all or none; return which were not retired before; see ``nodes.retire``."""

        def retire(conn: sqlite3.Connection) -> set[str]:
            for name in names:
                relays.forget(conn, name)
            return {name for name in names if nodes.retire(conn, name)}

        return self._writer.submit(retire).result()

    def relays(self) -> dict[NodeName, list[NodeName]]:
        """Return all relays with the nodes that each may speak for."""
        with self._reading() as conn:
            return relays.relays(conn)

    def note_relay(self, node: NodeName, *, is_relay: bool = False, via: NodeName | None = None) -> bool:
        """Keep that a node is a relay, or behind one, durably; see ``relays.note_relay``."""
        return self._writer.submit(lambda conn: relays.note_relay(conn, node, is_relay=is_relay, via=via)).result()

    def submit_relayed_hello(self, name: NodeName, hello: Hello, address: str) -> Future[None]:
        """Keep what a relay says that a node said of itself."""
        return self._writer.submit(lambda conn: nodes.note_words(conn, name, hello, address))

    def reject_key(self, key: str) -> None:
        """Remember that a key is not wanted, durably."""
        self._do(lambda conn: nodes.reject(conn, key))

    def submit_hello(self, name: NodeName, hello: Hello, address: str) -> Future[None]:
        """Keep what a node says of itself."""
        return self._writer.submit(lambda conn: nodes.note_hello(conn, name, hello, address))

    def submit_report(self, name: NodeName, report: ApplyReport) -> Future[None]:
        """Keep what became of an assignment."""
        return self._writer.submit(lambda conn: nodes.note_report(conn, name, report))

    def submit_seen(self, seen: Sequence[tuple[str, int]]) -> Future[None]:
        """Keep when nodes were last heard of."""
        return self._writer.submit(lambda conn: nodes.note_seen(conn, seen))

    # ---- bundles and assignments: what the desk needs ------------------------------------------------------------------
    def newest_bundle(self) -> StoredBundle | None:
        """Return the bundle with the highest version, if there is any."""
        with self._reading() as conn:
            return bundles.newest_bundle(conn)

    def bundle_metadata(self, digest: Digest) -> bytes | None:
        """Return the signed metadata of a bundle, if it is held."""
        with self._reading() as conn:
            return bundles.bundle_metadata(conn, digest)

    def put_bundle(self, digest: Digest, version: int, metadata: bytes, files: Mapping[Digest, bytes], at_ns: int) -> None:
        """Keep a verified bundle and its files, durably. Idempotent."""
        bundle = StoredBundle(digest=digest, version=version, metadata=metadata)
        self._do(lambda conn: bundles.put_bundle(conn, bundle, files, at_ns))

    def blob(self, digest: Digest) -> bytes | None:
        """Return content by digest, if it is held."""
        with self._lock:
            held = self._blobs.get(digest)
        if held is not None:
            return held
        with self._reading() as conn:
            found = bundles.blob(conn, digest)
        if found is not None:
            with self._lock:
                while len(self._blobs) >= _BLOBS_KEPT:
                    del self._blobs[next(iter(self._blobs))]
                self._blobs[digest] = found
        return found

    def assignment(self, node: NodeName) -> StoredAssignment | None:
        """Return the newest assignment of a node, if it has one."""
        with self._reading() as conn:
            return next(iter(bundles.assignments(conn, node)), None)

    def assignments(self) -> dict[NodeName, StoredAssignment]:
        """Return the newest assignment of every node that has one."""
        with self._reading() as conn:
            return {assignment.node: assignment for assignment in bundles.assignments(conn)}

    def put_assignments(self, new: Sequence[StoredAssignment]) -> None:
        """Keep new assignments, durably, then tell the listeners."""
        kept = tuple(new)
        self._do(lambda conn: bundles.put_assignments(conn, kept))
        for listener in self._assignment_listeners:
            listener(tuple(a.node for a in kept))

    # ---- jobs --------------------------------------------------------------------------------------------------------
    def create_job(self, job: str, request: JobRequest, first: Sequence[JobNode], deadline_ns: int) -> None:
        """Keep a new job, durably."""
        self._do(lambda conn: jobs.create(conn, job, request, first, deadline_ns))

    def submit_job_status(self, job: str, names: Sequence[str], status: Status, error: str = "") -> Future[None]:
        """Set the status of nodes that have no final one."""
        return self._writer.submit(lambda conn: jobs.set_status(conn, job, names, status, error))

    def submit_job_end(self, job: str, status: Status, error: str) -> Future[None]:
        """Give every node without a final status this one."""
        return self._writer.submit(lambda conn: jobs.end(conn, job, status, error))

    def submit_job_result(self, node: NodeName, result: JobResult) -> Future[bool]:
        """Keep a node's answer."""
        return self._writer.submit(lambda conn: jobs.note_result(conn, node, result))

    def submit_job_output(self, node: NodeName, piece: JobOutput) -> Future[bool]:
        """Keep a piece of output."""
        return self._writer.submit(lambda conn: jobs.note_output(conn, node, piece), size_bytes=len(piece.data))

    def job(self, job: str) -> JobView | None:
        """Return a job, if there is one of that id."""
        with self._reading() as conn:
            return jobs.view(conn, job)

    def jobs(self, limit: int) -> list[JobView]:
        """Return the newest jobs, newest first."""
        with self._reading() as conn:
            return jobs.list_jobs(conn, limit)

    def unfinished_jobs(self) -> list[tuple[JobView, JobRequest]]:
        """Return jobs with a node that has no final status, and what was asked."""
        with self._reading() as conn:
            return [(view, request) for view in jobs.unfinished(conn) if (request := jobs.request_of(conn, view.id)) is not None]

    def job_outputs(self, job: str, *, after: int, limit: int) -> list[tuple[int, JobOutputLine]]:
        """Return pieces of output in order of arrival, each with its number."""
        with self._reading() as conn:
            return jobs.outputs(conn, job, after, limit)
