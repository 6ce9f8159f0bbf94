"""Questions about stored events: a filter in, a page of events out, by indexes, over the files of all days.

Rules of this file:
- Events are in order of arrival over all lanes and days; the number of the last one is the place to go on from.
- A file that cannot hold what is asked for is not opened. In a file the rarest of the conditions leads: its index is counted a
  little way first, since SQLite cannot know which node is silent and which is loud.
- Numbers first, records after: only the records of the page are read. Reads are short, so that a checkpoint never waits long.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from garrison.common.errors import ConfigError, FrameError, StoreError
from garrison.common.events import Event, Kind, Lane, decode_event
from garrison.master.store.catalogue import Catalogue
from garrison.master.store.dayfile import DayFile, Facts
from garrison.master.store.lane import QUARANTINED

__all__ = ["EventFilter", "conditions", "newest_metrics", "numbers", "parse_lane", "parse_when", "read_page"]

_UNITS_NS: Final = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9, "w": 7 * 86_400 * 10**9}
_AGO: Final = re.compile(r"(\d{1,9})([smhdw])")
_NS: Final = re.compile(r"-?\d{1,19}")
_INT64_MAX: Final = (1 << 63) - 1
_COUNTED: Final = 2_000  # entries of an index looked at to find the rarest condition: 50 microseconds
_BOUND: Final = 10_000  # values bound to one statement; SQLite's own limit is 32,766
# Columns by what they usually narrow down most, for conditions that are all common.
_COLUMNS: Final = ("exe", "policy", "verdict", "spool", "ts", "kind")
_PARTIAL: Final = frozenset({"exe", "policy", "verdict"})  # most events have none of these: their indexes leave number 0 out


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are meant; an empty field means all.

    Attributes:
        nodes: Node names.
        kinds: Kinds.
        lanes: Lanes.
        policies: Policy names.
        verdicts: Verdicts.
        exes: Paths of the program that acted.
        since_ns: Not before, by the node's clock.
        until_ns: Before, by the node's clock.
    """

    nodes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    lanes: tuple[int, ...] = ()
    policies: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    exes: tuple[str, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None

    def concerns(self, file: DayFile, facts: Facts) -> bool:
        """Whether a file can hold what is asked for."""
        if not facts.events or (self.lanes and file.lane not in self.lanes):
            return False
        early = self.until_ns is not None and facts.first_ts >= self.until_ns
        return not early and (self.since_ns is None or facts.last_ts >= self.since_ns)


class _Condition(msgspec.Struct, frozen=True):
    """One condition on events, the column whose index answers it, and its values."""

    column: str
    test: str
    values: tuple[int, ...]


def conditions(conn: sqlite3.Connection, wanted: EventFilter, facts: Facts) -> list[_Condition] | None:
    """Return the conditions that a file's events must meet, the rarest first; ``None`` when none can meet them."""
    found: dict[str, _Condition] = {}
    if wanted.nodes:
        marks = ",".join("?" * len(wanted.nodes))
        spools = tuple(row[0] for row in conn.execute(f"SELECT id FROM spools WHERE node IN ({marks})", wanted.nodes))  # noqa: S608
        if not spools:
            return None
        found["spool"] = _any_of("spool", spools)
    texts = {"kind": wanted.kinds, "verdict": wanted.verdicts, "policy": wanted.policies, "exe": wanted.exes}
    for column, asked in texts.items():
        if not asked:
            continue
        words = _words(conn, asked)
        if not words:
            return None
        found[column] = _any_of(column, words)
    if (span := _span(wanted, facts)) is not None:
        found["ts"] = span
    ranked = [found[column] for column in _COLUMNS if column in found]
    return ranked if len(ranked) < 2 else sorted(ranked, key=lambda one: _count(conn, one))  # noqa: PLR2004 - none to choose from


def _any_of(column: str, values: tuple[int, ...]) -> _Condition:
    test = f"{column} = ?" if len(values) == 1 else f"{column} IN ({','.join('?' * len(values))})"
    # A partial index can be used only when the query implies its condition.
    return _Condition(column, f"{test} AND {column} != 0" if column in _PARTIAL else test, values)


def _span(wanted: EventFilter, facts: Facts) -> _Condition | None:
    terms, values = list[str](), list[int]()
    if wanted.since_ns is not None and facts.first_ts < wanted.since_ns:
        terms.append("ts >= ?")
        values.append(wanted.since_ns)
    if wanted.until_ns is not None and facts.last_ts >= wanted.until_ns:
        terms.append("ts < ?")
        values.append(wanted.until_ns)
    if not terms:
        return None  # the whole file lies within
    return _Condition("ts", " AND ".join(terms), tuple(values))


def _words(conn: sqlite3.Connection, texts: Sequence[str]) -> tuple[int, ...]:
    rows = conn.execute(f"SELECT id FROM words WHERE text IN ({','.join('?' * len(texts))})", tuple(texts))  # noqa: S608
    return tuple(row[0] for row in rows)


def _count(conn: sqlite3.Connection, one: _Condition) -> int:
    sql = f"SELECT count(*) FROM (SELECT 1 {_by_index(one)} LIMIT {_COUNTED})"  # noqa: S608 - constants
    return int(conn.execute(sql, one.values).fetchone()[0])


def _by_index(one: _Condition) -> str:
    return f"FROM events INDEXED BY events_{one.column} WHERE {one.test}"


def numbers(conds: Sequence[_Condition], *, newest: bool) -> str:
    """Return the statement for numbers of arrival within two bounds, up to a limit; the values of the conditions come first."""
    first = f"{_by_index(conds[0])} AND " if conds else "FROM events WHERE "
    rest = "".join(f"{one.test} AND " for one in conds[1:])
    return f"SELECT id {first}{rest}id > ? AND id <= ? ORDER BY id {'DESC' if newest else 'ASC'} LIMIT ?"


def read_page(
    catalogue: Catalogue, wanted: EventFilter, *, settled: int, after: int | None, limit: int
) -> list[tuple[int, Event]]:
    """Return up to ``limit`` events with their arrival numbers, oldest first.

    Args:
        catalogue: The files.
        wanted: Which.
        settled: Nothing above this number is shown.
        after: The first ones that arrived after this number; ``None`` for the newest.
        limit: At most so many.
    """
    if limit <= 0:
        return []
    newest, low = after is None, after or 0
    files = [
        (file, facts)
        for file, facts in catalogue.files()
        if wanted.concerns(file, facts) and facts.first_id <= settled and facts.last_id > low
    ]
    files.sort(key=lambda one: -one[1].last_id if newest else one[1].first_id)
    found: list[tuple[int, DayFile]] = []
    high = settled
    for file, facts in files:
        if len(found) >= limit:  # only what lies on this side of the last one found can still be in the page
            low, high = (found[-1][0], high) if newest else (low, found[-1][0])
            if (facts.last_id <= low) if newest else (facts.first_id >= high):
                break
        found += [(number, file) for number in _numbers_in(catalogue, file, wanted, (low, high, limit), newest=newest)]
        found.sort(reverse=newest)
        del found[limit:]
    return _records(catalogue, found)


def _numbers_in(
    catalogue: Catalogue, file: DayFile, wanted: EventFilter, bounds: tuple[int, int, int], *, newest: bool
) -> list[int]:
    facts = catalogue.facts(file)
    if facts is None:
        return []
    try:
        with catalogue.reading(file) as conn:
            conds = conditions(conn, wanted, facts)
            if conds is None:
                return []
            values = [value for one in conds for value in one.values]
            return [number for (number,) in conn.execute(numbers(conds, newest=newest), (*values, *bounds))]
    except StoreError:
        if catalogue.facts(file) is None:  # dropped or set aside at this moment
            return []
        raise


def _records(catalogue: Catalogue, found: Sequence[tuple[int, DayFile]]) -> list[tuple[int, Event]]:
    by_file: dict[DayFile, list[int]] = {}
    for number, file in found:
        by_file.setdefault(file, []).append(number)
    events: list[tuple[int, Event]] = []
    for file, ids in by_file.items():
        try:
            with catalogue.reading(file) as conn:
                for some in (ids[n : n + _BOUND] for n in range(0, len(ids), _BOUND)):
                    rows = conn.execute(f"{_RECORDS} WHERE e.id IN ({','.join('?' * len(some))})", some)
                    events.extend(_events(rows, file.lane))
        except StoreError:
            if catalogue.facts(file) is not None:
                raise
    events.sort(key=lambda one: one[0])
    return events


_RECORDS: Final = (
    "SELECT e.id, s.node, s.epoch, e.seq, e.received_at, e.quarantine, e.record FROM events e JOIN spools s ON s.id = e.spool"
)


def newest_metrics(catalogue: Catalogue, nodes: Iterable[str]) -> list[Event]:
    """Return the newest resource sample of each node that has one."""
    samples: dict[str, Event] = {}
    wanted = set(nodes)
    for file, facts in reversed(catalogue.files(Lane.METRIC)):
        left = wanted - samples.keys()
        if not left or not facts.events:
            continue
        try:
            with catalogue.reading(file) as conn:
                samples |= _samples(conn, file.lane, left)
        except StoreError:
            if catalogue.facts(file) is not None:
                raise
    return [samples[node] for node in sorted(samples)]


def _samples(conn: sqlite3.Connection, lane: Lane, nodes: set[str]) -> dict[str, Event]:
    rows: dict[str, list[tuple[int, Event]]] = {}
    for spool, node in conn.execute("SELECT id, node FROM spools").fetchall():
        if node in nodes:
            rows.setdefault(node, []).extend(_events(conn.execute(_NEWEST_METRICS, (spool, Kind.METRIC)), lane))
    found: dict[str, Event] = {}
    for node, some in rows.items():
        some.sort(key=lambda one: -one[0])
        # Only samples of the resource observer carry the node's totals; other parts report on lane METRIC too.
        sample = next((e for _, e in some if "mem_total_bytes" in e.data), some[0][1] if some else None)
        if sample is not None:
            found[node] = sample
    return found


_NEWEST_METRICS: Final = (  # constants
    f"{_RECORDS} WHERE e.id IN (SELECT id FROM events INDEXED BY events_spool WHERE spool = ? "  # noqa: S608
    "AND kind = (SELECT id FROM words WHERE text = ?) ORDER BY id DESC LIMIT 8)"
)


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


def _events(rows: Iterable[tuple[int, str, str, int, int, str | None, bytes]], lane: Lane) -> Iterator[tuple[int, Event]]:
    for number, node, epoch, seq, received_at, why, record in rows:
        reason = why
        if reason is None:
            try:
                event = decode_event(record)
            except FrameError as err:  # written by a newer garrison, or damaged: shown, never skipped
                reason = str(err)
            else:
                yield number, msgspec.structs.replace(event, node=node, epoch=epoch, seq=seq, lane=lane)
                continue
        yield (
            number,
            Event(
                node=node,
                epoch=epoch,
                seq=seq,
                ts=received_at,
                lane=lane,
                kind=QUARANTINED,
                severity=6,
                data={"reason": reason, "record_hex": record[:256].hex()},
            ),
        )
