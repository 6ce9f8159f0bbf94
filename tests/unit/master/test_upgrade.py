"""A store of one table becomes files by day and lane: everything is there, each once. Kills: tests/component/test_store.py."""

from __future__ import annotations

from fakes.clock import Clock
from fakes.old_store import everything, expected, old_store
from fakes.peer import batch_of
from garrison.common.events import Lane
from garrison.common.names import NodeName
from garrison.master.store import EventFilter, Store

N1 = NodeName("n1")


def test_every_event_keeps_its_number_its_day_and_what_it_is_found_by(tmp_path):
    clock = Clock()
    old_store(tmp_path / "store.db", 4_000, clock)

    store = Store(tmp_path / "store.db", clock_ns=clock)

    assert everything(store) == expected(4_000)
    days = {file.day for file, _ in store.event_log.catalogue.files()}
    assert days == {"2026-04-28", "2026-04-29", "2026-04-30", "2026-05-01"}
    wanted = EventFilter(nodes=("n2",), exes=("/bin/sh",), policies=("p",), verdicts=("block",), kinds=("exec",))
    assert len(store.events_page(wanted, after=0)) == 2_000
    store.close()


def test_what_nodes_were_acked_is_known_and_repeats_are_too(tmp_path):
    clock = Clock()
    old_store(tmp_path / "store.db", 4_000, clock)
    store = Store(tmp_path / "store.db", clock_ns=clock)

    assert store.acked(N1, "e1") == {0: 4_000, 1: 3_998}
    again = store.submit_batch(N1, batch_of([2, 3_998, 4_002], lane=Lane.SHELL)).result(10)

    assert (again.new, again.repeated) == (1, 2)
    ((number, _),) = store.events_page(EventFilter(), limit=1)
    assert number > 8_000, "arrival goes on"
    assert store.note_acked(N1, "e1", {Lane.ALERT: (4_010, 1_005)})[Lane.ALERT].missing == 5, "1,000 of them were stored"
    store.close()


def test_upgraded_store_gives_its_space_back_and_is_not_upgraded_again(tmp_path):
    clock = Clock()
    path = tmp_path / "store.db"
    old_store(path, 20_000, clock)
    before = path.stat().st_size
    Store(path, clock_ns=clock).close()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "events").iterdir()}

    Store(path, clock_ns=clock).close()

    assert path.stat().st_size < before / 10
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "events").iterdir()} == files


def test_store_without_events_is_upgraded_too(tmp_path):
    clock = Clock()
    old_store(tmp_path / "store.db", 0, clock)

    store = Store(tmp_path / "store.db", clock_ns=clock)

    assert store.submit_batch(N1, batch_of([1])).result(10).new == 1
    store.close()
