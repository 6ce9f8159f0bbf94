"""Retention: what goes, in which order, never today's; told before it goes; figures that add up."""

from __future__ import annotations

import pytest

from fakes.clock import Clock
from fakes.peer import batch_of
from garrison.common.events import Lane
from garrison.common.names import NodeName
from garrison.master.store import EventFilter, Retention, Store
from garrison.master.store.dayfile import DayFile
from garrison.master.store.retention import Held, due

N1 = NodeName("n1")


def held(day: str, lane: Lane, size: int = 100) -> Held:
    return Held(file=DayFile(day, lane), events=1, bytes=size)


def gone(files, today="2026-05-10", *, by_age=True, max_bytes=0, **days):
    rules = Retention(days={Lane[lane.upper()]: count for lane, count in days.items()}, max_bytes=max_bytes)
    return [(one.lane, one.day[-2:]) for one in due(files, rules, today, by_age=by_age)]


def test_day_goes_when_its_last_event_is_older_than_the_days_of_its_lane():
    files = [held(f"2026-05-0{day}", Lane.METRIC) for day in range(1, 10)]

    assert gone(files, metric=3) == [("metric", f"0{day}") for day in range(1, 7)]
    assert gone(files, metric=0) == []
    assert gone(files, alert=1) == []


def test_over_the_cap_the_least_precious_lane_gives_way_first_oldest_day_first():
    files = [held(f"2026-05-0{day}", lane) for day in (1, 2, 3) for lane in (Lane.ALERT, Lane.ERROR, Lane.METRIC)]

    assert gone(files, max_bytes=900) == []
    assert gone(files, max_bytes=899) == [("metric", "01")]
    assert gone(files, max_bytes=500) == [("metric", "01"), ("metric", "02"), ("metric", "03"), ("error", "01")]


def test_today_and_days_to_come_never_go():
    files = [held("2026-05-10", Lane.METRIC), held("2026-05-11", Lane.METRIC), held("2026-05-09", Lane.ALERT)]

    assert gone(files, max_bytes=1, metric=1, alert=1) == [("alert", "09")]


def test_what_age_takes_counts_before_the_cap_takes_more():
    files = [held("2026-05-01", Lane.METRIC, 800), held("2026-05-09", Lane.METRIC), held("2026-05-09", Lane.STATE)]

    assert gone(files, max_bytes=200, metric=5) == [("metric", "01")]
    assert gone(files, max_bytes=900, metric=5, by_age=False) == [("metric", "01")]


# ---- carried out ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    made = Store(tmp_path / "store.db", Retention(days={Lane.METRIC: 2}), clock)
    yield made
    made.close()


def put(store, seq, lane):
    store.submit_batch(N1, batch_of([seq], lane=lane)).result(10)


def kept(store):
    return [(e.lane, e.seq) for _, e in store.events_page(EventFilter(nodes=("n1",)), after=0)]


def test_dropped_day_is_told_with_its_figures_and_its_file_is_gone(store, clock, tmp_path):
    put(store, 1, Lane.METRIC)
    put(store, 2, Lane.ALERT)
    clock.next_day(3)

    (one,) = store.keeper.prune()

    assert kept(store) == [(Lane.ALERT, 2)]
    ((_, told),) = store.events_page(EventFilter(kinds=("retention",)))
    assert (told.node, told.lane, told.object) == ("(master)", Lane.STATE, "2026-05-01.metric.db")
    assert (told.data["count"], told.data["bytes"]) == (1, one.bytes)
    assert not list((tmp_path / "events").glob("2026-05-01.metric.db*"))


def test_repeat_of_a_dropped_event_does_not_lower_what_was_acked(store, clock):
    put(store, 7, Lane.METRIC)
    clock.next_day(3)
    store.keeper.prune()

    assert store.acked(N1, "e1") == {int(Lane.METRIC): 7}


def test_check_says_what_would_go_and_changes_nothing(store, clock):
    put(store, 1, Lane.METRIC)
    clock.next_day(3)

    (one,) = store.keeper.prune(check=True)

    assert (one.lane, one.day, one.events) == ("metric", "2026-05-01", 1)
    assert kept(store) == [(Lane.METRIC, 1)]


def test_age_is_looked_at_once_a_day_and_first_on_the_day_after_a_store_was_made(store, clock):
    put(store, 1, Lane.METRIC)
    clock.next_day(3)

    assert store.keeper.tidy() == [], "a store brought into files by day keeps everything until the next midnight"
    clock.next_day()
    assert [one.lane for one in store.keeper.tidy()] == ["metric"]


def test_cap_is_kept_whenever_it_is_looked_at(tmp_path, clock):
    store = Store(tmp_path / "capped.db", Retention(days={}, max_bytes=1), clock)
    put(store, 1, Lane.METRIC)
    store.keeper.tidy()
    clock.next_day()
    put(store, 2, Lane.METRIC)
    store.keeper.tidy()

    assert kept(store) == [(Lane.METRIC, 2)]
    store.close()


def test_figures_add_up_and_say_what_goes_next(store, clock):
    for day in range(2):
        put(store, day + 1, Lane.METRIC)
        put(store, day + 1, Lane.ALERT)
        clock.next_day()

    info = store.keeper.info()

    assert info.events == 4 == sum(lane.events for lane in info.lanes) == sum(day.events for day in info.days)
    assert info.bytes == sum(day.bytes for day in info.days) > 0
    assert (info.oldest, info.today) == ("2026-05-01", "2026-05-03")
    assert info.next is not None
    assert (info.next.lane, info.next.day, info.next.on) == ("metric", "2026-05-01", "2026-05-04")
