"""Simulated nodes of one process: a DEALER socket each, one poll over all of them.

Why not the agent's ``Link``: it has a spool with a thread, a monitor socket and six tasks a node; ten thousand of them would keep
more cores busy than the master they are to test. Keys, frames, lanes, credits, waits and patience are the same code.

Rules of this file:
- libzmq does not reconnect by itself, as in the agent: a connection has one life. ``IMMEDIATE`` keeps a socket from being
  writable before its handshake succeeded; one that is not writable any more has lost its connection.
- Figures are answered as they are now; a command is done once it was answered.
"""

from __future__ import annotations

import heapq
import itertools
import random
import resource
import select
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final

import msgspec
import zmq

from garrison.common import limits
from garrison.common.frames import Up, encode_frame
from garrison.minion.link.causes import Failure
from garrison.minion.link.settings import LinkSettings
from garrison.minion.simulator.figures import Figures
from garrison.minion.simulator.node import Phase, SimulatedNode
from garrison.minion.simulator.plan import FleetPlan, NodeKey

__all__ = ["Cut", "Pace", "Pool", "Report", "Stop", "run_pool"]

_QUEUE_MESSAGES: Final = 64  # as the agent's connection has
_SPARE_SOCKETS: Final = 64
_LONGEST_WAIT_S: Final = 1.0
_ROUND: Final = 512  # sockets looked at before timers get a turn

_clock = time.monotonic


class Cut(msgspec.Struct, frozen=True):
    """Drop connections.

    Attributes:
        share: Of the nodes, 0 to 1, chosen by chance.
        away_s: They stay away so long, then all come back in the same instant.
    """

    share: float
    away_s: float


class Report(msgspec.Struct, frozen=True):
    """Tell the figures."""


class Pace(msgspec.Struct, frozen=True):
    """Make so many events a second on each node from now on; 0 for none."""

    rate: float


class Stop(msgspec.Struct, frozen=True):
    """Drop everything and end."""


class _Seat:
    """A node and its connection, if it has one."""

    __slots__ = ("due", "node", "settings", "socket")

    def __init__(self, node: SimulatedNode, settings: LinkSettings) -> None:
        self.node, self.settings = node, settings
        self.socket: zmq.Socket[bytes] | None = None
        self.due = 0.0


class Pool:
    """Many nodes in this process.

    Args:
        plan: What to simulate.
        keys: Its nodes.
    """

    def __init__(self, plan: FleetPlan, keys: Sequence[NodeKey]) -> None:
        self.figures = Figures(nodes=len(keys))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 2 * len(keys) + _SPARE_SOCKETS)  # closed ones count until libzmq buried them
        self._poll = select.epoll()
        self._by_fd: dict[int, _Seat] = {}
        self._timers: list[tuple[float, int, _Seat]] = []
        self._numbers = itertools.count()
        now = _clock()
        self._seats = [self._seat(plan, key, now) for key in keys]
        for seat in self._seats:
            self._set_timer(seat, now)

    def _seat(self, plan: FleetPlan, key: NodeKey, now: float) -> _Seat:
        settings = LinkSettings(
            masters=(plan.endpoint,), server_key=plan.server_key, public_key=key.public, secret_key=key.secret
        )
        node = SimulatedNode(key.name, settings, self.figures, rate=plan.rate, event_bytes=plan.event_bytes, now=now)
        return _Seat(node, settings)

    # ---- the loop --------------------------------------------------------------------------------------------------------
    def serve(self, pipe: Connection) -> None:
        """Run until told to stop."""
        self._poll.register(pipe.fileno(), select.EPOLLIN)
        while True:
            for fd, _ in self._poll.poll(self._wait_s(), _ROUND):
                seat = self._by_fd.get(fd)
                if seat is not None:
                    self._look(seat, _clock())
                elif fd == pipe.fileno() and not self._obey(pipe):
                    return
            self._run_timers()

    def close(self) -> None:
        """Drop all connections."""
        for seat in self._seats:
            self._hang_up(seat)
        self._context.destroy(linger=0)
        self._poll.close()

    def _obey(self, pipe: Connection) -> bool:
        try:
            command = pipe.recv()
        except EOFError:  # whoever drives this pool is gone
            return False
        if isinstance(command, Cut):
            self._cut(command)
        elif isinstance(command, Pace):
            self._pace(command.rate)
        pipe.send(self.figures)
        return not isinstance(command, Stop)

    def _pace(self, rate: float) -> None:
        now = _clock()
        for seat in self._seats:
            seat.node.pace(rate, now)
            self._set_timer(seat, max(now, seat.node.due(now)))

    def _cut(self, cut: Cut) -> None:
        chosen = random.sample(self._seats, round(cut.share * len(self._seats)))
        for seat in chosen:
            self._hang_up(seat)
        back_at = _clock() + cut.away_s
        for seat in chosen:
            seat.node.leave(back_at)
            self._set_timer(seat, back_at)

    # ---- timers ----------------------------------------------------------------------------------------------------------
    def _wait_s(self) -> float:
        if not self._timers:
            return _LONGEST_WAIT_S
        return min(max(0.0, self._timers[0][0] - _clock()), _LONGEST_WAIT_S)

    def _set_timer(self, seat: _Seat, due: float) -> None:
        seat.due = due
        heapq.heappush(self._timers, (due, next(self._numbers), seat))

    def _run_timers(self) -> None:
        now = _clock()
        for _ in range(_ROUND):
            if not self._timers or self._timers[0][0] > now:
                return
            due, _, seat = heapq.heappop(self._timers)
            if due == seat.due:  # else it was set anew meanwhile
                self._attend(seat, now)

    def _attend(self, seat: _Seat, now: float) -> None:
        node = seat.node
        node.make_due(now)
        if node.overdue(now) is not None:
            self._look(seat, now)  # what it waits for may be there, and this process be late
        failure = node.overdue(now)
        if failure is not None:
            self._count(failure, node)
            self._lose(seat, now, failure)
        elif node.wants_connection(now):
            self._connect(seat, now)
        else:
            self._say(seat, now)
        self._set_timer(seat, max(now, node.due(now)))

    def _count(self, failure: Failure, node: SimulatedNode) -> None:
        if node.phase is Phase.SERVED:
            self.figures.lost += 1
        elif failure in (Failure.UNREACHABLE, Failure.LOST):
            self.figures.unanswered += 1

    # ---- connections -----------------------------------------------------------------------------------------------------
    def _connect(self, seat: _Seat, now: float) -> None:
        s = seat.settings
        made = self._context.socket(zmq.DEALER)
        options: dict[int, int | bytes] = {
            zmq.IPV6: 1,
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,
            zmq.RECONNECT_IVL: -1,
            zmq.CONNECT_TIMEOUT: int(s.connect_s * 1000),
            zmq.HANDSHAKE_IVL: int(s.handshake_s * 1000),
            zmq.MAXMSGSIZE: limits.FRAME_MAX_BYTES + limits.CURVE_OVERHEAD_BYTES,
            zmq.SNDHWM: _QUEUE_MESSAGES,
            zmq.RCVHWM: _QUEUE_MESSAGES,
            zmq.CURVE_SERVERKEY: s.server_key,
            zmq.CURVE_PUBLICKEY: s.public_key,
            zmq.CURVE_SECRETKEY: s.secret_key,
        }
        for option, value in options.items():
            made.setsockopt(option, value)
        made.connect(s.masters[0])
        fd = int(made.getsockopt(zmq.FD))
        seat.socket, self._by_fd[fd] = made, seat
        self._poll.register(fd, select.EPOLLIN)
        seat.node.knock(now)

    def _hang_up(self, seat: _Seat) -> None:
        if seat.socket is not None:
            fd = int(seat.socket.getsockopt(zmq.FD))
            self._poll.unregister(fd)
            del self._by_fd[fd]
            seat.socket.close(linger=0)
            seat.socket = None

    def _lose(self, seat: _Seat, now: float, failure: Failure) -> None:
        self._hang_up(seat)
        seat.node.lose(now, failure)

    def _look(self, seat: _Seat, now: float) -> None:
        # The descriptor only says that something changed; what it is, and that it was seen, is asked of the socket.
        if seat.socket is None:
            return
        due = seat.due
        while seat.socket is not None:
            events = int(seat.socket.getsockopt(zmq.EVENTS))
            if events & zmq.POLLIN:
                self._hear(seat, seat.socket, now)
            elif not self._writable(seat, now, writable=bool(events & zmq.POLLOUT)):
                break
        wanted = seat.node.due(now)
        if wanted < due:
            self._set_timer(seat, max(now, wanted))

    def _hear(self, seat: _Seat, connection: zmq.Socket[bytes], now: float) -> None:
        answer = seat.node.hear(connection.recv(zmq.NOBLOCK), now)
        if isinstance(answer, Failure):
            self._lose(seat, now, answer)
        elif answer is not None:
            self._send(seat, answer)

    def _writable(self, seat: _Seat, now: float, *, writable: bool) -> bool:
        # Returns whether to look again.
        phase = seat.node.phase
        if phase is Phase.KNOCKING:
            return writable and self._send(seat, seat.node.greet(now))
        if not writable:
            self._count(Failure.LOST, seat.node)
            self._lose(seat, now, Failure.LOST)
            return False
        return self._say(seat, now)

    def _say(self, seat: _Seat, now: float) -> bool:
        said = False
        while seat.socket is not None and (message := seat.node.say(now)) is not None:
            said = self._send(seat, message) or said
        return said

    def _send(self, seat: _Seat, message: Up) -> bool:
        if seat.socket is None:
            return False
        try:
            seat.socket.send(encode_frame(message), zmq.NOBLOCK)
        except zmq.Again:  # the connection is gone, or full and the master reads nothing: what is unacknowledged comes again
            now = _clock()
            self._count(Failure.LOST, seat.node)
            self._lose(seat, now, Failure.LOST)
            return False
        return True


def run_pool(pipe: Connection, plan: FleetPlan, keys: Sequence[NodeKey]) -> None:
    """Simulate ``keys`` in this process; commands come by ``pipe``, each is answered with the figures."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pool = Pool(plan, keys)
    try:
        pool.serve(pipe)
    finally:
        pool.close()
