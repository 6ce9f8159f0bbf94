"""What the link needs of the agent, and what it tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from garrison.common.errors import LinkError
from garrison.common.frames import ApplyReport, Assignment, Hello, Job, JobOutput, JobResult
from garrison.common.names import Digest
from garrison.minion.spool import Spool

__all__ = ["Fetch", "LinkPeer", "LinkState", "MasterRefusedError", "SendOutput"]

Fetch = Callable[[Digest, int], Awaitable[bytes]]
"""Takes a digest and a length; returns so many bytes, the digest unchecked. Raises LinkError when they cannot be had."""

SendOutput = Callable[[JobOutput], Awaitable[None]]
"""Takes a piece of a job's output. Raises LinkError when the connection that asked for it is gone."""


class MasterRefusedError(LinkError):
    """The master does not confirm what is on trial, and will not."""


class LinkState(msgspec.Struct, frozen=True):
    """Whether a master serves this node, and the cause in one line for a person: ``connected``, or why not."""

    connected: bool
    cause: str


class LinkPeer(Protocol):
    """What the link talks to; the agent."""

    @property
    def spool(self) -> Spool:
        """The opened spool."""

    def hello(self) -> Hello:
        """Return what this node is and has, now."""

    async def on_assignment(self, assignment: Assignment, fetch: Fetch) -> ApplyReport:
        """Begin to obey an assignment. It may come twice; it is never cancelled, whatever becomes of the connection."""

    async def on_job(self, job: Job, output: SendOutput) -> JobResult:
        """Run a command, or answer for one that ran. It may come twice; it is cancelled when the connection is gone."""

    def on_job_cancel(self, job_id: str) -> None:
        """Stop a command."""

    def on_link_state(self, state: LinkState) -> None:
        """Take note of a change."""
