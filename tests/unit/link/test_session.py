"""A conversation ends when it is told to, whatever happens in that moment."""

from __future__ import annotations

import asyncio

import pytest

from garrison.minion.link import session
from garrison.minion.link.session import Session


async def test_cancellation_that_comes_with_a_wake_up_is_not_lost():
    """A commit wakes the feed in the moment in which the connection dies: the feed must not go on waiting for the next one."""
    waiting = Session.__new__(Session)
    waiting._wake = asyncio.Event()
    task = asyncio.create_task(waiting._wait_awake(30))
    await asyncio.sleep(0)

    waiting._wake.set()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_that_loses_its_first_cancellation_is_ended_by_the_next(monkeypatch):
    monkeypatch.setattr(session, "_CANCEL_AGAIN_S", 0.01)
    losses = 0

    async def stubborn():
        nonlocal losses
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            losses += 1
        await asyncio.sleep(3600)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await session._end([task])

    assert task.cancelled()
    assert losses == 1
