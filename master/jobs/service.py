"""Runs jobs: sends commands to nodes, takes their answers, gives up at the deadline.

Rules of this file:
- A job is stored before it is sent, and its answer before anybody is told: after a crash the master goes on where it was.
- Nodes know a job by its id and never run it twice, so it is sent again whenever a node comes back without having answered.
- A node that is not connected when a job begins is ``unreachable``: nothing is queued for later.
- Only the event loop's thread calls in here.
Owns: which node gets a job when. Does not own: the tables (``master.store.jobs``), the link (``master.collector``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from garrison.common import limits
from garrison.common.errors import GarrisonError, StoreError
from garrison.common.frames import Job, JobCancel, JobOutput, JobResult, encode_frame
from garrison.common.names import NodeName, node_name
from garrison.master.bell import Bell
from garrison.master.jobs.records import JobNode, JobRequest, JobView, Status
from garrison.master.store import Store

__all__ = ["JobService", "NodeLink"]

_NS: Final = 10**9

_log = logging.getLogger(__name__)


class NodeLink(Protocol):
    """What jobs need from the collector."""

    def is_connected(self, node: str) -> bool:
        """Return whether the node has a session."""

    def send(self, node: NodeName, message: Job | JobCancel) -> bool:
        """Send to a node; return whether the link took it."""

    def is_enrolled(self, node: str) -> bool:
        """Return whether the node's key is accepted."""

    def why_away(self, node: str) -> str:
        """Return why a node that is enrolled cannot be reached."""


@dataclass(slots=True)
class _Active:
    request: JobRequest
    deadline_ns: int
    waiting: list[NodeName] = field(default_factory=list)
    running: set[NodeName] = field(default_factory=set)
    cancelled: bool = False

    def frame(self, job: str) -> Job:
        r = self.request
        return Job(job=job, argv=r.argv, timeout_s=r.timeout_s, env=r.env, cwd=r.cwd, user=r.user)


class JobService:
    """All jobs that are not at their end.

    Args:
        store: Where jobs are kept.
        link: How nodes are reached.
    """

    def __init__(self, store: Store, link: NodeLink) -> None:
        self._store, self._link = store, link
        self._loop = asyncio.get_running_loop()
        self.bell: Final = Bell()
        self._active: dict[str, _Active] = {}
        for view, request in store.unfinished_jobs():
            self._active[view.id] = _Active(
                request,
                view.deadline,
                waiting=[NodeName(n.node) for n in view.nodes if n.status is Status.WAITING],
                running={NodeName(n.node) for n in view.nodes if n.status is Status.RUNNING},
            )

    # ---- what operators ask --------------------------------------------------------------------------------------------
    async def create(self, request: JobRequest) -> JobView:
        """Store a job and send it to the nodes that are connected.

        Raises:
            ConfigError: A name is no node name.
            FrameError: The command is too long for a frame.
            StoreError: It cannot be stored; nothing was sent.
        """
        names = sorted({node_name(text) for text in request.nodes})
        job = secrets.token_hex(16)
        encode_frame(_Active(request, 0).frame(job))
        first = [self._first(name) for name in names]
        reachable = [name for name, n in zip(names, first, strict=True) if n.status is Status.WAITING]
        rounds = -(-len(reachable) // request.forks) if request.forks and reachable else 1
        deadline_ns = time.time_ns() + int((request.timeout_s + limits.JOB_GRACE_S) * rounds * _NS)
        await asyncio.to_thread(self._store.create_job, job, request, first, deadline_ns)
        if reachable:
            self._active[job] = _Active(request, deadline_ns, waiting=reachable)
            self._fill(job)
        _log.info("job=%s created nodes=%d reachable=%d argv0=%s", job, len(names), len(reachable), request.argv[0])
        return await self.view(job)

    async def view(self, job: str) -> JobView:
        """Return a job.

        Raises:
            StoreError: There is none of that id.
        """
        found = await asyncio.to_thread(self._store.job, job)
        if found is None:
            raise StoreError(f"there is no job {job[:64]}", hint="garrison jobs lists them")
        return found

    async def cancel(self, job: str) -> JobView:
        """Stop a job where it runs and begin it nowhere else. Cancelling an ended job changes nothing.

        Raises:
            StoreError: There is none of that id.
        """
        await self.view(job)
        active = self._active.get(job)
        if active is not None:
            active.cancelled = True
            active.waiting.clear()
            for node in active.running:
                self._link.send(node, JobCancel(job=job))
            await asyncio.wrap_future(self._store.submit_job_end(job, Status.CANCELLED, "cancelled by the operator"))
            self.bell.ring()
        return await self.view(job)

    # ---- what the collector tells --------------------------------------------------------------------------------------
    def on_online(self, node: NodeName) -> None:
        """Send a node what it has not answered."""
        for job, active in list(self._active.items()):
            if node in active.running:
                self._link.send(node, JobCancel(job=job) if active.cancelled else active.frame(job))
            elif node in active.waiting:
                self._fill(job)

    def on_output(self, node: NodeName, piece: JobOutput) -> None:
        """Keep a piece of output, then wake those who watch."""
        self._then(self._store.submit_job_output(node, piece), self.bell.ring)

    def on_result(self, node: NodeName, result: JobResult) -> None:
        """Keep an answer, then go on with the job."""
        self._then(self._store.submit_job_result(node, result), lambda: self._ended(node, result.job))

    def tick(self) -> None:
        """Give up on jobs whose deadline has passed; to be called every second or so."""
        now = time.time_ns()
        for job, active in list(self._active.items()):
            if now >= active.deadline_ns:
                del self._active[job]
                self._then(self._store.submit_job_end(job, Status.LOST, "no answer by the deadline"), self.bell.ring)

    # ---- inside --------------------------------------------------------------------------------------------------------
    def _first(self, name: NodeName) -> JobNode:
        if not self._link.is_enrolled(name):
            return JobNode(node=name, status=Status.UNREACHABLE, error="not enrolled")
        if not self._link.is_connected(name):
            return JobNode(node=name, status=Status.UNREACHABLE, error=self._link.why_away(name))
        return JobNode(node=name, status=Status.WAITING)

    def _fill(self, job: str) -> None:
        active = self._active[job]
        frame, started, left = active.frame(job), list[NodeName](), list[NodeName]()
        for node in active.waiting:
            full = active.request.forks and len(active.running) >= active.request.forks
            if full or not self._link.is_connected(node) or not self._link.send(node, frame):
                left.append(node)
            else:
                active.running.add(node)
                started.append(node)
        active.waiting = left
        if started:
            self._then(self._store.submit_job_status(job, started, Status.RUNNING), self.bell.ring)

    def _ended(self, node: NodeName, job: str) -> None:
        active = self._active.get(job)
        if active is not None:
            active.running.discard(node)
            if active.waiting:
                self._fill(job)
            if not active.running and not active.waiting:
                del self._active[job]
        self.bell.ring()

    def _then(self, future: Future[Any], call: Callable[[], None]) -> None:
        def done(ended: Future[Any]) -> None:
            error = ended.exception()
            if error is None:
                self._loop.call_soon_threadsafe(call)
            elif isinstance(error, GarrisonError):
                # Not stored, so not answered: the node is asked again when it comes back, and answers from its journal.
                _log.error("job=unstored error=%s", error)
            else:
                _log.error("job=unstored", exc_info=error)

        future.add_done_callback(done)
