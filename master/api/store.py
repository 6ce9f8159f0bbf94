"""``/v1/store``: what the store holds, what it need not keep any more, a copy of it while it is in use.

Rules of this file:
- A backup is told as JSON lines: ``progress`` now and then, then ``end`` or ``error``. A reader that goes away ends it.
- One backup at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from garrison.common.errors import ConfigError, GarrisonError, StoreError
from garrison.master.api.errors import body_of
from garrison.master.api.wire import body, json_response, ndjson, query
from garrison.master.store import Store
from garrison.master.store.backup import Backup, BackupResult, Progress

__all__ = ["routes"]

_TELL_EVERY_S: Final = 0.1
_encoder: Final = msgspec.json.Encoder()


class BackupBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/store/backup``: an absolute path on the master's machine, of nothing or an empty folder."""

    directory: str


class PruneBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/store/prune``; with ``check`` nothing is dropped."""

    check: bool = False


class StoreApi:
    """Endpoints about the store."""

    def __init__(self, store: Store, stop: asyncio.Event) -> None:
        self._store, self._stop, self._backing_up = store, stop, False

    async def info(self, request: Request) -> Response:
        """Answer ``GET /v1/store``."""
        query(request)
        return json_response(await asyncio.to_thread(self._store.keeper.info))

    async def prune(self, request: Request) -> Response:
        """Answer ``POST /v1/store/prune``."""
        check = (await body(request, PruneBody)).check
        gone = await asyncio.to_thread(self._store.keeper.prune, check=check)
        return json_response({"check": check, "dropped": gone})

    async def backup(self, request: Request) -> Response:
        """Answer ``POST /v1/store/backup``."""
        directory = Path((await body(request, BackupBody)).directory)
        if self._backing_up:
            raise ConfigError("a backup is being made already", hint="wait for its end")
        self._backing_up = True
        try:
            backup = await asyncio.to_thread(self._store.backup, directory)
        except BaseException:
            self._backing_up = False
            raise
        return ndjson(self._lines(backup))

    async def _lines(self, backup: Backup) -> AsyncIterator[bytes]:
        loop, said = asyncio.get_running_loop(), asyncio.Queue[Progress]()
        told = 0.0

        def tell(progress: Progress) -> None:
            nonlocal told
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                loop.call_soon_threadsafe(said.put_nowait, progress)

        running = asyncio.ensure_future(asyncio.to_thread(backup.run, tell))
        running.add_done_callback(self._ended)
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while not running.done() and not stopped.done():
                line = asyncio.ensure_future(said.get())
                await asyncio.wait({running, stopped, line}, return_when=asyncio.FIRST_COMPLETED)
                if line.done():
                    yield _encoder.encode(line.result()) + b"\n"
                line.cancel()
            if not running.done():
                backup.give_up()
            yield await _last_line(running)
        finally:
            backup.give_up()
            stopped.cancel()

    def _ended(self, running: asyncio.Future[BackupResult | None]) -> None:
        self._backing_up = False
        if not running.cancelled():
            running.exception()  # told on the stream, if anybody still reads it


async def _last_line(running: asyncio.Future[BackupResult | None]) -> bytes:
    try:
        result = await running
        if result is None:
            raise StoreError("the backup was given up: the master is being stopped")
    except GarrisonError as err:
        return _encoder.encode({"type": "error", **body_of(err)}) + b"\n"
    return _encoder.encode(result) + b"\n"


def routes(store: Store, stop: asyncio.Event) -> list[Route]:
    """Return the routes of this file."""
    api = StoreApi(store, stop)
    return [
        Route("/v1/store", api.info, methods=["GET"]),
        Route("/v1/store/prune", api.prune, methods=["POST"]),
        Route("/v1/store/backup", api.backup, methods=["POST"]),
    ]
