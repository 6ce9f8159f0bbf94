"""Files by day: each event once over midnight, one order, marks that outlive files, damage that stays where it is."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.clock import Clock
from fakes.peer import batch_of, event
from garrison.common.errors import StoreError
from garrison.common.events import Kind, Lane
from garrison.common.names import NodeName
from garrison.master.store import EventFilter, Retention, Store
from garrison.master.store.arrivals import Arrivals
from garrison.master.store.dayfile import DayFile

N1, N2 = NodeName("n1"), NodeName("n2")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    made = []

    def store(**retention) -> Store:
        rules = Retention(days=retention.get("days", {}), max_bytes=retention.get("max_bytes", 0))
        made.append(Store(tmp_path / "store.db", rules, clock))
        return made[-1]

    yield store
    for one in made:
        one.close()


def put(store, batch, node=N1):
    return store.submit_batch(node, batch).result(10)


def seqs(store, **wanted):
    return [e.seq for _, e in store.events_page(EventFilter(**wanted), after=0)]


def names(store):
    return sorted(path.name for path in store.event_log.catalogue.directory.iterdir())


# ---- each event once ---------------------------------------------------------------------------------------------------
def test_batch_that_comes_again_after_midnight_is_acked_and_stored_once(make, clock):
    store = make()
    put(store, batch_of([1, 2, 3]))
    clock.next_day()

    again = put(store, batch_of([2, 3, 4]))

    assert (again.acked, again.new, again.repeated) == (4, 1, 2)
    assert seqs(store) == [1, 2, 3, 4]
    assert [file.day for file, facts in store.event_log.catalogue.files() if facts.events] == ["2026-05-01", "2026-05-02"]


def test_repeat_is_known_after_many_days_and_a_restart(make, clock):
    store = make()
    put(store, batch_of([1, 2, 3]))
    for day in range(4):
        clock.next_day()
        put(store, batch_of([10 + day]))
    store.close()
    clock.next_day()

    again = put(make(), batch_of([1, 2, 3]))

    assert (again.acked, again.new) == (13, 0)


def test_number_below_the_mark_that_never_came_is_stored(make, clock):
    """By another way (a relay) the older batch may come last: the mark alone would take it for a repeat and lose it."""
    store = make()
    put(store, batch_of([100]))
    clock.next_day()

    late = put(store, batch_of([5, 6]))

    assert (late.acked, late.new) == (100, 2)
    assert sorted(seqs(store)) == [5, 6, 100]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.just("midnight"),
            st.just("restart"),
            st.just("clock goes back"),
            st.tuples(
                st.sampled_from([N1, N2]),
                st.sampled_from(["aa", "bb"]),
                st.sampled_from([Lane.ALERT, Lane.SHELL]),
                st.integers(1, 30),
                st.integers(1, 10),
            ),
        ),
        max_size=25,
    )
)
def test_whatever_comes_in_any_order_on_any_day_is_stored_once_and_shown_in_order(tmp_path_factory, steps):
    clock, path = Clock(), tmp_path_factory.mktemp("store") / "store.db"
    store = Store(path, clock_ns=clock)
    sent: dict[tuple[str, str, Lane], set[int]] = {}
    for step in steps:
        if step == "midnight":
            clock.next_day()
        elif step == "clock goes back":
            clock.next_day(-1)
        elif step == "restart":
            store.close()
            store = Store(path, clock_ns=clock)
        else:
            node, epoch, lane, first, count = step
            numbers = [2 * n + (lane is Lane.ALERT) for n in range(first, first + count)]  # lanes share one row of numbers
            mine = sent.setdefault((node, epoch, lane), set())
            stored = put(store, batch_of(numbers, epoch=epoch, lane=lane), node)
            assert stored.new == len(set(numbers) - mine)
            mine.update(numbers)
            assert stored.acked == max(mine) == store.acked(node, epoch)[int(lane)]

    page = store.events_page(EventFilter(), after=0)

    found = [(e.node, e.epoch, e.lane, e.seq) for _, e in page]
    assert sorted(found) == sorted((*key, seq) for key, numbers in sent.items() for seq in numbers)
    arrived = [number for number, _ in page]
    assert arrived == sorted(set(arrived))
    assert sum(facts.events for _, facts in store.event_log.catalogue.files()) == len(page)
    store.close()


def test_what_came_by_another_way_is_stored_once_and_leaves_what_is_acked_to_the_node(make, clock):
    store = make()
    put(store, batch_of([1, 2]))
    store.submit_batch(N1, batch_of([50, 51]), relayed=True).result(10)
    clock.next_day()

    assert store.acked(N1, "e1") == {int(Lane.SHELL): 2}
    assert store.highest(N1, "e1") == 51
    assert store.submit_batch(N1, batch_of([51, 52]), relayed=True).result(10).new == 1
    assert put(store, batch_of([3, 50])).acked == 50
    assert sorted(seqs(store)) == [1, 2, 3, 50, 51, 52]


# ---- one order -----------------------------------------------------------------------------------------------------------
def test_pages_go_on_over_days_and_lanes_in_order_of_arrival(make, clock):
    store = make()
    expected = []
    for n in range(1, 41):
        put(store, batch_of([n], lane=Lane.ALERT if n % 3 else Lane.METRIC))
        expected.append(n)
        if n % 7 == 0:
            clock.next_day()

    got, cursor = [], 0
    while page := store.events_page(EventFilter(), after=cursor, limit=3):
        got += [e.seq for _, e in page]
        cursor = page[-1][0]

    assert got == expected
    assert [e.seq for _, e in store.events_page(EventFilter(), limit=10)] == expected[-10:]
    assert [e.seq for _, e in store.events_page(EventFilter(lanes=(int(Lane.METRIC),)), limit=4)] == [30, 33, 36, 39]
    assert store.last_event_number() == cursor


def test_arrival_numbers_go_on_after_a_restart_even_when_every_event_was_dropped(make, clock):
    store = make(days={Lane.SHELL: 1})
    put(store, batch_of([1, 2, 3]))
    highest = store.last_event_number()
    clock.next_day(5)
    store.keeper.prune()
    assert seqs(store, lanes=(int(Lane.SHELL),)) == []
    store.close()

    put(again := make(), batch_of([4]))

    assert again.last_event_number() > highest


def test_numbers_are_shown_only_when_no_lower_one_can_still_appear():
    arrivals = Arrivals(10)
    slow = arrivals.take(Lane.METRIC, 5)
    quick = arrivals.take(Lane.ALERT, 2)
    arrivals.settle(Lane.ALERT)
    while_open = arrivals.settled
    arrivals.settle(Lane.METRIC)

    assert (slow, quick) == (11, 16)
    assert while_open == 10
    assert arrivals.settled == 17


def test_time_is_that_of_nodes_whatever_day_the_events_arrived(make, clock):
    store = make()
    for day in range(3):
        put(store, batch_of([day + 1], ts=day * 100))
        clock.next_day()
    put(store, batch_of([9], ts=50))

    assert seqs(store, since_ns=50, until_ns=200) == [2, 9]
    assert seqs(store, since_ns=100) == [2, 3]
    assert seqs(store, until_ns=50) == [1]


# ---- files ---------------------------------------------------------------------------------------------------------------
def test_file_of_a_past_day_stands_alone(make, clock):
    store = make()
    put(store, batch_of([1]))
    assert seqs(store) == [1], "a reader has it open"
    clock.next_day()
    put(store, batch_of([2]))

    assert [name for name in names(store) if name.startswith("2026-05-01")] == ["2026-05-01.shell.db"]


def test_file_whose_making_was_interrupted_is_made_again(make, tmp_path, clock):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "2026-05-01.shell.db").touch()

    assert put(make(), batch_of([1])).new == 1


def test_damaged_day_is_set_aside_and_the_others_are_served(make, tmp_path, clock):
    store = make()
    put(store, batch_of([1]))
    clock.next_day()
    put(store, batch_of([2]))
    store.close()
    (tmp_path / "events" / "2026-05-01.shell.db").write_bytes(b"scribbled over, and long enough to be a page" * 200)

    again = make()

    assert seqs(again) == [2]
    assert [name.partition("-")[0] for name in again.keeper.info().damaged] == ["2026"]
    assert put(again, batch_of([3])).acked == 3


def test_day_damaged_while_the_master_runs_is_set_aside_and_the_question_is_answered_from_the_others(make, tmp_path, clock):
    store = make()
    put(store, batch_of(list(range(1, 500))))
    clock.next_day()
    put(store, batch_of([900]))
    path = tmp_path / "events" / "2026-05-01.shell.db"
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (path.stat().st_size - 100))

    assert seqs(store) == [900]
    assert len(store.keeper.info().damaged) == 1


def test_file_of_a_newer_garrison_is_refused_and_not_touched(make, tmp_path):
    store = make()
    put(store, batch_of([1]))
    store.close()
    path = tmp_path / "events" / "2026-05-01.shell.db"
    conn = sqlite3.connect(path)
    conn.execute("PRAGMA user_version=99")
    conn.close()

    with pytest.raises(StoreError, match="version"):
        make()
    assert path.exists()


# ---- what nodes were acked and the store does not hold ---------------------------------------------------------------------
def test_store_older_than_its_nodes_says_exactly_what_is_missing_and_says_it_once(make):
    store = make()
    put(store, batch_of([1, 2, 5]))

    first = store.note_acked(N1, "e1", {Lane.SHELL: (40, 23)})
    second = store.note_acked(N1, "e1", {Lane.SHELL: (40, 23)})

    assert first[Lane.SHELL].missing == 20
    assert second == {}
    ((_, gap),) = store.events_page(EventFilter(kinds=(Kind.GAP,)))
    assert (gap.node, gap.lane) == ("n1", Lane.SHELL)
    assert {key: gap.data[key] for key in ("first_seq", "last_seq", "count", "of_epoch")} == {
        "first_seq": 6,
        "last_seq": 40,
        "count": 20,
        "of_epoch": "e1",
    }
    assert store.acked(N1, "e1") == {int(Lane.SHELL): 40}


def test_node_that_cannot_count_what_it_was_acked_leaves_a_gap_that_nobody_can_know(make):
    store = make()

    found = store.note_acked(N1, "e1", {Lane.ALERT: (7, -1)})

    ((_, gap),) = store.events_page(EventFilter(kinds=(Kind.GAP,)))
    assert (found[Lane.ALERT].missing, gap.data["count"], gap.data["last_seq"]) == (-1, 0, 7)


def test_node_that_was_acked_no_more_than_is_held_leaves_no_trace(make):
    store = make()
    put(store, batch_of([1, 2, 5]))

    assert store.note_acked(N1, "e1", {Lane.SHELL: (5, 3), Lane.ALERT: (0, 0)}) == {}
    assert seqs(store) == [1, 2, 5]


def test_record_of_the_master_does_not_get_into_a_nodes_numbers(make):
    store = make()
    store.event_log.record(event(node="n1", lane=Lane.SHELL, kind="gap"))

    assert put(store, batch_of([1])).new == 1
    assert store.acked(N1, "e1") == {int(Lane.SHELL): 1}
    assert [e.epoch for _, e in store.events_page(EventFilter())] == ["master", "e1"]


def test_names_of_files_are_read_back():
    assert DayFile("2026-05-01", Lane.METRIC).name == "2026-05-01.metric.db"
