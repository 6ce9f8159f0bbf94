"""Which events go next: lanes, credits, pace. Pure; the clock is an argument.

Rules of this file:
- The most precious lane with something unsent goes first, so a new alert overtakes any backlog. After ``_FAIR_AFTER`` batches
  in a row of one lane with others waiting, another has one: a flood of alerts slows the rest down, it does not silence it.
- No more batches are unacknowledged than the master gave credits. The last credit is kept for alerts.
- What is in flight is queued before an alert on the wire. So its size follows the pace of acks: other lanes keep about two
  seconds of the path full, whether it carries 64 kbit/s or 1 Gbit/s.
- After a small batch, lanes other than ALERT wait ``LINGER_S``, and while it is unacknowledged up to ``COMPANY_MAX_S``: a trickle
  of events is not a trickle of frames, and a master that is behind gets fewer and larger ones.
- One sender is one connection: after a reconnect everything unacknowledged is sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from garrison.common import limits
from garrison.common.events import Lane

__all__ = ["Sender", "Want"]

_FAIR_AFTER: Final = 7
_WINDOW_MIN_BYTES: Final = 16 << 10
_WINDOW_START_BYTES: Final = 128 << 10
_FAST_S: Final = 0.5  # an ack within this time: the path carries more
_SLOW_S: Final = 2.0  # an ack after this time: an alert would have waited as long


class Want(NamedTuple):
    """What to read from the spool and send."""

    lane: Lane
    after_seq: int
    max_events: int
    max_bytes: int


class _Flight(NamedTuple):
    lane: Lane
    last_seq: int
    size: int
    sent_at: float


class Sender:
    """State of one connection's sending.

    Args:
        credits_: Batches the master lets be unacknowledged; at least one is taken, at most ``UNACKED_MAX_BATCHES``.
        acked: Numbers the master has, by lane, of the current epoch.
        batch_events: At most so many events in a batch.
    """

    def __init__(self, credits_: int, acked: Mapping[Lane, int], *, batch_events: int = limits.BATCH_MAX_EVENTS) -> None:
        self._batch_events = batch_events
        self._credits = max(1, min(credits_, limits.UNACKED_MAX_BATCHES))
        self._sent = {lane: acked.get(lane, 0) for lane in Lane}
        self._flights: deque[_Flight] = deque()
        self._bytes = 0
        self._window = _WINDOW_START_BYTES
        self._served = dict.fromkeys(Lane, 0)
        self._batches = 0
        self._streak_lane: Lane | None = None
        self._streak = 0
        self._linger_until = self._company_until = 0.0
        self._small: tuple[Lane, int] | None = None

    @property
    def in_flight(self) -> int:
        """Unacknowledged batches."""
        return len(self._flights)

    def oldest_age_s(self, now: float) -> float:
        """Return how long the oldest unacknowledged batch has waited; 0 when there is none."""
        return now - self._flights[0].sent_at if self._flights else 0.0

    def next(self, tails: Mapping[Lane, int], now: float) -> Want | float | None:
        """Return what to send; or the time at which to ask again; or ``None`` when an ack or a new event must come first.

        Args:
            tails: Highest number of every lane that has events.
            now: Monotonic seconds.
        """
        waiting = [lane for lane in Lane if tails.get(lane, 0) > self._sent[lane]]
        if not waiting or len(self._flights) >= self._credits:
            return None
        narrow = bool(self._flights) and (len(self._flights) >= self._credits - 1 or self._bytes >= self._window)
        lane = self._choose(waiting, narrow=narrow)
        if lane == Lane.ALERT:
            return self._want(lane, limits.BATCH_MAX_BYTES)
        if narrow:
            return None
        wait_until = max(self._linger_until, self._company_until)
        if now < wait_until:
            return wait_until
        return self._want(lane, max(_WINDOW_MIN_BYTES, min(self._window // 2, limits.BATCH_MAX_BYTES)))

    def _choose(self, waiting: list[Lane], *, narrow: bool) -> Lane:
        first, others = waiting[0], waiting[1:]
        if not narrow and others and first == self._streak_lane and self._streak >= _FAIR_AFTER:
            return min(others, key=lambda lane: self._served[lane])
        return first

    def _want(self, lane: Lane, max_bytes: int) -> Want:
        return Want(lane, self._sent[lane], self._batch_events, max_bytes)

    def sent(self, want: Want, last_seq: int, size: int, now: float) -> None:
        """Note that ``want`` was answered by a batch up to ``last_seq`` with ``size`` bytes of events."""
        lane = want.lane
        self._streak = self._streak + 1 if lane == self._streak_lane else 1
        self._streak_lane = lane
        self._batches += 1
        self._served[lane] = self._batches
        self._sent[lane] = last_seq
        self._bytes += size
        self._flights.append(_Flight(lane, last_seq, size, now))
        if lane != Lane.ALERT and size < want.max_bytes // 2:
            self._linger_until, self._company_until = now + limits.LINGER_S, now + limits.COMPANY_MAX_S
            self._small = (lane, last_seq)

    def acked(self, lane: Lane, seq: int, now: float) -> None:
        """Note that everything of ``lane`` up to ``seq`` is durable.

        That may be more than this connection sent: batches of the one before may have been stored after ``Welcome`` was written.
        """
        self._sent[lane] = max(self._sent[lane], seq)
        if self._small is not None and self._small[0] == lane and self._small[1] <= seq:
            self._small, self._company_until = None, 0.0
        done = [flight for flight in self._flights if flight.lane == lane and flight.last_seq <= seq]
        if done:
            self._flights = deque(flight for flight in self._flights if flight.lane != lane or flight.last_seq > seq)
            self._bytes -= sum(flight.size for flight in done)
            self._adapt(now - done[-1].sent_at)

    def _adapt(self, took_s: float) -> None:
        if took_s <= _FAST_S:
            self._window = min(self._window * 2, self._credits * limits.BATCH_MAX_BYTES)
        elif took_s >= _SLOW_S:
            self._window = max(self._window // 2, _WINDOW_MIN_BYTES)
