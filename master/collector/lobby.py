"""Who said hello and waits for a welcome, as rules without I/O: served in order, told for how long when it is long.

After a cut all nodes come back at once. Each welcome costs a look into the store; a node that got none in
``HANDSHAKE_MAX_S`` would give up and shake hands anew, which costs the master more than the welcome: with enough nodes it would
do nothing else.

Rules of this file:
- First come, first served.
- A node that will wait longer than it would by itself is told so in time, and again when that was not enough. What it is told has
  some room and is jittered: nodes whose patience ends must not come back in the same instant.
- A node of a version that cannot be told waits like the others, and may give up.
- Time is the caller's monotonic clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from garrison.common import limits
from garrison.master.collector.sessions import Session

__all__ = ["Lobby"]

_PACE_START: Final = 500.0  # welcomes a second before any was measured: less than a slow master gives
_SMOOTH: Final = 0.2  # share of the newest measurement
_ROOM: Final = 1.25
_AHEAD_S: Final = 4.0  # told so long before its patience ends: the message itself may wait behind others


@dataclass(slots=True)
class _Guest:
    session: Session
    patient_until: float


class Lobby:
    """Sessions that wait for their welcome."""

    def __init__(self) -> None:
        self._guests: dict[bytes, _Guest] = {}
        self._pace = _PACE_START

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, session: Session, now: float) -> float:
        """Take a session in, last; return for how many seconds it is to be told to wait, 0 for not at all."""
        self.leave(session)
        guest = _Guest(session, now + limits.HANDSHAKE_MAX_S)
        self._guests[session.routing_id] = guest
        return self._word(guest, len(self._guests), now)

    def leave(self, session: Session) -> None:
        """Forget a session: its connection ended, or another took its place. Idempotent."""
        self._guests.pop(session.routing_id, None)

    def take(self, count: int) -> list[Session]:
        """Return the first so many, and forget them."""
        first = [guest.session for _, guest in zip(range(count), self._guests.values(), strict=False)]
        for session in first:
            del self._guests[session.routing_id]
        return first

    def note(self, count: int, took_s: float) -> None:
        """Note that ``count`` welcomes took so long."""
        self._pace += _SMOOTH * (count / max(took_s, 0.001) - self._pace)

    def words(self, now: float) -> Iterator[tuple[Session, float]]:
        """Yield who is to be told to wait, and for how many seconds; to be asked every second or so."""
        for place, guest in enumerate(tuple(self._guests.values()), start=1):
            wait_s = self._word(guest, place, now)
            if wait_s:
                yield guest.session, wait_s

    def _word(self, guest: _Guest, place: int, now: float) -> float:
        expected_s = place / self._pace
        if not guest.session.hello.waits or now + expected_s < guest.patient_until - _AHEAD_S:
            return 0.0
        wait_s = min(limits.WELCOME_WAIT_MAX_S, expected_s * _ROOM + random.uniform(1.0, 5.0))  # noqa: S311 - spreads, hides nothing
        guest.patient_until = now + wait_s + limits.HANDSHAKE_MAX_S
        return wait_s
