"""A backup is whole and sound, or is not there."""

from __future__ import annotations

import pytest

from fakes.clock import Clock
from fakes.peer import batch_of
from garrison.common.errors import ConfigError, StoreError
from garrison.common.events import Lane
from garrison.common.names import NodeName
from garrison.master.store import EventFilter, Store

N1 = NodeName("n1")
KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    """Three days of two lanes, and a node."""
    made = Store(tmp_path / "store.db", clock_ns=clock)
    made.accept_nodes({N1: KEY})
    for day in range(3):
        for lane in (Lane.ALERT, Lane.SHELL):
            numbers = [day * 1_000 + n for n in range(1, 1_000)]
            made.submit_batch(N1, batch_of(numbers, lane=lane)).result(10)
        clock.next_day()
    yield made
    made.close()


def test_copy_opens_as_a_store_with_all_days_nodes_and_marks(store, clock, tmp_path):
    told = []

    done = store.backup(tmp_path / "copy").run(told.append)

    copy = Store(tmp_path / "copy" / "store.db", clock_ns=clock)
    assert done is not None
    assert (done.events, done.last_number) == (5_994, store.last_event_number())
    assert len(copy.events_page(EventFilter(), after=0)) == 5_994
    assert copy.acked(N1, "e1") == store.acked(N1, "e1")
    assert [node.name for node in copy.nodes()] == ["n1"]
    assert copy.last_event_number() == store.last_event_number()
    assert told[-1].done_bytes == told[-1].total_bytes
    assert [one.done_bytes for one in told] == sorted(one.done_bytes for one in told)
    copy.close()


def test_copy_is_files_that_stand_alone(store, tmp_path):
    store.backup(tmp_path / "copy").run(lambda _: None)

    names = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file())

    assert all(name.endswith(".db") for name in names), names
    assert "store.db" in names
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "copy").rglob("*.db")} == {0o600}


def test_backup_that_is_given_up_leaves_nothing(store, tmp_path):
    backup = store.backup(tmp_path / "copy")

    assert backup.run(lambda _: backup.give_up()) is None

    assert not (tmp_path / "copy").exists()
    assert store.submit_batch(N1, batch_of([9_000])).result(10).new == 1, "the store goes on"


def test_store_with_a_damaged_day_gives_no_copy_that_looks_whole(store, tmp_path):
    (path,) = (tmp_path / "events").glob("2026-05-01.shell.db")
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\x00" * 4096 * 20)

    with pytest.raises(StoreError, match=r"damaged|failed"):
        store.backup(tmp_path / "copy").run(lambda _: None)

    assert not (tmp_path / "copy").exists()


def test_relative_folder_and_one_that_cannot_be_made_are_refused(store, tmp_path):
    (tmp_path / "file").touch()
    for wrong in (tmp_path.relative_to("/"), tmp_path / "file" / "copy", tmp_path / "file"):
        with pytest.raises(ConfigError):
            store.backup(wrong)
