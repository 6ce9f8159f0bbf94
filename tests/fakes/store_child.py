"""A master's store in a process of its own, to be killed at any moment. Started with ``spawn``."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from fakes.clock import DAY_NS, Clock
from fakes.peer import batch_of
from garrison.common.events import Lane
from garrison.common.names import NodeName
from garrison.master.store import Retention, Store

__all__ = ["open_and_close", "take_in"]

PIECES_A_DAY = 4


def open_and_close(path: Path) -> None:
    """Open a store, which may take an upgrade, and close it."""
    Store(path, clock_ns=Clock()).close()


def take_in(path: Path, begun: int, seqs: dict[Lane, list[int]], pipe: Connection) -> None:
    """Store pieces of ten of these numbers, several lanes at once, and tell each ack; midnight comes every few pieces.

    Args:
        path: The store.
        begun: How many rounds there were before: the clock goes on from there.
        seqs: What is to be stored, by lane.
        pipe: Takes ``(lane, acked)``.
    """
    clock = Clock()
    clock.next_day(begun)
    store = Store(path, Retention(days={}), clock)
    pieces = max(len(numbers) for numbers in seqs.values()) // 10
    for n in range(pieces):
        clock.now += DAY_NS // PIECES_A_DAY
        # The piece before comes again with each: a repeat, at times of the day before.
        some = {lane: numbers[max(0, (n - 1) * 10) : (n + 1) * 10] for lane, numbers in seqs.items()}
        futures = {lane: store.submit_batch(NodeName("n1"), batch_of(s, lane=lane)) for lane, s in some.items() if s}
        for lane, future in futures.items():
            pipe.send((int(lane), future.result(30).acked))
    store.close()
    pipe.send(None)
