"""What people do on the node: each command that starts, with whom and where, and how it ended.

Rules of this file:
- Scope ``login``: commands that belong to a login (audit uid) or have a terminal; scope ``all``: every command.
- Secrets are taken out of arguments before the event leaves this file; how many is counted and stands in the event.
- Lost commands are counted by the feed, shown in ``status`` and emitted as a gap event on lane ``shell`` with the exact count.
Owns: which commands become events. Does not own: where they come from (``enforcers.exec_feed``), what is a secret (``redact``).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from garrison.common.errors import FrameError
from garrison.common.events import Actor, Event, Kind, Lane, Scalar, encode_event
from garrison.minion.enforcers.exec_feed import Exec, ExecFeed, Exit, FeedEvent
from garrison.minion.observers.base import Emit, Observer, ObserverStatus
from garrison.minion.observers.redact import redact

__all__ = ["BACKEND", "Scope", "ShellObserver"]

Scope = Literal["login", "all"]
BACKEND: Final = "exec_feed"
_OPEN_MAX: Final = 32_768  # commands whose end is awaited; PID_MAX of a default kernel
_CUT: Final = "[...]"


class ShellObserver(Observer):
    """Emits an ``exec`` event for each command in scope and an ``exit`` event when it ends.

    Args:
        feed: Where commands come from.
        scope: Whose commands.
    """

    name = "shell"

    def __init__(self, feed: ExecFeed, scope: Scope = "login") -> None:
        self._feed, self._scope = feed, scope
        self._emit: Emit | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._open: OrderedDict[int, Actor] = OrderedDict()
        self._commands = self._exits = self._redacted = self._reported_lost = self._forgotten = 0

    def start(self, emit: Emit) -> None:
        """Begin to observe.

        Raises:
            BackendUnsupportedError: The kernel or libbpf cannot do it.
            KernelError: The kernel refused.
        """
        self._emit = emit
        self._reported_lost = self._lost()
        self._unsubscribe = self._feed.subscribe(self._on_event)

    def stop(self) -> None:
        """End the subscription."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
            self._report_lost()

    def status(self) -> ObserverStatus:
        """Return figures; lost commands become a gap event here, every few seconds, not one by one."""
        self._report_lost()
        counters = {
            "commands": self._commands,
            "exits": self._exits,
            "redacted": self._redacted,
            "dropped": self._lost(),
            "untracked": self._feed.counters()["untracked"] + self._forgotten,
        }
        healthy = self._unsubscribe is None or self._feed.alive
        return ObserverStatus(
            name=self.name, healthy=healthy, detail="" if healthy else "commands are no longer read", counters=counters
        )

    # ---- commands ------------------------------------------------------------------------------------------------------
    def _on_event(self, event: FeedEvent) -> None:
        if isinstance(event, Exec):
            self._on_exec(event)
        else:
            self._on_exit(event)

    def _on_exec(self, event: Exec) -> None:
        if not in_scope(event.actor, self._scope):
            self._open.pop(event.actor.pid, None)  # a daemon that left its terminal and runs something else now
            return
        self._commands += 1
        args, redacted = redact(event.actor.args)
        self._redacted += redacted
        actor = msgspec.structs.replace(event.actor, args=args)
        self._open[actor.pid] = msgspec.structs.replace(actor, args=())
        if len(self._open) > _OPEN_MAX:
            self._open.popitem(last=False)
            self._forgotten += 1
        data: dict[str, Scalar | list[Scalar]] = {"redacted": redacted} if redacted else {}
        self._send(
            Event(
                ts=event.ts,
                mono=event.mono,
                lane=Lane.SHELL,
                kind=Kind.EXEC,
                actor=actor,
                object=actor.exe,
                operation="exec",
                result="passed",
                backend=BACKEND,
                data=data,
            )
        )

    def _on_exit(self, event: Exit) -> None:
        actor = self._open.pop(event.actor.pid, None)
        if actor is None:
            return
        self._exits += 1
        data: dict[str, Scalar | list[Scalar]] = {"exit_code": event.exit_code, "duration_ms": event.duration_ms}
        if event.signal:
            data["signal"] = event.signal
        self._send(
            Event(
                ts=event.ts,
                mono=event.mono,
                lane=Lane.SHELL,
                kind=Kind.EXIT,
                actor=actor,
                object=actor.exe,
                operation="exit",
                backend=BACKEND,
                data=data,
            )
        )

    def _send(self, event: Event) -> None:
        if self._emit is not None:
            self._emit(fit(event))

    # ---- losses --------------------------------------------------------------------------------------------------------
    def _lost(self) -> int:
        counters = self._feed.counters()
        return counters["dropped_execs"] + counters["dropped_exits"]

    def _report_lost(self) -> None:
        lost = self._lost()
        if lost > self._reported_lost and self._emit is not None:
            count, self._reported_lost = lost - self._reported_lost, lost
            data: dict[str, Scalar | list[Scalar]] = {
                "count": count,
                "first_seq": 0,
                "last_seq": 0,
                "reason": "more commands than the ring buffer holds; some may have been out of scope",
            }
            self._emit(Event(ts=time.time_ns(), lane=Lane.SHELL, kind=Kind.GAP, severity=6, backend=BACKEND, data=data))


def in_scope(actor: Actor, scope: Scope) -> bool:
    """Return whether a command counts: of a login, or at a terminal."""
    return scope == "all" or actor.auid >= 0 or bool(actor.tty)


def fit(event: Event) -> Event:
    """Return ``event`` with as many arguments as an event may hold; what was cut is marked."""
    while event.actor is not None:
        try:
            encode_event(event)
        except FrameError:
            args = event.actor.args
            kept = args[: len(args) // 2]
            if not args:
                return msgspec.structs.replace(event, actor=msgspec.structs.replace(event.actor, cwd=event.actor.cwd[:256]))
            event = msgspec.structs.replace(event, actor=msgspec.structs.replace(event.actor, args=(*kept, _CUT) if kept else ()))
        else:
            break
    return event
