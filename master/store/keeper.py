"""Keeps the store within its bounds, and says what it holds.

Rules of this file:
- What goes is recorded first, as an event of the master's own, then dropped: killed in between, it is told twice.
- Age is looked at once a day, after midnight UTC, the first time on the day after a store was made or brought into files by
  day; the cap whenever it is asked.
Owns: carrying out what ``retention`` decides. Does not own: when (the master's main loop).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.events import Event, Lane, Scalar
from garrison.master.store.dayfile import day_of
from garrison.master.store.eventlog import EventLog
from garrison.master.store.retention import Due, Held, Retention, due, leaves_on

__all__ = ["MASTER_NODE", "RETENTION_KIND", "DayInfo", "Keeper", "LaneInfo", "NextDue", "StoreInfo"]

MASTER_NODE: Final = "(master)"  # "node" of what the master records of itself; no node can have that name
RETENTION_KIND: Final = "retention"
_PRUNED_ON: Final = "pruned_on"

_log = logging.getLogger(__name__)


class DayInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A day of a lane: its events, its space, when the first and the last of them happened by the nodes' clocks."""

    day: str
    lane: str
    events: int
    bytes: int
    first: int
    last: int


class LaneInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A lane over all days; ``oldest`` is empty when it holds nothing, ``retention_days`` 0 means for ever."""

    lane: str
    days: int
    events: int
    bytes: int
    oldest: str
    newest: str
    retention_days: int


class NextDue(msgspec.Struct, frozen=True, kw_only=True):
    """What retention drops next, and on which day; ``on`` is empty for what the size cap takes."""

    day: str
    lane: str
    events: int
    bytes: int
    on: str


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the store holds. ``docs/master.md`` describes every field."""

    directory: str
    today: str
    events: int
    bytes: int
    max_bytes: int
    other_bytes: int
    oldest: str
    lanes: list[LaneInfo]
    days: list[DayInfo]
    next: NextDue | None
    damaged: list[str]


class Keeper:
    """Retention and figures.

    Args:
        log: The events.
        rules: How long they are kept.
        path: ``store.db``.
        note: Reads a note of the store's own.
        set_note: Keeps one.
    """

    def __init__(
        self, log: EventLog, rules: Retention, path: Path, note: Callable[[str], str], set_note: Callable[[str, str], None]
    ) -> None:
        self._log, self._rules, self._path = log, rules, path
        self._note, self._set_note = note, set_note
        self._pruning = threading.Lock()

    def tidy(self) -> list[Due]:
        """Drop what has to go now; to be called again and again. Returns what went."""
        today = self._today()
        pruned_on = self._note(_PRUNED_ON)
        new_day = bool(pruned_on) and pruned_on != today
        gone = self.prune(by_age=new_day)
        if pruned_on != today:
            self._set_note(_PRUNED_ON, today)
        return gone

    def prune(self, *, by_age: bool = True, check: bool = False) -> list[Due]:
        """Drop what has to go.

        Args:
            by_age: Look at age too, not only at the cap.
            check: Drop nothing; only return what would go.

        Raises:
            StoreError: The disk refused; what is returned by no call may be gone, and is recorded.
        """
        with self._pruning:
            if not check:
                self._log.turn()  # marks are carried into the files of today before an older one goes
            plan = due(self._held(), self._rules, self._today(), by_age=by_age)
            if check:
                return plan
            with self._log.dropping:
                for one in plan:
                    self._record(one)
                    self._log.drop([one.file])
            return plan

    def _record(self, one: Due) -> None:
        _log.warning(
            "events=dropped day=%s lane=%s events=%d bytes=%d reason=%s", one.day, one.lane, one.events, one.bytes, one.reason
        )
        data: dict[str, Scalar | list[Scalar]] = {
            "day": one.day,
            "of_lane": one.lane,
            "count": one.events,
            "bytes": one.bytes,
            "reason": one.reason,
        }
        now, name = self._log.clock_ns(), one.file.name
        event = Event(node=MASTER_NODE, ts=now, lane=Lane.STATE, kind=RETENTION_KIND, severity=3, object=name, data=data)
        self._log.record(event)

    def info(self) -> StoreInfo:
        """Return what the store holds."""
        catalogue = self._log.catalogue
        days = [
            DayInfo(
                day=file.day,
                lane=file.lane.name.lower(),
                events=facts.events,
                bytes=catalogue.size_bytes(file),
                first=facts.first_ts,
                last=facts.last_ts,
            )
            for file, facts in catalogue.files()
        ]
        other = sum(path.stat().st_size for path in self._path.parent.glob(f"{self._path.name}*"))
        return StoreInfo(
            directory=str(self._path.parent),
            today=self._today(),
            events=sum(day.events for day in days),
            bytes=sum(day.bytes for day in days),
            max_bytes=self._rules.max_bytes,
            other_bytes=other,
            oldest=min((day.day for day in days if day.events), default=""),
            lanes=[self._lane(lane, [day for day in days if day.lane == lane.name.lower()]) for lane in Lane],
            days=days,
            next=self._next(),
            damaged=catalogue.damaged(),
        )

    def _lane(self, lane: Lane, days: list[DayInfo]) -> LaneInfo:
        held = [day.day for day in days if day.events]
        return LaneInfo(
            lane=lane.name.lower(),
            days=len(held),
            events=sum(day.events for day in days),
            bytes=sum(day.bytes for day in days),
            oldest=min(held, default=""),
            newest=max(held, default=""),
            retention_days=self._rules.days.get(lane, 0),
        )

    def _next(self) -> NextDue | None:
        held, today = self._held(), self._today()
        if now := due(held, self._rules, today):
            one = now[0]
            on = leaves_on(one.file, self._rules)
            on = on if on is not None and on <= today else ""
            return NextDue(day=one.day, lane=one.lane, events=one.events, bytes=one.bytes, on=on)
        waiting = [(on, one) for one in held if one.events and (on := leaves_on(one.file, self._rules)) is not None]
        if not waiting:
            return None
        on, first = min(waiting, key=lambda pair: (pair[0], pair[1].file))
        file = first.file
        return NextDue(day=file.day, lane=file.lane.name.lower(), events=first.events, bytes=first.bytes, on=on)

    def _held(self) -> list[Held]:
        catalogue = self._log.catalogue
        return [Held(file=file, events=facts.events, bytes=catalogue.size_bytes(file)) for file, facts in catalogue.files()]

    def _today(self) -> str:
        return day_of(self._log.clock_ns())
