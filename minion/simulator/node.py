"""One simulated node, as rules without I/O: what it says when, what it keeps, when it comes back.

Rules of this file:
- What is sent when is decided by the agent's own ``Sender``, how long to wait by its ``Waits``, what is said by its frames.
- The spool is a list in memory: an event is kept until it is acknowledged, over all connections. No disk: thousands of spools
  on one disk would measure that disk.
- A simulated node applies no assignment and runs no command, and says so.
- Time is the caller's monotonic clock.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import deque
from enum import Enum, auto
from typing import Final, NamedTuple

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import Actor, Event, Kind, Lane, encode_event
from garrison.common.frames import (
    Ack,
    Assignment,
    Batch,
    Down,
    Hello,
    Job,
    JobResult,
    Ping,
    Pong,
    Refused,
    Up,
    Wait,
    Welcome,
    decode_down,
)
from garrison.common.names import NodeName
from garrison.minion.link.causes import Failure
from garrison.minion.link.sender import Sender, Want
from garrison.minion.link.settings import LinkSettings
from garrison.minion.link.waits import Waits
from garrison.minion.simulator.figures import Figures

__all__ = ["Phase", "SimulatedNode"]

_LANE: Final = Lane.SHELL
_BOOT: Final = "0123456789abcdef" * 2


class Phase(Enum):
    """How far a node is."""

    AWAY = auto()  # no connection
    KNOCKING = auto()  # connecting and shaking hands
    GREETING = auto()  # said hello
    SERVED = auto()


class _Kept(NamedTuple):
    seq: int
    made_at: float
    raw: bytes


class SimulatedNode:
    """A node.

    Args:
        name: Its name.
        settings: The link's patience.
        figures: Where it counts.
        rate: Events a second.
        event_bytes: About so many bytes each.
        now: Monotonic seconds.
    """

    def __init__(
        self, name: NodeName, settings: LinkSettings, figures: Figures, *, rate: float, event_bytes: int, now: float
    ) -> None:
        self.name, self._settings, self._figures = name, settings, figures
        self._waits = Waits(settings)
        self._instance, self.epoch = secrets.token_hex(16), secrets.token_hex(16)
        self._padding = "x" * max(0, event_bytes - 120)
        self.pace(rate, now)
        self._kept: deque[_Kept] = deque()
        self._next_seq = 1
        self._sender = Sender(1, {})
        self._linger_until = 0.0
        self._sent_at = self._heard_at = self._since = now
        self._ping_n, self._pinged_at = 0, 0.0
        self._until = now  # the end of patience, or of a wait
        self._latest = now
        self.phase = Phase.AWAY

    # ---- connections -----------------------------------------------------------------------------------------------------
    def knock(self, now: float) -> None:
        """Note that a connection is being made."""
        self.phase = Phase.KNOCKING
        self._until = now + self._settings.connect_s + self._settings.handshake_s

    def greet(self, now: float) -> Hello:
        """Return what to say on a connection that has just been made."""
        self.phase, self._heard_at, self._sent_at = Phase.GREETING, now, now
        self._until = now + self._settings.handshake_s
        self._latest = now + limits.WELCOME_WAIT_MAX_S
        return Hello(
            node=self.name,
            instance=self._instance,
            boot=_BOOT,
            version="simulated",
            epoch=self.epoch,
            next_seq=self._next_seq,
            unacked={str(int(_LANE)): len(self._kept)},
            backends={"simulated": "ok"},
            grains={"kernel": "simulated", "os": "simulated"},
            waits=True,
        )

    def lose(self, now: float, kind: Failure) -> None:
        """Note that the connection is over, or never came about, and when to try again."""
        if self.phase is Phase.SERVED:
            self._waits.served(now - self._since)
            self._figures.served -= 1
        self.phase = Phase.AWAY
        self._until = now + self._waits.after(kind)

    def leave(self, until: float) -> None:
        """Be cut off until ``until``; the connection is the caller's to close."""
        if self.phase is Phase.SERVED:
            self._figures.served -= 1
        self.phase = Phase.AWAY
        self._until = until

    def overdue(self, now: float) -> Failure | None:
        """Return why the connection is to be given up, if it is."""
        if self.phase is Phase.KNOCKING and now >= self._until:
            return Failure.UNREACHABLE
        if self.phase is Phase.GREETING and now >= self._until:
            return Failure.LOST
        if self.phase is Phase.SERVED and (
            now - self._heard_at > self._settings.dead_s or self._sender.oldest_age_s(now) > self._settings.ack_s
        ):
            return Failure.LOST
        return None

    def wants_connection(self, now: float) -> bool:
        """Return whether it is time to connect."""
        return self.phase is Phase.AWAY and now >= self._until

    # ---- messages --------------------------------------------------------------------------------------------------------
    def hear(self, frame: bytes, now: float) -> Up | Failure | None:
        """Take a frame in; return the answer to it, or why the connection is to be given up.

        A frame that cannot be read is counted as refused ``frame``.
        """
        self._heard_at = now
        try:
            message = decode_down(frame)
        except FrameError:
            self._figures.refused["frame"] += 1
            return Failure.PROTOCOL
        return self._take(message, now)

    def _take(self, message: Down, now: float) -> Up | Failure | None:
        match message:
            case Ack():
                self._on_ack(message, now)
            case Ping():
                return Pong(n=message.n)
            case Welcome():
                self._on_welcome(message, now)
            case Wait():
                self._figures.told_to_wait += 1
                self._until = min(now + message.wait_s + self._settings.handshake_s, self._latest)
            case Refused():
                self._figures.refused[message.code] += 1
                return Failure.REFUSED
            case Job():
                return JobResult(job=message.job, exit_code=-1, error="a simulated node runs nothing")
            case Assignment():
                self._figures.assignments += 1
            case _:
                pass
        return None

    def _on_welcome(self, welcome: Welcome, now: float) -> None:
        if self.phase is not Phase.GREETING:
            return
        acked = welcome.acked.get(str(int(_LANE)), 0)
        self._forget(acked, now)
        self._sender = Sender(welcome.credits, {_LANE: acked})
        self.phase, self._since = Phase.SERVED, now
        self._figures.served += 1
        self._figures.welcomes += 1

    def _on_ack(self, ack: Ack, now: float) -> None:
        if ack.epoch == self.epoch and ack.lane == _LANE:
            self._forget(ack.seq, now)
            self._sender.acked(_LANE, ack.seq, now)

    def _forget(self, seq: int, now: float) -> None:
        while self._kept and self._kept[0].seq <= seq:
            self._figures.acked += 1
            self._figures.latencies.add(now - self._kept.popleft().made_at)

    # ---- what it says by itself --------------------------------------------------------------------------------------------
    def make_due(self, now: float) -> None:
        """Make the events that are due."""
        while self._period_s and now >= self._event_at:
            self.make(self._event_at)
            self._event_at += self._period_s

    def make(self, now: float) -> None:
        """Make an event."""
        seq = self._next_seq
        self._next_seq += 1
        actor = Actor(pid=seq, ppid=1, exe="/usr/bin/true", args=("true", self._padding), cwd="/", uid=0)
        event = Event(
            ts=time.time_ns(), boot=_BOOT, lane=_LANE, kind=Kind.EXEC, actor=actor, object=f"/{self.name}/{seq}", operation="exec"
        )
        self._kept.append(_Kept(seq, now, encode_event(event)))
        self._figures.made += 1

    def pace(self, rate: float, now: float) -> None:
        """Make ``rate`` events a second from now on."""
        self._period_s = 1 / rate if rate else 0.0
        self._event_at = now + random.uniform(0, self._period_s)  # noqa: S311 - spreads, hides nothing

    def say(self, now: float) -> Up | None:
        """Return what to send now, if there is anything; to be called until there is not."""
        if self.phase is not Phase.SERVED:
            return None
        if self._kept:
            answer = self._sender.next({_LANE: self._kept[-1].seq}, now)
            if isinstance(answer, Want):
                return self._batch(answer, now)
            self._linger_until = answer if answer is not None else 0.0
        if now >= self._ping_due():
            self._ping_n += 1
            self._pinged_at = self._sent_at = now
            return Ping(n=self._ping_n)
        return None

    def _ping_due(self) -> float:
        s = self._settings
        return max(min(self._sent_at, self._heard_at) + s.ping_s, self._pinged_at + min(s.ping_s, s.dead_s / 4))

    def _batch(self, want: Want, now: float) -> Batch:
        part: list[_Kept] = []
        size = 0
        for kept in self._kept:
            if kept.seq <= want.after_seq:
                continue
            size += len(kept.raw)
            if part and (size > want.max_bytes or len(part) >= want.max_events):
                size -= len(kept.raw)
                break
            part.append(kept)
        self._sender.sent(want, part[-1].seq, size, now)
        self._sent_at = now
        self._figures.sent += len(part)
        return Batch(epoch=self.epoch, lane=int(_LANE), seqs=[kept.seq for kept in part], events=[kept.raw for kept in part])

    def due(self, now: float) -> float:
        """Return when to look at this node again, if nothing comes before."""
        if self.phase is not Phase.SERVED:
            return min(self._until, self._event_at) if self._period_s else self._until
        times = [self._ping_due(), self._heard_at + self._settings.dead_s]
        if self._period_s:
            times.append(self._event_at)
        if self._linger_until > now:
            times.append(self._linger_until)
        return max(now + 0.001, min(times))
