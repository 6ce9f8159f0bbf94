"""Damaged files: the spool starts all the same, keeps what reads, counts the rest, sets the file aside."""

import random

import pytest

from garrison.common.events import Event, Kind, Lane, decode_event
from garrison.minion.spool import Spool, SpoolCaps
from garrison.minion.spool.recover import finish_swap
from garrison.minion.spool.schema import connect_writer
from garrison.minion.spool.spool import FILE_NAME

CAPS = SpoolCaps.of_total(8 << 20)
PUT = {Lane.ALERT: 300, Lane.SHELL: 1200, Lane.STATE: 50}


def opened(directory):
    return Spool.open(directory, CAPS, boot="boot")


@pytest.fixture
def filled(tmp_path):
    """A spool's directory with ``PUT`` in it, cleanly closed."""
    spool = opened(tmp_path)
    number = 0
    for lane, count in PUT.items():
        for _ in range(count):
            number += 1
            spool.put(Event(lane=lane, kind="exec", data={"n": number, "pad": "y" * 200}))
            if number % 40 == 0:
                assert spool.flush(10)
    assert spool.flush(10)
    spool.close()
    return tmp_path


def contents(spool):
    kept, gaps = {lane: [] for lane in Lane}, {lane: [] for lane in Lane}
    for lane in Lane:
        after, tries = 0, 0
        while tries < 50:
            batch = spool.next_batch(lane, after, 500, 1 << 20)
            if batch is None:
                tries += 1
                assert spool.flush(10)  # damage that was found just now is being dealt with
                if after >= spool.tails().get(lane, 0):
                    break
                continue
            for raw in batch.events:
                event = decode_event(raw)
                (gaps if event.kind == Kind.GAP else kept)[lane].append(event.data)
            after = batch.seqs[-1]
    return kept, gaps


def check(spool):
    kept, gaps = contents(spool)
    for lane in Lane:
        numbers = [data["n"] for data in kept[lane]]
        assert len(numbers) == len(set(numbers))
        lost = sum(gap["count"] for gap in gaps[lane])
        unknown = any(gap["count"] == 0 for gap in gaps[lane])
        assert unknown or len(numbers) + lost == PUT.get(lane, 0), (lane, len(numbers), gaps[lane])
    spool.put(Event(lane=Lane.ALERT, kind="exec", data={"n": -1}))
    assert spool.flush(10), "it goes on"
    return kept


@pytest.mark.parametrize("seed", range(25))
def test_random_bytes_over_a_page_lose_at_most_that_page_and_are_counted(filled, seed):
    rng = random.Random(seed)  # noqa: S311 - which byte is damaged is no secret
    path = filled / FILE_NAME
    content = bytearray(path.read_bytes())
    page = rng.randrange(1, len(content) // 4096)
    content[page * 4096 : (page + 1) * 4096] = rng.randbytes(4096)
    path.write_bytes(content)

    spool = opened(filled)

    check(spool)
    spool.close()


@pytest.mark.parametrize("seed", range(25))
def test_flipped_bit_never_becomes_a_false_event(filled, seed):
    rng = random.Random(1000 + seed)  # noqa: S311 - which byte is damaged is no secret
    path = filled / FILE_NAME
    content = bytearray(path.read_bytes())
    content[rng.randrange(100, len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)

    spool = opened(filled)

    kept = check(spool)
    assert all(data["pad"] == "y" * 200 for lane in Lane for data in kept[lane])
    spool.close()


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9])
def test_truncated_file_is_replaced_and_set_aside(filled, part):
    path = filled / FILE_NAME
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(len(content) * part))])

    spool = opened(filled)

    check(spool)
    assert len([p for p in filled.glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm"))]) == 1
    assert spool.stats().recoveries == 1
    spool.close()


def test_file_that_is_no_database_costs_only_itself(filled):
    (filled / FILE_NAME).write_bytes(b"not a database at all" * 1000)

    spool = opened(filled)
    _, gaps = contents(spool)

    assert all(gap["count"] == 0 and "cannot be known" in gap["reason"] for lane in Lane for gap in gaps[lane])
    spool.close()


def test_torn_tail_of_the_log_loses_no_number_twice(tmp_path):
    spool = opened(tmp_path)
    for number in range(100):
        spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": number}))
        if number % 10 == 9:
            assert spool.flush(10)
    highest = spool.next_seq
    wal = (tmp_path / f"{FILE_NAME}-wal").read_bytes()
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    (crashed / FILE_NAME).write_bytes((tmp_path / FILE_NAME).read_bytes())
    (crashed / f"{FILE_NAME}-wal").write_bytes(wal[: int(len(wal) * 0.8)])
    spool.close()

    again = opened(crashed)

    again.put(Event(lane=Lane.SHELL, kind="exec", data={"n": -1}))
    assert again.flush(10)
    assert again.next_seq > highest, "numbers that the lost tail had used stay used"
    again.close()


def test_damage_found_while_running_is_mended_without_a_restart(filled):
    spool = opened(filled)
    content = bytearray((filled / FILE_NAME).read_bytes())
    for page in range(8, len(content) // 4096 - 2, 5):
        content[page * 4096 : page * 4096 + 4096] = b"\xa5" * 4096
    with (filled / FILE_NAME).open("r+b") as file:
        file.write(content)

    check(spool)
    spool.close()


def test_file_of_a_newer_version_is_set_aside_and_its_events_kept(filled):
    conn = connect_writer(filled / FILE_NAME, 1 << 20)
    conn.execute("PRAGMA user_version=99")
    conn.close()

    spool = opened(filled)

    kept = check(spool)
    assert {lane: len(found) for lane, found in kept.items() if found} == PUT
    spool.close()


def test_rebuilding_begins_a_new_epoch(filled):
    spool = opened(filled)
    old, highest = spool.epoch, spool.next_seq
    spool.close()
    content = bytearray((filled / FILE_NAME).read_bytes())
    content[5 * 4096 : 6 * 4096] = bytes(4096)
    (filled / FILE_NAME).write_bytes(content)

    spool = opened(filled)

    assert spool.epoch != old
    assert spool.next_seq > highest
    spool.close()


def test_interrupted_swap_is_finished_and_an_incomplete_file_is_removed(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_bytes(b"old")
    path.with_name(path.name + "-wal").write_bytes(b"old log")
    path.with_suffix(".ready").write_bytes(b"new")
    path.with_suffix(".new").write_bytes(b"half")

    finish_swap(path)
    finish_swap(path)

    assert path.read_bytes() == b"new"
    assert not path.with_name(path.name + "-wal").exists(), "an old log beside a new file would be replayed into it"
    assert not path.with_suffix(".new").exists()
    assert sorted(p.read_bytes() for p in tmp_path.glob("*.damaged-*")) == [b"old", b"old log"]
