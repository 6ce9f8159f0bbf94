"""Welcomes nodes in the order of their hellos, and has those wait who came with too many others.

Rules of this file:
- Looked up in groups; a group that cannot be looked up is closed: its nodes come back after a pause.
- While the store is behind, groups are held back, but not for long: nodes with much to send must not keep the others out.
Owns: who waits. Does not own: who is let in, and what a welcome leads to (``collector``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.common.frames import PROTOCOL, Down, Wait, Welcome
from garrison.master.collector.dues import Dues, Facts
from garrison.master.collector.lobby import Lobby
from garrison.master.collector.sessions import Session
from garrison.master.collector.sockets import shut_down
from garrison.master.store import Store

__all__ = ["Usher"]

_log = logging.getLogger(__name__)


class Usher:
    """Welcomes sessions.

    Args:
        store: Whether it is behind.
        dues: What nodes are told.
        send: Sends to a session; returns whether the link took it.
        end: Ends a session whose welcome cannot be sent, with the reason.
        spawn: Runs a task for as long as the collector lives.
        welcomed: Called with a session that was just welcomed, and the generation its node is assigned.
    """

    def __init__(
        self,
        store: Store,
        dues: Dues,
        *,
        send: Callable[[Session, Down], bool],
        end: Callable[[Session, str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        welcomed: Callable[[Session, int], None],
    ) -> None:
        self._store, self._dues, self._send, self._end = store, dues, send, end
        self._spawn, self._welcomed = spawn, welcomed
        self._lobby, self._calm = Lobby(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def enter(self, session: Session) -> None:
        """Have a session welcomed when its turn comes."""
        self._tell(session, self._lobby.enter(session, time.monotonic()))
        if self._task is None or self._task.done():
            self._task = self._spawn(self._welcome_all())

    def leave(self, session: Session) -> None:
        """Forget a session that is over. Idempotent."""
        self._lobby.leave(session)

    def tick(self, now: float) -> None:
        """Tell those who wait longer than they know."""
        for session, wait_s in self._lobby.words(now):
            self._tell(session, wait_s)

    def calm(self) -> None:
        """Note that the store has caught up."""
        self._calm.set()

    def _tell(self, session: Session, wait_s: float) -> None:
        if wait_s:
            self._send(session, Wait(wait_s=wait_s))

    async def _welcome_all(self) -> None:
        while group := self._lobby.take(limits.WELCOMES_AT_ONCE):
            began = time.monotonic()
            await self._until_calm()
            try:
                facts = await asyncio.to_thread(self._facts, group)
            except GarrisonError as err:
                _log.error("nodes=%d welcome=unsent error=%s", len(group), err)
                for session in group:
                    shut_down(session.fd, session.address)
                    self._end(session, "not-welcomed")
                continue
            for session, of_session in zip(group, facts, strict=True):
                self._welcome(session, of_session)
            self._lobby.note(len(group), time.monotonic() - began)

    async def _until_calm(self) -> None:
        if self._store.waiting_bytes > limits.STORE_WAITING_MAX_BYTES // 2:
            self._calm.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.WELCOME_HOLD_MAX_S):
                    await self._calm.wait()

    def _facts(self, group: list[Session]) -> list[Facts]:
        return [self._dues.facts(session.node, session.hello) for session in group]

    def _welcome(self, session: Session, facts: Facts) -> None:
        acked, generation, seen = facts
        if max(*acked.values(), seen, 0) >= session.hello.next_seq:
            # Its spool is an older copy: numbers it will use were used. The node sees that in the welcome and begins a new epoch.
            _log.warning("node=%s restored=yes epoch=%s", session.node, session.hello.epoch)
        welcome = Welcome(
            proto=min(PROTOCOL, session.hello.proto),
            credits=limits.UNACKED_MAX_BATCHES,
            acked={str(lane): seq for lane, seq in acked.items()},
            generation=generation,
            time_ns=time.time_ns(),
            confirms=True,
            relays=True,
            seen=seen,
        )
        if not session.over and self._send(session, welcome):
            session.welcomed = True
            self._welcomed(session, generation)
