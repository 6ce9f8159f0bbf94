"""``/v1/jobs``: run commands, watch them, stop them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from garrison.common.errors import ConfigError
from garrison.master.api.errors import NotFoundError
from garrison.master.api.wire import body, json_response, ndjson, query
from garrison.master.jobs.records import FINAL, JobRequest, JobView
from garrison.master.jobs.service import JobService
from garrison.master.store import Store

__all__ = ["routes"]

_PAGE: Final = 200
_LISTED: Final = 100
_LOOK_EVERY_S: Final = 5.0
_encode: Final = msgspec.json.encode


class JobsApi:
    """Endpoints about jobs."""

    def __init__(self, store: Store, jobs: JobService, stop: asyncio.Event) -> None:
        self._store, self._jobs, self._stop = store, jobs, stop

    async def create(self, request: Request) -> Response:
        """Answer ``POST /v1/jobs``."""
        return json_response(await self._jobs.create(await body(request, JobRequest)), 201)

    async def index(self, request: Request) -> Response:
        """Answer ``GET /v1/jobs``."""
        text = query(request, "limit").get("limit", [str(_LISTED)])[-1]
        if not text.isdecimal() or not 0 < int(text[:9]) <= 10 * _LISTED:
            raise ConfigError(f"parameter limit is {text[:40]!r}, not 1 to {10 * _LISTED}")
        return json_response({"jobs": await asyncio.to_thread(self._store.jobs, int(text))})

    async def show(self, request: Request) -> Response:
        """Answer ``GET /v1/jobs/ID``."""
        return json_response(await self._found(request))

    async def cancel(self, request: Request) -> Response:
        """Answer ``POST /v1/jobs/ID/cancel``."""
        job = await self._found(request)
        return json_response(await self._jobs.cancel(job.id))

    async def stream(self, request: Request) -> Response:
        """Answer ``GET /v1/jobs/ID/stream``."""
        job = await self._found(request)
        return ndjson(self._lines(job.id))

    async def _found(self, request: Request) -> JobView:
        job = await asyncio.to_thread(self._store.job, request.path_params["job"])
        if job is None:
            raise NotFoundError(f"there is no job {request.path_params['job'][:64]}", hint="garrison jobs lists them")
        return job

    async def _lines(self, job: str) -> AsyncIterator[bytes]:
        """Yield output as it becomes durable, each node's result after its output, and the job at its end."""
        cursor, told = 0, set[str]()
        while True:
            ticket = self._jobs.bell.ticket()
            # The job first: whatever output its results follow is then in the page.
            view = await asyncio.to_thread(self._store.job, job)
            pieces = await asyncio.to_thread(self._store.job_outputs, job, after=cursor, limit=_PAGE)
            for cursor, piece in pieces:  # noqa: B007 - the last number is where to go on
                yield _encode(piece) + b"\n"
            if len(pieces) == _PAGE:
                continue
            if view is None:
                return
            for node in view.nodes:
                if node.status in FINAL and node.node not in told:
                    told.add(node.node)
                    yield _encode({"type": "result", **msgspec.structs.asdict(node)}) + b"\n"
            if view.ended:
                yield _encode({"type": "end", "job": view.id, "cancelled": view.cancelled}) + b"\n"
                return
            if self._stop.is_set():
                return
            await _rung(ticket)


async def _rung(ticket: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_EVERY_S):
            await ticket.wait()
    except TimeoutError:
        return


def routes(store: Store, jobs: JobService, stop: asyncio.Event) -> list[Route]:
    """Return the routes of this file."""
    api = JobsApi(store, jobs, stop)
    return [
        Route("/v1/jobs", api.create, methods=["POST"]),
        Route("/v1/jobs", api.index, methods=["GET"]),
        Route("/v1/jobs/{job}", api.show, methods=["GET"]),
        Route("/v1/jobs/{job}/stream", api.stream, methods=["GET"]),
        Route("/v1/jobs/{job}/cancel", api.cancel, methods=["POST"]),
    ]
