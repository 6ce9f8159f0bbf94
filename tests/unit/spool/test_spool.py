"""What the spool promises to the rest of the agent."""

import sqlite3
import threading

import pytest

from garrison.common import limits
from garrison.common.errors import SpoolError
from garrison.common.events import Event, Kind, Lane, decode_event
from garrison.minion.spool import Spool, SpoolCaps
from garrison.minion.spool.schema import VERSION
from garrison.minion.spool.spool import FILE_NAME

CAPS = SpoolCaps.of_total(4 << 20)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "spool"


def opened(directory, caps=CAPS):
    return Spool.open(directory, caps, boot="boot")


def fill(spool, lane, count, size=100, start=0):
    for number in range(start, start + count):
        spool.put(Event(lane=lane, kind="exec", data={"n": number, "pad": "x" * size}))
    assert spool.flush(20)


def drain(spool, lane):
    events, after = [], 0
    while batch := spool.next_batch(lane, after, 500, 1 << 20):
        events += [decode_event(raw) for raw in batch.events]
        after = batch.seqs[-1]
    return events


def test_events_are_read_back_by_lane_in_order(directory):
    spool = opened(directory)
    fill(spool, Lane.SHELL, 1500)
    fill(spool, Lane.ALERT, 3)

    first = spool.next_batch(Lane.SHELL, 0, 700, 1 << 20)

    assert first.seqs == list(range(1, 701))
    assert [e.data["n"] for e in drain(spool, Lane.SHELL)] == list(range(1500))
    assert spool.next_batch(Lane.ALERT, 0, 10, 1 << 20).seqs == [1501, 1502, 1503]
    assert spool.pending()[Lane.SHELL] == 1500
    spool.close()


def test_batch_is_bounded_in_bytes_but_never_empty(directory):
    spool = opened(directory)
    fill(spool, Lane.SHELL, 10, size=1000)

    assert len(spool.next_batch(Lane.SHELL, 0, 100, 3500).seqs) == 3
    assert len(spool.next_batch(Lane.SHELL, 0, 100, 1).seqs) == 1
    spool.close()


def test_ack_in_the_middle_of_a_segment_keeps_the_rest(directory):
    spool = opened(directory)
    fill(spool, Lane.SHELL, 100)

    spool.ack(spool.epoch, Lane.SHELL, 37)
    assert spool.flush(5)

    assert [e.data["n"] for e in drain(spool, Lane.SHELL)] == list(range(37, 100))
    assert spool.pending()[Lane.SHELL] == 63
    spool.close()


@pytest.mark.parametrize(("epoch", "seq"), [("feedfeedfeedfeed", 100), (None, 0)], ids=["other-epoch", "zero"])
def test_ack_that_means_nothing_deletes_nothing(directory, epoch, seq):
    spool = opened(directory)
    fill(spool, Lane.SHELL, 10)

    spool.ack(epoch or spool.epoch, Lane.SHELL, seq)
    assert spool.flush(5)

    assert spool.pending()[Lane.SHELL] == 10
    spool.close()


def test_ack_beyond_the_end_does_not_swallow_later_events(directory):
    spool = opened(directory)
    fill(spool, Lane.SHELL, 10)
    spool.ack(spool.epoch, Lane.SHELL, (1 << 63) - 1)
    assert spool.flush(5)

    fill(spool, Lane.SHELL, 5)

    assert spool.pending()[Lane.SHELL] == 5
    assert len(drain(spool, Lane.SHELL)) == 5
    spool.close()


def test_numbers_are_not_used_again_after_everything_was_acked_and_the_spool_reopened(directory):
    spool = opened(directory)
    fill(spool, Lane.SHELL, 10)
    spool.ack(spool.epoch, Lane.SHELL, 10)
    assert spool.flush(5)
    epoch = spool.epoch
    spool.close()

    spool = opened(directory)
    fill(spool, Lane.SHELL, 1)

    assert spool.epoch == epoch
    assert spool.next_batch(Lane.SHELL, 0, 1, 1 << 20).seqs[0] > 10
    spool.close()


def test_renewed_epoch_keeps_the_events_and_ignores_acks_of_the_old_one(directory):
    spool = opened(directory)
    fill(spool, Lane.SHELL, 10)
    old = spool.epoch

    spool.renew("restored from a copy")
    spool.ack(old, Lane.SHELL, 10)
    assert spool.flush(5)

    assert spool.epoch != old
    assert spool.next_batch(Lane.SHELL, 0, 100, 1 << 20).epoch == spool.epoch
    assert spool.pending()[Lane.SHELL] == 10
    spool.close()


def test_full_spool_drops_the_oldest_of_the_least_precious_lane_and_says_exactly_what(directory):
    spool = opened(directory, SpoolCaps.of_total(1 << 20))
    fill(spool, Lane.METRIC, 1000, size=400)
    fill(spool, Lane.ALERT, 2000, size=400)

    metrics, alerts = drain(spool, Lane.METRIC), drain(spool, Lane.ALERT)

    gaps = [e.data for e in metrics if e.kind == Kind.GAP]
    kept = [e.data["n"] for e in metrics if e.kind != Kind.GAP]
    assert kept == list(range(1000 - len(kept), 1000)), "the newest stay"
    assert kept, "the floor is kept"
    assert sum(gap["count"] for gap in gaps) == 1000 - len(kept)
    assert all(gap["first_seq"] <= gap["last_seq"] and gap["reason"] for gap in gaps)
    assert len([e for e in alerts if e.kind != Kind.GAP]) > 1500
    spool.close()


def test_flood_of_alerts_takes_all_but_the_floors_of_the_others(directory):
    caps = SpoolCaps.of_total(1 << 20)
    spool = opened(directory, caps)
    for lane in (Lane.SHELL, Lane.ERROR, Lane.STATE, Lane.METRIC):
        fill(spool, lane, 2000, size=400)
    fill(spool, Lane.ALERT, 5000, size=400)

    used = spool.stats().bytes

    for lane in (Lane.SHELL, Lane.ERROR, Lane.STATE, Lane.METRIC):
        assert used[lane.name.lower()] >= caps.floors[lane] * 0.5
    assert used["alert"] <= caps.total_bytes * 0.6
    spool.close()


def test_file_stays_near_its_cap_however_much_flows_through(directory):
    caps = SpoolCaps.of_total(4 << 20)
    spool = opened(directory, caps)
    for round_ in range(60):
        for lane in Lane:
            fill(spool, lane, 150, size=100 + 37 * (round_ % 40))

    assert spool.stats().file_bytes < caps.total_bytes * 1.4
    spool.close()


def test_full_queue_counts_the_least_precious_first_and_the_counts_become_gaps(directory):
    spool = opened(directory, SpoolCaps.of_total(512 << 20))
    blocker = sqlite3.connect(directory / FILE_NAME, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # what a stuck disk looks like to the writer

    for number in range(limits.SPOOL_QUEUE_MAX_EVENTS):
        spool.put(Event(lane=Lane.METRIC, kind="metric", data={"n": number}))
    for number in range(1000):
        spool.put(Event(lane=Lane.ALERT, kind="alert", data={"n": number}))
    assert not spool.flush(0.05)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert spool.flush(30)

    metrics = drain(spool, Lane.METRIC)
    lost = sum(e.data["count"] for e in metrics if e.kind == Kind.GAP)
    assert lost > 0
    assert len([e for e in metrics if e.kind != Kind.GAP]) + lost == limits.SPOOL_QUEUE_MAX_EVENTS
    assert [e.data["n"] for e in drain(spool, Lane.ALERT)] == list(range(1000))
    spool.close()


def test_event_that_cannot_be_encoded_is_counted_and_put_does_not_raise(directory):
    spool = opened(directory)

    spool.put(Event(lane=Lane.SHELL, kind="exec", object="\udcff"))
    spool.put(Event(lane=Lane.SHELL, kind="exec", object="x" * limits.EVENT_MAX_BYTES))
    spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": 1 << 70}))
    spool.put(Event(lane=77, kind="exec"))
    assert spool.flush(5)

    assert [e.data["count"] for e in drain(spool, Lane.SHELL)] == [3]
    assert [e.data["count"] for e in drain(spool, Lane.STATE)] == [1]
    spool.close()


def test_gap_that_is_dropped_itself_still_counts(directory):
    spool = opened(directory, SpoolCaps.of_total(1 << 20))
    spool.put(Event(lane=Lane.METRIC, kind=Kind.GAP, data={"count": 5000, "first_seq": 0, "last_seq": 0, "reason": "before"}))
    fill(spool, Lane.METRIC, 5000, size=400)

    events = drain(spool, Lane.METRIC)

    kept = sum(1 for e in events if e.kind != Kind.GAP)
    assert sum(e.data["count"] for e in events if e.kind == Kind.GAP) == 10_000 - kept
    spool.close()


def test_second_process_is_refused(directory):
    spool = opened(directory)

    with pytest.raises(SpoolError, match="another process"):
        opened(directory)

    spool.close()
    opened(directory).close()


def test_spool_that_cannot_be_made_says_where_and_why(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(SpoolError, match="file"):
        opened(tmp_path / "file")


def test_subscriber_is_called_after_a_commit_until_it_leaves(directory):
    spool = opened(directory)
    seen = threading.Event()
    leave = spool.subscribe(seen.set)
    fill(spool, Lane.ALERT, 1)
    assert seen.is_set()

    leave()
    seen.clear()
    fill(spool, Lane.ALERT, 1)

    assert not seen.is_set()
    spool.close()


def test_subscriber_whose_loop_has_ended_does_not_stop_the_writer(directory):
    def gone():
        raise RuntimeError("Event loop is closed")

    spool = opened(directory)
    spool.subscribe(gone)

    fill(spool, Lane.ALERT, 1)
    fill(spool, Lane.ALERT, 1)

    assert spool.pending()[Lane.ALERT] == 2
    spool.close()


def test_put_from_many_threads_keeps_each_event_once(directory):
    spool = opened(directory, SpoolCaps.of_total(64 << 20))

    def work(base):
        for number in range(1000):
            spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": base + number}))

    threads = [threading.Thread(target=work, args=(k * 1000,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spool.flush(20)

    assert sorted(e.data["n"] for e in drain(spool, Lane.SHELL)) == list(range(8000))
    spool.close()


def test_put_after_close_is_harmless(directory):
    spool = opened(directory)
    spool.close()

    spool.put(Event(lane=Lane.SHELL, kind="exec"))
    spool.close()

    assert spool.next_batch(Lane.SHELL, 0, 1, 1) is None


def test_new_file_has_the_current_version_and_the_durable_settings(directory):
    spool = opened(directory)
    conn = sqlite3.connect(directory / FILE_NAME)

    assert conn.execute("PRAGMA user_version").fetchone()[0] == VERSION
    assert conn.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert conn.execute("PRAGMA auto_vacuum").fetchone()[0] == 2

    conn.close()
    spool.close()


def test_stats_tell_what_waits_and_since_when(directory):
    spool = opened(directory)
    spool.put(Event(lane=Lane.SHELL, kind="exec", ts=1))
    assert spool.flush(5)

    stats = spool.stats()

    assert (stats.pending["shell"], stats.committed, stats.queued, stats.disk_error) == (1, 1, 0, "")
    assert stats.oldest_age_s > 1e6
    spool.close()
