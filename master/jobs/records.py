"""What a job is: a command for nodes, and what became of it on each.

A node's status goes ``waiting``, ``running``, then one of ``done`` ``failed`` ``cancelled`` ``lost``; or it is ``unreachable``
from the start.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from garrison.common import limits

__all__ = ["FINAL", "JobNode", "JobOutputLine", "JobRequest", "JobView", "Status"]

_Text = Annotated[str, msgspec.Meta(max_length=limits.STRING_MAX_CHARS)]


class Status(StrEnum):
    """Where a job stands on one node."""

    WAITING = "waiting"  # not sent yet, because of ``forks``
    RUNNING = "running"  # sent; sent again when the node comes back, until it answers or the deadline passes
    DONE = "done"  # ran to its end; the exit code tells how
    FAILED = "failed"  # did not run, or was stopped; the error tells why
    CANCELLED = "cancelled"  # the operator stopped it
    LOST = "lost"  # no answer by the deadline
    UNREACHABLE = "unreachable"  # the node was not connected, or is not enrolled


FINAL: Final = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED, Status.LOST, Status.UNREACHABLE})


class JobRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command to run.

    Attributes:
        nodes: Names of nodes.
        argv: Program and arguments; no shell.
        timeout_s: The node stops it after this long.
        user: Run as this user; empty for root.
        cwd: Working directory.
        env: Added to a minimal environment.
        forks: Nodes that run it at once; 0 for all.
    """

    nodes: Annotated[list[_Text], msgspec.Meta(min_length=1, max_length=limits.JOB_NODES_MAX)]
    argv: Annotated[list[str], msgspec.Meta(min_length=1, max_length=limits.JOB_ARGV_MAX)]
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=limits.JOB_TIMEOUT_MAX_S)] = 60.0
    user: _Text = ""
    cwd: _Text = "/"
    env: dict[_Text, _Text] = {}
    forks: Annotated[int, msgspec.Meta(ge=0, le=limits.JOB_NODES_MAX)] = 0


class JobNode(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job on one node.

    Attributes:
        node: Its name.
        status: See ``Status``.
        exit_code: Exit code or -signal, once ``done``.
        error: Why, for all but ``done``.
        outputs: Pieces of output the node says it sent.
        dropped_bytes: Output over the limit, dropped and counted.
        duration_ms: Wall time on the node.
        ended_at: When the answer was stored, ns since 1970 UTC; 0 before.
    """

    node: str
    status: Status
    exit_code: int | None = None
    error: str = ""
    outputs: int = 0
    dropped_bytes: int = 0
    duration_ms: int = 0
    ended_at: int = 0


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the API shows it.

    Attributes:
        id: 32 hex digits.
        argv: Program and arguments.
        user: Run as this user; empty for root.
        cwd: Working directory.
        timeout_s: The node stops it after this long.
        forks: Nodes that run it at once; 0 for all.
        created_at: ns since 1970 UTC.
        deadline: When nodes that have not answered become ``lost``, ns since 1970 UTC.
        cancelled: The operator stopped it.
        ended: Every node has a final status.
        nodes: By name.
    """

    id: str
    argv: list[str]
    user: str
    cwd: str
    timeout_s: float
    forks: int
    created_at: int
    deadline: int
    cancelled: bool
    ended: bool
    nodes: list[JobNode]


class JobOutputLine(msgspec.Struct, frozen=True, kw_only=True, tag="output", tag_field="type"):
    """A piece of output as the API streams it. ``stream`` is 1 (stdout) or 2 (stderr); ``data`` is base64 in JSON."""

    node: str
    n: int
    stream: int
    data: bytes
