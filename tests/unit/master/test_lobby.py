"""Welcomes are given in order; who waits long is told so in time, and who cannot be told is not."""

from __future__ import annotations

import asyncio
import threading

from garrison.common import limits
from garrison.common.errors import StoreError
from garrison.common.frames import Down, Hello, Wait, Welcome
from garrison.common.names import NodeName
from garrison.master.collector.dues import Facts
from garrison.master.collector.lobby import Lobby
from garrison.master.collector.sessions import Session
from garrison.master.collector.usher import Usher


def session(number: int, *, waits: bool = True) -> Session:
    node = NodeName(f"n{number}")
    return Session(
        node=node, routing_id=f"r{number}".encode(), hello=Hello(node=node, epoch="e1", waits=waits, next_seq=1), address="a"
    )


def lobby_of(count: int, *, pace: float, waits: bool = True) -> tuple[Lobby, list[Session], list[float]]:
    lobby, sessions = Lobby(), [session(n, waits=waits) for n in range(count)]
    for _ in range(200):
        lobby.note(1, 1 / pace)
    return lobby, sessions, [lobby.enter(one, 0.0) for one in sessions]


def test_first_come_first_served():
    lobby, sessions, _ = lobby_of(10, pace=100)

    assert lobby.take(3) == sessions[:3]
    assert lobby.take(100) == sessions[3:]
    assert lobby.take(1) == []


def test_who_left_is_not_welcomed_and_who_came_again_is_last():
    lobby, sessions, _ = lobby_of(3, pace=100)
    lobby.leave(sessions[1])
    lobby.enter(sessions[0], 1.0)

    assert lobby.take(9) == [sessions[2], sessions[0]]


def test_only_those_are_told_to_wait_whose_patience_would_end_first():
    _, _, told = lobby_of(2_000, pace=100)  # the last waits 20 s

    first_told = next(n for n, wait_s in enumerate(told) if wait_s)
    assert 1 < (first_told + 1) / 100 < limits.HANDSHAKE_MAX_S
    assert all(told[first_told:])
    assert all(wait_s > (n + 1) / 100 for n, wait_s in enumerate(told) if wait_s), "longer than it is expected to take"
    assert len({round(wait_s - (n + 1) / 80, 3) for n, wait_s in enumerate(told) if wait_s}) > 100, "jittered"


def test_node_of_an_older_version_is_not_told():
    _, _, told = lobby_of(2_000, pace=100, waits=False)

    assert not any(told)


def test_who_waits_longer_than_it_was_told_is_told_again_before_it_gives_up():
    lobby, sessions, (told,) = lobby_of(1, pace=0.2)  # 5 s for one
    gives_up = told + limits.HANDSHAKE_MAX_S if told else limits.HANDSHAKE_MAX_S
    words = []
    for now in range(round(gives_up)):
        words += [(now, one, wait_s) for one, wait_s in lobby.words(float(now))]

    assert [one for _, one, _ in words] == sessions
    assert words[0][0] < gives_up - 1


def test_nobody_is_told_more_than_a_node_waits():
    _, _, told = lobby_of(10_000, pace=10)

    assert max(told) == limits.WELCOME_WAIT_MAX_S


class Hall:
    """An usher, and a store that answers what nodes are due when it may."""

    def __init__(self) -> None:
        self.waiting_bytes = 0
        self.may_answer = threading.Event()
        self.failing = False
        self.sent: list[tuple[Session, Down]] = []
        self.ended: list[Session] = []
        self.welcomed: list[Session] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.usher = Usher(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            send=lambda one, message: not self.sent.append((one, message)),
            end=lambda one, _: self.ended.append(one),
            spawn=self.spawn,
            welcomed=lambda one, _: self.welcomed.append(one),
        )

    def spawn(self, work) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    def facts(self, node: str, hello: Hello) -> Facts:
        self.may_answer.wait(10)
        if self.failing:
            raise StoreError("no")
        return Facts({1: 7}, generation=0, seen=0)

    def words(self) -> list[str]:
        return [one.node for one, message in self.sent if isinstance(message, Wait)]

    async def done(self) -> None:
        self.may_answer.set()
        await asyncio.gather(*self.tasks)


async def test_all_are_welcomed_in_order_and_those_far_behind_were_told_to_wait():
    hall, sessions = Hall(), [session(n) for n in range(limits.WELCOMES_AT_ONCE * 3)]
    for one in sessions:
        hall.usher.enter(one)
    assert hall.words() == [], "500 a second: nobody waits for long"

    hall.usher.tick(1e9)  # long after
    assert len(hall.words()) >= limits.WELCOMES_AT_ONCE * 2
    await hall.done()

    assert hall.welcomed == sessions
    welcomes = [(one, message) for one, message in hall.sent if isinstance(message, Welcome)]
    assert [one for one, _ in welcomes] == sessions
    assert all(message.acked == {"1": 7} for _, message in welcomes)
    assert all(one.welcomed for one in sessions)


async def test_session_that_ended_meanwhile_is_not_welcomed():
    hall, gone, stays = Hall(), session(1), session(2)
    hall.usher.enter(gone)
    hall.usher.enter(stays)
    await asyncio.sleep(0)  # the group is taken
    gone.over = True
    hall.usher.leave(gone)
    await hall.done()

    assert hall.welcomed == [stays]


async def test_group_that_cannot_be_looked_up_is_closed_and_the_next_is_served():
    hall, first = Hall(), session(1)
    hall.failing = True
    hall.usher.enter(first)
    await hall.done()
    assert hall.ended == [first]

    hall.failing, second = False, session(2)
    hall.usher.enter(second)
    await hall.done()

    assert hall.welcomed == [second]


async def test_store_that_is_behind_holds_welcomes_back_until_it_has_caught_up():
    hall, one = Hall(), session(1)
    hall.waiting_bytes = limits.STORE_WAITING_MAX_BYTES
    hall.may_answer.set()
    hall.usher.enter(one)
    await asyncio.sleep(0)
    assert hall.welcomed == []

    hall.usher.calm()
    await hall.done()

    assert hall.welcomed == [one]
