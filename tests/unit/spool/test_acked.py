"""What a spool knows of what it gave away: the number and the count by which a master finds out that it forgot something."""

from __future__ import annotations

import sqlite3

import pytest

from garrison.common.events import Event, Lane
from garrison.minion.spool import Spool, SpoolCaps
from garrison.minion.spool.spool import FILE_NAME


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "spool"


def opened(directory) -> Spool:
    return Spool.open(directory, SpoolCaps.of_total(64 << 20), boot="boot")


def put(spool, lane, count):
    for _ in range(count):
        spool.put(Event(lane=lane, kind="exec"))
    assert spool.flush(5)


def ack(spool, lane, seq):
    spool.ack(spool.epoch, lane, seq)
    assert spool.flush(5)


def test_acknowledged_events_are_counted_by_lane_also_over_a_restart(directory):
    spool = opened(directory)
    put(spool, Lane.SHELL, 10)
    put(spool, Lane.ALERT, 3)
    ack(spool, Lane.SHELL, 4)
    spool.close()
    again = opened(directory)
    ack(again, Lane.SHELL, 7)
    ack(again, Lane.SHELL, 7)
    ack(again, Lane.ALERT, 13)

    assert again.acked() == {Lane.SHELL: (7, 7), Lane.ALERT: (13, 3)}
    again.close()


def test_new_epoch_counts_from_nothing(directory):
    spool = opened(directory)
    put(spool, Lane.SHELL, 5)
    ack(spool, Lane.SHELL, 3)
    spool.renew("a test")
    assert spool.flush(5)

    assert spool.acked() == {}
    ack(spool, Lane.SHELL, 5)
    assert spool.acked() == {Lane.SHELL: (5, 2)}
    spool.close()


def test_spool_of_an_older_agent_does_not_pretend_to_have_counted(directory):
    spool = opened(directory)
    put(spool, Lane.SHELL, 5)
    ack(spool, Lane.SHELL, 3)
    spool.close()
    conn = sqlite3.connect(directory / FILE_NAME, isolation_level=None)
    conn.execute("ALTER TABLE lanes DROP COLUMN done")
    conn.execute("PRAGMA user_version=1")
    conn.close()

    again = opened(directory)
    put(again, Lane.ALERT, 2)
    ack(again, Lane.SHELL, 4)
    ack(again, Lane.ALERT, again.next_seq - 1)

    assert again.acked()[Lane.SHELL] == (4, -1)
    assert again.acked()[Lane.ALERT][1] == 2, "this lane had given nothing away yet"
    again.close()
