"""Finds out whether the first holder of a key lives, when a second one shows up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.frames import Down, Ping
from garrison.common.names import NodeName
from garrison.master.collector.sessions import Session, Sessions

__all__ = ["Clone", "living"]

_PROBE_EVERY_S: Final = 0.2


class Clone(msgspec.Struct, frozen=True, kw_only=True):
    """A second agent that showed up under the key of one that lives.

    Attributes:
        instance: Its instance.
        address: Where it came from.
        at: When, ns since 1970 UTC.
    """

    instance: str
    address: str
    at: int


async def living(sessions: Sessions, node: NodeName, send: Callable[[Session, Down], bool]) -> Session | None:
    """Return the session of ``node`` once it was heard; ``None`` when its connection ended or nothing came in time."""
    first = sessions.of_node(node)
    asked = time.monotonic()
    # Asked again and again: libzmq says that a connection is gone only a moment after it went.
    while first is not None and sessions.of_node(node) is first and send(first, Ping()):
        await asyncio.sleep(_PROBE_EVERY_S)
        if first.heard > asked:
            return first
        if time.monotonic() - asked > limits.CLONE_PROBE_S:
            return None
    return None
