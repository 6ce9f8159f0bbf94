"""Jobs in the store: what was asked, what became of it on each node, and the output in order.

Rules of this file:
- A final status is never changed: answers are repeated by nodes and kept once. The exceptions are ``lost`` and
  ``cancelled``: an answer that comes late all the same tells more.
- Output is known by ``(job, node, n)``; a repeat is ignored.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.frames import JobOutput, JobResult
from garrison.master.jobs.records import FINAL, JobNode, JobOutputLine, JobRequest, JobView, Status

__all__ = ["create", "end", "list_jobs", "note_output", "note_result", "outputs", "set_status", "unfinished", "view"]

_request: Final = msgspec.msgpack.Decoder(JobRequest)
_FINAL_SQL: Final = ",".join(f"'{status}'" for status in sorted(FINAL))


def create(conn: sqlite3.Connection, job: str, request: JobRequest, nodes: Sequence[JobNode], deadline_ns: int) -> None:
    """Keep a new job and the first status of its nodes."""
    conn.execute(
        "INSERT INTO jobs (id, spec, created_at, deadline) VALUES (?, ?, ?, ?)",
        (job, msgspec.msgpack.encode(request), time.time_ns(), deadline_ns),
    )
    conn.executemany(
        "INSERT INTO job_nodes (job, node, status, error, outputs, dropped_bytes, duration_ms, ended_at) "
        "VALUES (?, ?, ?, ?, 0, 0, 0, 0)",
        [(job, n.node, n.status, n.error) for n in nodes],
    )


def set_status(conn: sqlite3.Connection, job: str, nodes: Iterable[str], status: Status, error: str = "") -> None:
    """Set the status of nodes that have no final one."""
    ended = time.time_ns() if status in FINAL else 0
    conn.executemany(
        "UPDATE job_nodes SET status = ?, error = ?, ended_at = ? "  # noqa: S608 - constants
        f"WHERE job = ? AND node = ? AND status NOT IN ({_FINAL_SQL})",
        [(status, error, ended, job, node) for node in nodes],
    )


def end(conn: sqlite3.Connection, job: str, status: Status, error: str) -> None:
    """Give every node without a final status this one; ``cancelled`` also marks the job."""
    conn.execute(
        f"UPDATE job_nodes SET status = ?, error = ?, ended_at = ? WHERE job = ? AND status NOT IN ({_FINAL_SQL})",  # noqa: S608
        (status, error, time.time_ns(), job),
    )
    if status is Status.CANCELLED:
        conn.execute("UPDATE jobs SET cancelled = 1 WHERE id = ?", (job,))


def note_result(conn: sqlite3.Connection, node: str, result: JobResult) -> bool:
    """Keep a node's answer; return whether it was awaited."""
    status = Status.FAILED if result.error else Status.DONE
    return bool(
        conn.execute(
            "UPDATE job_nodes SET status = ?, exit_code = ?, error = ?, outputs = ?, dropped_bytes = dropped_bytes + ?, "
            "duration_ms = ?, ended_at = ? WHERE job = ? AND node = ? AND status NOT IN ('done', 'failed', 'unreachable')",
            (
                status,
                result.exit_code,
                result.error,
                result.outputs,
                result.dropped_bytes,
                result.duration_ms,
                time.time_ns(),
                result.job,
                node,
            ),
        ).rowcount
    )


def note_output(conn: sqlite3.Connection, node: str, piece: JobOutput) -> bool:
    """Keep a piece of output; return whether it is new. What no job asked for is dropped; what is over the limit is counted."""
    key = (piece.job, node)
    if conn.execute("SELECT 1 FROM job_nodes WHERE job = ? AND node = ?", key).fetchone() is None:
        return False
    (held,) = conn.execute("SELECT coalesce(sum(length(data)), 0) FROM job_output WHERE job = ? AND node = ?", key).fetchone()
    if held + len(piece.data) > limits.JOB_OUTPUT_MAX_BYTES:
        conn.execute("UPDATE job_nodes SET dropped_bytes = dropped_bytes + ? WHERE job = ? AND node = ?", (len(piece.data), *key))
        return False
    return bool(
        conn.execute(
            "INSERT OR IGNORE INTO job_output (job, node, n, stream, data) VALUES (?, ?, ?, ?, ?)",
            (piece.job, node, piece.n, piece.stream, piece.data),
        ).rowcount
    )


def view(conn: sqlite3.Connection, job: str) -> JobView | None:
    """Return a job, if there is one of that id."""
    row = conn.execute("SELECT id, spec, created_at, deadline, cancelled FROM jobs WHERE id = ?", (job,)).fetchone()
    return None if row is None else _view(conn, row)


def list_jobs(conn: sqlite3.Connection, limit: int) -> list[JobView]:
    """Return the newest jobs, newest first."""
    rows = conn.execute(
        "SELECT id, spec, created_at, deadline, cancelled FROM jobs ORDER BY created_at DESC LIMIT ?", (limit,)
    ).fetchall()
    return [_view(conn, row) for row in rows]


def unfinished(conn: sqlite3.Connection) -> list[JobView]:
    """Return jobs with a node that has no final status."""
    rows = conn.execute(
        "SELECT id, spec, created_at, deadline, cancelled FROM jobs "  # noqa: S608 - constants
        f"WHERE id IN (SELECT job FROM job_nodes WHERE status NOT IN ({_FINAL_SQL})) ORDER BY created_at"
    ).fetchall()
    return [_view(conn, row) for row in rows]


def outputs(conn: sqlite3.Connection, job: str, after: int, limit: int) -> list[tuple[int, JobOutputLine]]:
    """Return pieces of output of a job in order of arrival, each with its number; after ``after``."""
    rows = conn.execute(
        "SELECT id, node, n, stream, data FROM job_output WHERE job = ? AND id > ? ORDER BY id LIMIT ?", (job, after, limit)
    )
    return [(number, JobOutputLine(node=node, n=n, stream=stream, data=data)) for number, node, n, stream, data in rows]


def request_of(conn: sqlite3.Connection, job: str) -> JobRequest | None:
    """Return what was asked, if there is a job of that id."""
    row = conn.execute("SELECT spec FROM jobs WHERE id = ?", (job,)).fetchone()
    return None if row is None else _request.decode(row[0])


def _view(conn: sqlite3.Connection, row: tuple[str, bytes, int, int, int]) -> JobView:
    job, spec, created_at, deadline, cancelled = row
    request = _request.decode(spec)
    rows = conn.execute(
        "SELECT node, status, exit_code, error, outputs, dropped_bytes, duration_ms, ended_at FROM job_nodes "
        "WHERE job = ? ORDER BY node",
        (job,),
    )
    nodes = [
        JobNode(
            node=node,
            status=Status(status),
            exit_code=exit_code,
            error=error or "",
            outputs=outputs_,
            dropped_bytes=dropped,
            duration_ms=duration,
            ended_at=ended,
        )
        for node, status, exit_code, error, outputs_, dropped, duration, ended in rows
    ]
    return JobView(
        id=job,
        argv=request.argv,
        user=request.user,
        cwd=request.cwd,
        timeout_s=request.timeout_s,
        forks=request.forks,
        created_at=created_at,
        deadline=deadline,
        cancelled=bool(cancelled),
        ended=all(n.status in FINAL for n in nodes),
        nodes=nodes,
    )
