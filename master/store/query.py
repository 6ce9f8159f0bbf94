"""Questions about stored events: a filter in, a page of events out, by indexes.

Rules of this file:
- Events are in order of arrival; the number of the last one is the place to go on from.
- Reads run on read-only connections beside the writer; a page is short, so that a checkpoint never waits long.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import ConfigError, FrameError
from garrison.common.events import Event, Kind, Lane, decode_event
from garrison.master.store.events import QUARANTINED

__all__ = ["EventFilter", "newest_metrics", "parse_lane", "parse_when", "read_page"]

_UNITS_NS: Final = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9, "w": 7 * 86_400 * 10**9}
_AGO: Final = re.compile(r"(\d{1,9})([smhdw])")
_NS: Final = re.compile(r"-?\d{1,19}")
_INT64_MAX: Final = (1 << 63) - 1


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are meant; an empty field means all.

    Attributes:
        nodes: Node names.
        kinds: Kinds.
        lanes: Lanes.
        policies: Policy names.
        verdicts: Verdicts.
        since_ns: Not before, by the node's clock.
        until_ns: Before, by the node's clock.
    """

    nodes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    lanes: tuple[int, ...] = ()
    policies: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None

    def where(self) -> tuple[list[str], list[str | int]]:
        """Return SQL conditions on ``events e`` and their values."""
        terms: list[str] = []
        values: list[str | int] = []
        columns: tuple[tuple[str, tuple[str, ...] | tuple[int, ...]], ...] = (
            ("node", self.nodes),
            ("kind", self.kinds),
            ("lane", self.lanes),
            ("policy", self.policies),
            ("verdict", self.verdicts),
        )
        for column, wanted in columns:
            if not wanted:
                continue
            # The partial indexes are used only when the query implies their condition.
            partial = f" AND e.{column} != ''" if column in {"policy", "verdict"} else ""
            terms.append(f"e.{column} IN ({','.join('?' * len(wanted))}){partial}")
            values.extend(wanted)
        if self.since_ns is not None:
            terms.append("e.ts >= ?")
            values.append(self.since_ns)
        if self.until_ns is not None:
            terms.append("e.ts < ?")
            values.append(self.until_ns)
        return terms, values


def read_page(
    conn: sqlite3.Connection, wanted: EventFilter, *, after: int | None = None, limit: int = limits.API_PAGE_MAX_EVENTS
) -> list[tuple[int, Event]]:
    """Return up to ``limit`` events with their arrival numbers, oldest first.

    Args:
        conn: A reading connection.
        wanted: Which.
        after: The first ones that arrived after this number; ``None`` for the newest.
        limit: At most so many.
    """
    terms, values = wanted.where()
    if after is not None:
        terms.append("e.id > ?")
        values.append(after)
    order = "ASC" if after is not None else "DESC"
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    # Every piece of the text is made above from constants; values are bound.
    sql = (
        "SELECT e.id, s.node, s.epoch, e.seq, e.lane, e.received_at, e.quarantine, e.record "  # noqa: S608
        f"FROM events e JOIN spools s ON s.id = e.spool {where} ORDER BY e.id {order} LIMIT ?"
    )
    rows = conn.execute(sql, (*values, limit)).fetchall()
    if after is None:
        rows.reverse()
    return list(_events(rows))


def newest_metrics(conn: sqlite3.Connection, nodes: Iterable[str]) -> list[Event]:
    """Return the newest resource sample of each node that has one."""
    found: list[Event] = []
    for node in nodes:
        # Only samples of the resource observer carry the node's totals; other parts report on lane METRIC too.
        page = read_page(conn, EventFilter(nodes=(node,), kinds=(Kind.METRIC,)), limit=8)
        sample = next((e for _, e in reversed(page) if "mem_total_bytes" in e.data), page[-1][1] if page else None)
        if sample is not None:
            found.append(sample)
    return found


def parse_when(text: str, now_ns: int) -> int:
    """Return a time, in ns since 1970 UTC.

    Args:
        text: Nanoseconds; ``10m``, ``2h`` ago (also ``s d w``); or an ISO 8601 time, UTC when it names no zone.
        now_ns: What "ago" counts from.

    Raises:
        ConfigError: None of these.
    """
    if ago := _AGO.fullmatch(text):
        return now_ns - int(ago[1]) * _UNITS_NS[ago[2]]
    if _NS.fullmatch(text) and abs(int(text)) <= _INT64_MAX:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as err:
        raise ConfigError(
            f"{text[:40]!r} is no time", hint="use nanoseconds, 10m or 2h for ago, or ISO 8601 such as 2026-01-31T12:00"
        ) from err
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000) * 1000


def parse_lane(text: str) -> int:
    """Return a lane from its name or number.

    Raises:
        ConfigError: There is none such.
    """
    try:
        return int(Lane[text.upper()] if not text.isdecimal() else Lane(int(text[:9])))
    except (KeyError, ValueError) as err:
        raise ConfigError(f"{text[:40]!r} is no lane", hint=f"lanes are {', '.join(lane.name.lower() for lane in Lane)}") from err


def _events(rows: Iterable[tuple[int, str, str, int, int, int, str | None, bytes]]) -> Iterator[tuple[int, Event]]:
    for number, node, epoch, seq, lane, received_at, why, record in rows:
        reason = why
        if reason is None:
            try:
                event = decode_event(record)
            except FrameError as err:  # written by a newer garrison, or damaged: shown, never skipped
                reason = str(err)
            else:
                yield number, msgspec.structs.replace(event, node=node, epoch=epoch, seq=seq, lane=Lane(lane))
                continue
        yield (
            number,
            Event(
                node=node,
                epoch=epoch,
                seq=seq,
                ts=received_at,
                lane=Lane(lane),
                kind=QUARANTINED,
                severity=6,
                data={"reason": reason, "record_hex": record[:256].hex()},
            ),
        )
