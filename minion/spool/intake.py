"""The queue before the disk: takes events from any thread without blocking, hands them to the one writer in groups.

Rules of this file:
- ``put`` never waits for the disk. Above its bounds it counts by lane and reason instead of keeping; the counts leave with the
  next group and become gap events.
- The less precious a lane, the earlier it is counted instead of kept: a flood of metrics cannot displace an alert.
- Order within a lane is the order of ``put``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from garrison.common import limits
from garrison.common.events import Lane
from garrison.minion.spool.segment import Item

__all__ = ["Intake", "Work"]

# Part of the queue up to which a lane is kept.
_LANE_SHARE: Final = {Lane.ALERT: 1.0, Lane.SHELL: 0.9, Lane.ERROR: 0.8, Lane.STATE: 0.7, Lane.METRIC: 0.6}
_LANE_EVENTS: Final = {lane: int(limits.SPOOL_QUEUE_MAX_EVENTS * share) for lane, share in _LANE_SHARE.items()}
_LANE_BYTES: Final = {lane: int(limits.SPOOL_QUEUE_MAX_BYTES * share) for lane, share in _LANE_SHARE.items()}
_LOSSES_EVERY_S: Final = 1.0


@dataclass
class Work:
    """What one transaction has to do.

    Attributes:
        items: Events to store.
        losses: Events that could not be kept, by lane and reason.
        acks: Numbers up to which the master has a lane, with the epoch they are of.
        damaged: Segments found unreadable: lane and first number.
        renew: Why a new epoch must begin; empty for none.
        marks: Events queued, events lost and orders given, in all, that are done with once this work is done.
    """

    items: list[Item] = field(default_factory=list)
    losses: Counter[tuple[Lane, str]] = field(default_factory=Counter)
    acks: dict[tuple[str, Lane], int] = field(default_factory=dict)
    damaged: set[tuple[Lane, int]] = field(default_factory=set)
    renew: str = ""
    marks: tuple[int, int, int] = (0, 0, 0)

    def __bool__(self) -> bool:
        return bool(self.items or self.losses or self.acks or self.damaged or self.renew)


class Intake:
    """The queue. One writer calls ``take`` and ``wait_closed``; everything else may be called from any thread."""

    def __init__(self) -> None:
        self._cond = threading.Condition(threading.Lock())
        self._queue: deque[Item] = deque()
        self._bytes = 0
        self._next = Work()
        self._losses: Counter[tuple[Lane, str]] = Counter()
        self._losses_due = 0.0
        self._puts = self._lost = self._lost_taken = self._orders = 0
        self._hurry = self._closed = self._writer_waits = False

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def marks(self) -> tuple[int, int, int]:
        """Events queued, events lost and orders (acks and the like) given so far."""
        with self._cond:
            return self._puts, self._lost, self._orders

    def put(self, item: Item, full_reason: str) -> None:
        """Queue ``item``, or count it under ``full_reason`` when the queue is full."""
        with self._cond:
            length = len(self._queue)
            if self._closed or length >= _LANE_EVENTS[item.lane] or self._bytes + len(item.raw) > _LANE_BYTES[item.lane]:
                self._count(item.lane, full_reason, item.weight)
                return
            self._append(item, length)

    def offer(self, item: Item) -> int:
        """Queue ``item`` if there is room; return its place among all that were queued, 0 when there is none."""
        with self._cond:
            length = len(self._queue)
            if self._closed or length >= _LANE_EVENTS[item.lane] or self._bytes + len(item.raw) > _LANE_BYTES[item.lane]:
                return 0
            self._append(item, length)
            return self._puts

    def _append(self, item: Item, length: int) -> None:
        self._queue.append(item)
        self._bytes += len(item.raw)
        self._puts += 1
        if self._writer_waits and (length == 0 or length + 1 >= limits.SPOOL_COMMIT_MAX_EVENTS):
            self._cond.notify()

    def lose(self, lane: Lane, reason: str, weight: int = 1) -> None:
        """Count an event that cannot be stored."""
        with self._cond:
            self._count(lane, reason, weight)

    def _count(self, lane: Lane, reason: str, weight: int) -> None:
        self._losses[lane, reason] += weight
        self._lost += 1
        if self._writer_waits:
            self._cond.notify()

    def ack(self, epoch: str, lane: Lane, seq: int) -> None:
        """Have everything up to ``seq`` deleted."""
        with self._cond:
            key = (epoch, lane)
            self._next.acks[key] = max(seq, self._next.acks.get(key, 0))
            self._orders += 1
            self._cond.notify()

    def damaged(self, lane: Lane, first_seq: int) -> None:
        """Have an unreadable segment replaced by a gap event."""
        with self._cond:
            self._next.damaged.add((lane, first_seq))
            self._orders += 1
            self._cond.notify()

    def renew(self, reason: str) -> None:
        """Have a new epoch begun."""
        with self._cond:
            self._next.renew = reason
            self._orders += 1
            self._cond.notify()

    def attend(self) -> None:
        """Have the writer look at the file now; ``flush`` waits until it did."""
        with self._cond:
            self._orders += 1
            self._hurry = True
            self._cond.notify()

    def hurry(self) -> None:
        """Have what is queued committed now."""
        with self._cond:
            self._hurry = True
            self._cond.notify()

    def close(self) -> None:
        """Refuse further events; ``take`` returns what is left and then ``None``."""
        with self._cond:
            self._closed = True
            self._cond.notify_all()

    def take(self) -> Work | None:
        """Return the next work, waiting for some and then ``SPOOL_COMMIT_MAX_S`` for company; ``None`` once closed and empty."""
        with self._cond:
            self._wait_for_work()
            work, self._next = self._next, Work()
            count = min(len(self._queue), limits.SPOOL_COMMIT_MAX_EVENTS)
            work.items = [self._queue.popleft() for _ in range(count)]
            self._bytes -= sum(len(item.raw) for item in work.items)
            self._take_losses(work)
            work.marks = (self._puts - len(self._queue), self._lost_taken, self._orders)
            if not self._queue:
                self._hurry = False
            return work if work or not self._closed else None

    def _take_losses(self, work: Work) -> None:
        # At most once a second: a flood must not become a flood of gap events.
        now = time.monotonic()
        if self._losses and (now >= self._losses_due or self._hurry or self._closed):
            work.losses, self._losses = self._losses, Counter()
            self._lost_taken = self._lost
            self._losses_due = now + _LOSSES_EVERY_S

    def _wait_for_work(self) -> None:
        self._writer_waits = True
        while not (self._queue or self._next or self._closed or self._hurry):
            left = self._losses_due - time.monotonic() if self._losses else None
            if left is not None and left <= 0:
                break
            self._cond.wait(left)
        deadline = time.monotonic() + limits.SPOOL_COMMIT_MAX_S
        while len(self._queue) < limits.SPOOL_COMMIT_MAX_EVENTS and not (self._closed or self._hurry):
            left = deadline - time.monotonic()
            if left <= 0 or not self._cond.wait(left):
                break
        self._writer_waits = False

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait for ``close``; returns whether it came."""
        with self._cond:
            self._cond.wait_for(lambda: self._closed, timeout_s)
            return self._closed
