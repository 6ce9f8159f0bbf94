"""A wall clock that only the test moves."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["DAY_NS", "Clock"]

DAY_NS = 86_400 * 10**9


class Clock:
    """Begins at noon of the first of May 2026, UTC."""

    def __init__(self) -> None:
        self.now = int(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()) * 10**9

    def __call__(self) -> int:
        return self.now

    def next_day(self, days: int = 1) -> None:
        self.now += days * DAY_NS
