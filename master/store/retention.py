"""Which days of which lanes have to go: by age, then by size. Pure.

Rules of this file:
- A day goes when its last event is older than the lane's days; 0 keeps a lane for ever.
- Over the size cap the least precious lane gives way first, its oldest day first.
- The day of today, and any that the clock has yet to reach, never goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import msgspec

from garrison.common.events import Lane
from garrison.master.store.dayfile import DayFile

__all__ = ["Due", "Held", "Retention", "due", "leaves_on"]


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long events are kept.

    Attributes:
        days: By lane; 0 for ever.
        max_bytes: Of all files together; 0 for no cap.
    """

    days: Mapping[Lane, int]
    max_bytes: int = 0


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is there: its events and its space."""

    file: DayFile
    events: int
    bytes: int


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A file that has to go, and why."""

    day: str
    lane: str
    events: int
    bytes: int
    reason: str

    @property
    def file(self) -> DayFile:
        """The file."""
        return DayFile(self.day, Lane[self.lane.upper()])


def due(held: Sequence[Held], rules: Retention, today: str, *, by_age: bool = True) -> list[Due]:
    """Return what has to go, in the order in which it goes.

    Args:
        held: All files.
        rules: How long they are kept.
        today: The UTC day.
        by_age: Look at their age too, not only at the cap.
    """
    past = [one for one in held if one.file.day < today]
    old = [one for one in past if by_age and (leaves := leaves_on(one.file, rules)) is not None and leaves <= today]
    gone = [_due(one, f"older than {rules.days[one.file.lane]} days") for one in sorted(old, key=lambda one: one.file)]
    over = sum(one.bytes for one in held) - sum(one.bytes for one in old) - rules.max_bytes
    if rules.max_bytes:
        for one in sorted((one for one in past if one not in old), key=lambda one: (-one.file.lane, one.file.day)):
            if over <= 0:
                break
            over -= one.bytes
            gone.append(_due(one, f"all days together took more than {rules.max_bytes} bytes"))
    return gone


def leaves_on(file: DayFile, rules: Retention) -> str | None:
    """Return the day on which a file's age is reached; ``None`` for never."""
    days = rules.days.get(file.lane, 0)
    return (date.fromisoformat(file.day) + timedelta(days=days + 1)).isoformat() if days else None


def _due(one: Held, reason: str) -> Due:
    return Due(day=one.file.day, lane=one.file.lane.name.lower(), events=one.events, bytes=one.bytes, reason=reason)
