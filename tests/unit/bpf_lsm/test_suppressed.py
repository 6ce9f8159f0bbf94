"""Every decision that was only counted is told once: by the rule's next event, by a summary, or by the next agent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.bpf.loader import BpfMap
from garrison.minion.enforcers.bpf_lsm.options import EventRate
from garrison.minion.enforcers.bpf_lsm.suppressed import RuleKey, Suppressed

RULE, OTHER = RuleKey(3, 1), RuleKey(3, 2)
BLOCK = 3


class KernelMap:
    """A hash map as the loader shows it."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def lookup(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def update(self, key: bytes, value: bytes) -> None:
        self.held[key] = value

    def delete(self, key: bytes) -> None:
        del self.held[key]

    def keys(self) -> Iterator[bytes]:
        return iter(list(self.held))


class Kernel:
    """What the programs would have written."""

    def __init__(self) -> None:
        self.sums, self.told = KernelMap(), KernelMap()

    def count(self, key: RuleKey, total: int) -> None:
        self.sums.update(struct.pack("=II", *key), struct.pack("=QQI4x", 77, total, BLOCK))

    def agent(self) -> Suppressed:
        return Suppressed(cast("BpfMap", self.sums), cast("BpfMap", self.told))


def summed_up(agent: Suppressed, *, at_once: bool = True) -> list[tuple[RuleKey, int, int]]:
    found: list[tuple[RuleKey, int, int]] = []
    agent.sum_up(lambda key, count, verdict: found.append((key, count, verdict)), at_once=at_once)
    return found


def test_event_tells_what_was_counted_since_the_one_before_it() -> None:
    agent, told = Kernel().agent(), list[int]()

    for total in (0, 5, 5, 12, 9):  # two CPUs may write their events in another order than they counted
        agent.with_event(RULE, total, told.append)

    assert told == [0, 5, 0, 7, 0]


def test_what_no_event_follows_is_summed_up_once_for_each_rule() -> None:
    kernel = Kernel()
    agent = kernel.agent()
    agent.with_event(RULE, 5, lambda _: None)
    kernel.count(RULE, 8)
    kernel.count(OTHER, 2)

    assert sorted(summed_up(agent)) == [(RULE, 3, BLOCK), (OTHER, 2, BLOCK)]
    assert summed_up(agent) == []


def test_rule_that_has_just_told_something_is_not_summed_up_yet() -> None:
    kernel = Kernel()
    agent = kernel.agent()
    kernel.count(RULE, 8)
    agent.with_event(RULE, 5, lambda _: None)

    assert summed_up(agent, at_once=False) == []
    assert summed_up(agent) == [(RULE, 3, BLOCK)]


def test_next_agent_goes_on_where_this_one_ended() -> None:
    kernel = Kernel()
    kernel.count(RULE, 8)
    summed_up(kernel.agent())
    kernel.count(RULE, 9)

    assert summed_up(kernel.agent()) == [(RULE, 1, BLOCK)]


def test_count_that_could_not_be_told_is_told_later() -> None:
    kernel = Kernel()
    agent = kernel.agent()
    kernel.count(RULE, 8)

    def fail(_: int) -> None:
        raise OSError("no spool")

    with pytest.raises(OSError, match="no spool"):
        agent.with_event(RULE, 8, fail)

    assert summed_up(agent) == [(RULE, 8, BLOCK)]


def test_generation_that_ended_is_forgotten_and_attempts_at_the_agent_are_not() -> None:
    kernel = Kernel()
    agent = kernel.agent()
    attempt, later = RuleKey(0, 1), RuleKey(4, 1)
    for key in (attempt, RULE, later):
        kernel.count(key, 1)
    summed_up(agent)

    agent.forget(3)

    assert {RuleKey(*struct.unpack("=II", key)) for key in kernel.sums.keys()} == {attempt, later}  # noqa: SIM118
    assert kernel.sums.held.keys() == kernel.told.held.keys()


@given(st.lists(st.tuples(st.sampled_from(["count", "event", "sum", "restart"]), st.integers(1, 9))))
def test_whatever_happens_nothing_is_missed_or_told_twice(steps: list[tuple[str, int]]) -> None:
    kernel, counted, told = Kernel(), 0, 0
    agent = kernel.agent()

    def tell(news: int) -> None:
        nonlocal told
        told += news

    for what, number in steps:
        match what:
            case "count":
                counted += number
                kernel.count(RULE, counted)
            case "event":
                agent.with_event(RULE, counted, tell)
            case "sum":
                told += sum(count for _, count, _ in summed_up(agent))
            case _:
                agent = kernel.agent()
    told += sum(count for _, count, _ in summed_up(agent))

    assert told == counted


@pytest.mark.parametrize(
    ("rate", "raw"), [(EventRate(per_s=100, burst=200), (10_000_000, 1_990_000_000)), (EventRate(per_s=0, burst=200), (0, 0))]
)
def test_rate_is_written_as_nanoseconds_and_none_is_no_limit(rate: EventRate, raw: tuple[int, int]) -> None:
    assert struct.unpack("=QQ", rate.packed()) == raw
