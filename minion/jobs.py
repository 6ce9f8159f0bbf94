"""Commands of the master: each id is run at most once on this node, and answered as often as it is asked.

Rules of this file:
- The id is journalled, synced, before the program starts; its result, synced, before it is told. A repeated id is answered from
  the journal, output and all. An id whose agent died in between is answered ``interrupted`` and never run again.
- A run outlives the connection that asked for it. Who asks again gets all its output from the first piece on, then its result: so
  nothing is lost in an outage as long as the master asks for what it has no result of.
- If the journal cannot be written the program is not run: fail-closed, since it could not be kept from running twice.
- Output over ``JOB_OUTPUT_MAX_BYTES`` is counted and dropped; the program is never blocked by it.
Owns: the journal's folder. Does not own: who may send commands (``link``, and the master).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from garrison.common import limits
from garrison.common.frames import Job, JobOutput, JobResult
from garrison.minion._job_journal import Journal, JournalError, OutputLog
from garrison.minion._job_process import NOT_RUN, JobProcess, StartError

__all__ = ["JobRunner"]

_log = logging.getLogger(__name__)

_Output = Callable[[JobOutput], Awaitable[None]]


class _Run:
    """A job between its first request and its result."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.log: OutputLog | None = None
        self.process: JobProcess | None = None
        self.result: JobResult | None = None
        self.stopped = ""  # why it is being ended
        self.stop = asyncio.Event()
        self.pieces = self.taken_bytes = self.dropped_bytes = 0
        self._changed = asyncio.Event()
        self._followers = 0

    def take(self, stream: int, data: bytes) -> None:
        room = limits.JOB_OUTPUT_MAX_BYTES - self.taken_bytes
        kept = data[: max(0, room)]
        piece = JobOutput(job=self.job.job, n=self.pieces, stream=stream, data=kept)
        if kept and self.log is not None and self.log.append(piece):
            self.pieces += 1
            self.taken_bytes += len(kept)
            self.dropped_bytes += len(data) - len(kept)
        else:
            self.dropped_bytes += len(data)
        self._tell()

    def conclude(self, result: JobResult) -> None:
        self.result = result
        self._tell()
        self._let_go()

    def _tell(self) -> None:
        told, self._changed = self._changed, asyncio.Event()
        told.set()

    def _let_go(self) -> None:
        if self.result is not None and self._followers == 0 and self.log is not None:
            self.log.close()
            self.log = None

    def end(self, why: str) -> None:
        self.stopped = self.stopped or why
        self.stop.set()

    async def follow(self, output: _Output) -> JobResult:
        """Give ``output`` every piece from the first on as it comes; returns the result."""
        self._followers += 1
        try:
            return await self._follow(output)
        finally:
            self._followers -= 1
            self._let_go()

    async def _follow(self, output: _Output) -> JobResult:
        offset = 0
        while True:
            done, changed = self.result, self._changed  # looked at before the output: after a result there is no more of it
            while self.log is not None and (found := self.log.read(offset)) is not None:
                piece, offset = found
                await output(piece)
            if done is not None:
                return done
            await changed.wait()


class JobRunner:
    """Runs commands; one per agent.

    Args:
        directory: The journal's folder; made when first needed.
    """

    def __init__(self, directory: Path) -> None:
        self._journal = Journal(directory)
        self._runs: dict[str, _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(limits.JOBS_RUNNING_MAX)
        self._closing = False

    async def run(self, job: Job, output: _Output) -> JobResult:
        """Run ``job``, follow the run of its id, or answer for it from the journal.

        Args:
            job: The command; its id decides whether it is run.
            output: Is given each piece of output. If it raises, so does this, and the run goes on.

        Returns:
            How it ended; ``error`` says why it did not run or was stopped.
        """
        run = self._runs.get(job.job)
        if run is None:
            recorded = self._recorded(job.job)
            if recorded is not None:
                for piece in self._journal.outputs(job.job):
                    await output(piece)
                return recorded
            if self._closing or len(self._runs) >= limits.JOBS_RUNNING_MAX + limits.JOBS_WAITING_MAX:
                # Not journalled: asked again, it may run.
                return JobResult(
                    job=job.job, exit_code=NOT_RUN, error="not run: too many commands wait, or the agent is stopping"
                )
            run = self._begin(job)
        return await run.follow(output)

    def cancel(self, job_id: str) -> None:
        """Stop ``job_id``, or see to it that it never starts. Nothing when it has ended."""
        run = self._runs.get(job_id)
        if run is not None:
            run.end("cancelled")
        elif job_id and not self._journal.started(job_id):
            self._record(JobResult(job=job_id, exit_code=NOT_RUN, error="cancelled before it started"))

    async def close(self) -> None:
        """End all programs; they are recorded as interrupted. Idempotent."""
        self._closing = True
        for run in self._runs.values():
            run.end("interrupted: the agent was stopped")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- one run -----------------------------------------------------------------------------------------------------------
    def _begin(self, job: Job) -> _Run:
        run = _Run(job)
        self._runs[job.job] = run
        task = asyncio.create_task(self._execute(run), name=f"job-{job.job[:8]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def _execute(self, run: _Run) -> None:
        began = time.monotonic()
        async with self._places:
            try:
                exit_code, error = await self._attempt(run)
            except (StartError, JournalError, OSError) as err:
                exit_code, error = err.exit_code if isinstance(err, StartError) else NOT_RUN, f"not run: {err}"
        result = JobResult(
            job=run.job.job,
            exit_code=exit_code,
            error=error[: limits.STRING_MAX_CHARS],
            outputs=run.pieces,
            dropped_bytes=run.dropped_bytes,
            duration_ms=int((time.monotonic() - began) * 1000),
        )
        never_began = run.log is None and (self._closing or not run.stopped)  # asked again, it may run
        if never_began or await asyncio.to_thread(self._record, result, run.log):
            del self._runs[run.job.job]  # from here on the journal answers; followers hold the run themselves
        run.conclude(result)

    async def _attempt(self, run: _Run) -> tuple[int, str]:
        if run.stopped:
            return NOT_RUN, f"{run.stopped} before it started"
        run.log = await asyncio.to_thread(self._journal.begin, run.job.job)
        run.process = await JobProcess.start(run.job)
        pump = asyncio.create_task(run.process.pump(run.take))
        error = await self._until_ended(run, run.process)
        await pump
        return run.process.exit_code, error

    @staticmethod
    async def _until_ended(run: _Run, process: JobProcess) -> str:
        # Returns why it was stopped; empty when it ended by itself.
        ended = asyncio.create_task(process.wait(run.job.timeout_s))
        stop = asyncio.create_task(run.stop.wait())
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        error = ""
        if ended.done() and not ended.result():
            error = f"stopped: it took longer than {run.job.timeout_s:g} s"
        elif not ended.done():
            error = run.stopped
        for task in (ended, stop):
            task.cancel()
        await asyncio.gather(ended, stop, return_exceptions=True)
        if error:
            await process.end()
        return error

    def _record(self, result: JobResult, log: OutputLog | None = None) -> bool:
        try:
            if log is not None:
                log.sync()
            self._journal.finish(result)
        except (JournalError, OSError) as err:
            _log.error("job=%s recorded=no error=%s", result.job, err)  # told all the same; kept in memory until the end
            return False
        return True

    def _recorded(self, job_id: str) -> JobResult | None:
        result = self._journal.result(job_id)
        if result is not None or not self._journal.started(job_id):
            return result
        interrupted = JobResult(
            job=job_id,
            exit_code=NOT_RUN,
            error="interrupted: the agent ended while it ran; it may have run in part",
            outputs=sum(1 for _ in self._journal.outputs(job_id)),
        )
        self._record(interrupted)
        return msgspec.structs.replace(interrupted)
