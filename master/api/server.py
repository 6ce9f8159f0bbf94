"""The API on a Unix socket: routes together, errors in one form, nobody but the socket's owner.

Rules of this file:
- Whoever can open the socket is an operator: mode 0600 from its first moment on, no other check.
- A socket file that nobody listens on is taken over; one that somebody does is another master.
- Ending is orderly: streams end first, then answers are finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from garrison.common.errors import ConfigError, GarrisonError
from garrison.master.api import errors, events, jobs, nodes
from garrison.master.api import store as store_api
from garrison.master.api.bundles import bundle_routes
from garrison.master.api.wire import json_response
from garrison.master.collector.collector import Collector
from garrison.master.collector.keys import KeyRing
from garrison.master.config import MasterSettings
from garrison.master.desk import Desk
from garrison.master.store import Store

__all__ = ["build_app", "listen_unix", "serve"]

_GRACE_S: Final = 3  # an answer that is under way gets this long when the master ends


def build_app(
    settings: MasterSettings, store: Store, keys: KeyRing, collector: Collector, desk: Desk, *, stop: asyncio.Event
) -> Starlette:
    """Return the application. ``stop`` ends streams that follow."""

    async def health(_: Request) -> Response:
        return json_response({"state": "ok", "pid": os.getpid(), "uncommitted_bytes": store.waiting_bytes})

    return Starlette(
        routes=[
            Route("/v1/health", health, methods=["GET"]),
            *nodes.routes(settings, store, keys, collector),
            *events.routes(store, collector.events_bell, stop),
            *jobs.routes(store, collector.jobs, stop),
            *bundle_routes(desk),
            *store_api.routes(store, stop),
        ],
        exception_handlers={
            GarrisonError: errors.on_garrison_error,
            HTTPException: errors.on_http_error,
            Exception: errors.on_bug,
        },
    )


def listen_unix(path: Path) -> socket.socket:
    """Return a listening socket at ``path``, mode 0600.

    Raises:
        ConfigError: Another process listens there, or the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            _refuse_live(path)
            path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(128)
    except OSError as err:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {err.strerror}", hint="see --socket") from err
    except ConfigError:
        listener.close()
        raise
    return listener


def _refuse_live(path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        contextlib.suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.settimeout(1)
        probe.connect(str(path))
        raise ConfigError(f"another master listens on {path}", hint="stop it, or give this one its own --socket")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: asyncio.Event) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the master, which ends its parts in order."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start taking requests, then say so."""
        await super().startup(sockets)
        self._ready.set()


async def serve(app: Starlette, listener: socket.socket, stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Answer requests until ``stop`` is set; sets ``ready`` once requests are taken."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=_GRACE_S, http="h11"
    )
    server = _Server(config, ready)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopped.cancel()
    await task
