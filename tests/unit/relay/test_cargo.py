"""A relay's spool: marks that hold with what they speak of, and losses told to the event."""

import os
import random
import sqlite3

import pytest

from fakes.peer import batch_of
from garrison.common.events import Event, Lane
from garrison.common.frames import encode_frame
from garrison.common.relay_frames import Carried, decode_item
from garrison.minion.spool import Spool, SpoolCaps
from garrison.minion.spool.spool import FILE_NAME
from garrison.relay.cargo import RelayCargo, carried_item


def carried(node="n1", seqs=(1, 2, 3), epoch="ab", lane=Lane.SHELL, pad=0):
    frame = encode_frame(batch_of(list(seqs), epoch=epoch, lane=lane)) + os.urandom(pad)
    head = {"node": node, "epoch": epoch, "first_seq": seqs[0], "last_seq": seqs[-1], "events": len(seqs), "at": 7}
    return carried_item(lane, Carried(**head, signing_key=b"k", vouch=b"v", frame=frame, signature=b"s"))


@pytest.fixture
def opened(tmp_path):
    spools = []

    def open_(total=4 << 20):
        cargo = RelayCargo()
        spools.append(Spool.open(tmp_path / "spool", SpoolCaps.of_total(total), boot="boot", cargo=cargo))
        return spools[-1], cargo

    yield open_
    for spool in spools:
        spool.close()


def items(spool, lane=Lane.SHELL):
    found, after = [], 0
    while batch := spool.next_batch(lane, after, 64, 1 << 20):
        found += [decode_item(raw) for raw in batch.events]
        after = batch.seqs[-1]
    return found


def test_batches_are_read_back_as_they_came_beside_the_relays_own_events(opened):
    spool, _ = opened()
    item = carried()

    ticket = spool.offer(item)
    spool.put(Event(ts=1, lane=Lane.SHELL, kind="agent"))
    assert spool.flush(10)

    assert ticket == 1 <= spool.durable
    first, second = items(spool)
    assert (first.node, first.frame, second.kind) == ("n1", decode_item(item.raw).frame, "agent")


def test_marks_say_after_a_restart_what_is_there(opened):
    spool, cargo = opened()
    assert cargo.marks == {}
    for item in (carried(seqs=(1, 2)), carried(seqs=(3, 9)), carried(lane=Lane.ALERT, seqs=(4,)), carried(node="n2", seqs=(5,))):
        assert spool.offer(item)
    assert spool.flush(10)
    spool.ack(spool.epoch, Lane.SHELL, 4)
    spool.close()

    _, again = opened()

    assert again.marks == {("n1", "ab", 1): 9, ("n1", "ab", 0): 4, ("n2", "ab", 1): 5}, "also of what was sent on and deleted"


def test_new_epoch_of_a_node_ends_the_marks_of_the_one_before(opened):
    spool, _ = opened()
    for item in (carried(epoch="ab"), carried(node="n2", epoch="ab"), carried(epoch="cd")):
        assert spool.offer(item)
    assert spool.flush(10)
    spool.close()

    _, again = opened()

    assert {key[:2] for key in again.marks} == {("n1", "cd"), ("n2", "ab")}


def test_full_spool_tells_what_each_node_lost_to_the_event(opened):
    spool, _ = opened()
    dice, put, seq = random.Random(1), {}, 0  # noqa: S311 - the same each time
    for number in range(600):
        node, epoch = dice.choice(["n1", "n2"]), dice.choice(["ab", "cd"])
        seqs = list(range(seq + 1, seq + dice.randrange(2, 20)))
        seq = seqs[-1]
        put[node, epoch] = put.get((node, epoch), 0) + len(seqs)
        assert spool.offer(carried(node, seqs, epoch, pad=20_000))
        if number % 20 == 0:
            assert spool.flush(10)
    assert spool.flush(20)

    found = items(spool)

    kept, told = {}, {}
    for item in found:
        if isinstance(item, Carried):
            kept[item.node, item.epoch] = kept.get((item.node, item.epoch), 0) + item.events
        else:
            key = item.data["of_node"], item.data["of_epoch"]
            told[key] = told.get(key, 0) + item.data["count"]
            assert item.data["first_seq"] <= item.data["last_seq"]
    assert spool.stats().gaps > 4, "gaps were themselves lost and counted in"
    assert {key: kept.get(key, 0) + told.get(key, 0) for key in put} == put
    assert spool.stats().dropped >= sum(told.values())


def test_partial_ack_keeps_the_weight_of_what_is_left(opened):
    spool, _ = opened()
    for number in range(10):
        assert spool.offer(carried(seqs=(10 * number + 1, 10 * number + 2)))
    assert spool.flush(10)

    spool.ack(spool.epoch, Lane.SHELL, 4)
    assert spool.flush(10)

    assert [item.first_seq for item in items(spool)] == [41, 51, 61, 71, 81, 91]
    with sqlite3.connect(f"file:{spool._path}?mode=ro", uri=True) as conn:
        assert conn.execute("SELECT weight FROM lanes WHERE lane = 1").fetchone() == (12,)


def test_damaged_spool_is_rebuilt_with_what_reads_and_nodes_begin_again(tmp_path, opened):
    spool, _ = opened()
    for number in range(200):
        while not spool.offer(carried(seqs=(number + 1,), pad=3_000)):
            assert spool.flush(10)
    assert spool.flush(10)
    spool.close()
    path = tmp_path / "spool" / FILE_NAME
    raw = bytearray(path.read_bytes())
    for at in range(len(raw) // 2, len(raw) // 2 + 8_192):
        raw[at] ^= 0xFF
    path.write_bytes(bytes(raw))

    spool, cargo = opened()

    found = items(spool)
    kept = sum(item.events for item in found if isinstance(item, Carried))
    lost = sum(item.data["count"] for item in found if isinstance(item, Event))
    assert spool.stats().recoveries == 1
    assert 0 < kept < 200
    assert kept + lost == 200
    assert cargo.marks == {}


def test_item_that_the_queue_cannot_take_is_not_counted_as_lost(opened, monkeypatch):
    spool, _ = opened()
    monkeypatch.setattr("garrison.minion.spool.intake._LANE_EVENTS", dict.fromkeys(Lane, 0))

    assert spool.offer(carried()) == 0

    monkeypatch.undo()
    assert spool.flush(10)
    assert items(spool) == []
    assert spool.stats().dropped == 0


def test_oldest_item_has_the_age_at_which_the_relay_took_it(opened):
    spool, _ = opened()
    assert spool.offer(carried())
    assert spool.flush(10)

    assert spool.stats().oldest_age_s > 1e9, "taken seven nanoseconds after 1970"
