"""``/v1/events``: stored events as JSON lines, and new ones as they become durable.

Rules of this file:
- Lines are what ``event_to_json`` makes, in order of arrival. ``limit`` means the newest; with ``after`` it means the next.
- The stream is read in short pages, so that a slow reader holds nothing up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from garrison.common import limits
from garrison.common.errors import ConfigError
from garrison.common.events import Event, event_to_json
from garrison.master.api.wire import ndjson, query
from garrison.master.bell import Bell
from garrison.master.store import EventFilter, Store
from garrison.master.store.query import parse_lane, parse_when

__all__ = ["routes"]

_PAGE: Final = 1_000
_LOOK_EVERY_S: Final = 5.0  # a stream looks again by itself, so that one whose reader left ends
_PARAMETERS: Final = ("node", "kind", "lane", "policy", "verdict", "exe", "since", "until", "limit", "after", "follow")


class EventsApi:
    """Endpoint about events."""

    def __init__(self, store: Store, bell: Bell, stop: asyncio.Event) -> None:
        self._store, self._bell, self._stop = store, bell, stop

    async def stream(self, request: Request) -> Response:
        """Answer ``GET /v1/events``."""
        asked = query(request, *_PARAMETERS)
        wanted = _filter(asked)
        limit, after = _number(asked, "limit"), _number(asked, "after")
        if limit is not None and limit > limits.API_PAGE_MAX_EVENTS:
            raise ConfigError(f"limit is over {limits.API_PAGE_MAX_EVENTS}", hint="leave it out for all events")
        follow = _one(asked, "follow") in {"1", "true"}
        # Take what there is first: a filter that the store cannot answer is then an error, not a stream that breaks off.
        first, cursor = await asyncio.to_thread(self._first, wanted, limit, after)
        return ndjson(self._lines(wanted, first, cursor, left=None if limit is None else limit - len(first), follow=follow))

    def _first(self, wanted: EventFilter, limit: int | None, after: int | None) -> tuple[list[tuple[int, Event]], int]:
        if limit is not None and after is None:
            newest = self._store.last_event_number()
            page = self._store.events_page(wanted, limit=limit) if limit else []
            return page, max(newest, page[-1][0]) if page else newest
        page = self._store.events_page(wanted, after=after or 0, limit=min(limit or _PAGE, _PAGE))
        return page, page[-1][0] if page else after or 0

    async def _lines(
        self, wanted: EventFilter, page: list[tuple[int, Event]], cursor: int, *, left: int | None, follow: bool
    ) -> AsyncIterator[bytes]:
        while True:
            ticket = self._bell.ticket()
            if page:
                yield "".join(f"{event_to_json(event)}\n" for _, event in page).encode()
                cursor = max(cursor, page[-1][0])
            if not follow and left is not None and left <= 0:
                return
            room = _PAGE if follow or left is None else min(left, _PAGE)
            page = await asyncio.to_thread(self._store.events_page, wanted, after=cursor, limit=room)
            if left is not None:
                left -= len(page)
            if not page:
                if not follow or self._stop.is_set():
                    return
                await _either(ticket, self._stop)


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _filter(asked: dict[str, list[str]]) -> EventFilter:
    now = time.time_ns()
    since, until = _one(asked, "since"), _one(asked, "until")
    return EventFilter(
        nodes=tuple(asked.get("node", ())),
        kinds=tuple(asked.get("kind", ())),
        lanes=tuple(parse_lane(text) for text in asked.get("lane", ())),
        policies=tuple(asked.get("policy", ())),
        verdicts=tuple(asked.get("verdict", ())),
        exes=tuple(asked.get("exe", ())),
        since_ns=parse_when(since, now) if since else None,
        until_ns=parse_when(until, now) if until else None,
    )


def _one(asked: dict[str, list[str]], key: str) -> str:
    values = asked.get(key, [""])
    if len(values) > 1:
        raise ConfigError(f"parameter {key} is given {len(values)} times")
    return values[0]


def _number(asked: dict[str, list[str]], key: str) -> int | None:
    text: Any = _one(asked, key)
    if text == "":
        return None
    if not text.isdecimal() or len(text) > 18:  # noqa: PLR2004 - fits the store's numbers
        raise ConfigError(f"parameter {key} is {text[:40]!r}, not a number")
    return int(text)


def routes(store: Store, bell: Bell, stop: asyncio.Event) -> list[Route]:
    """Return the routes of this file."""
    return [Route("/v1/events", EventsApi(store, bell, stop).stream, methods=["GET"])]
