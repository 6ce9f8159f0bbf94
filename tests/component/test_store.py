"""The master's store under load, kills, backup and restore, with real processes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from component.test_master import Master
from fakes.clock import Clock
from fakes.old_store import everything, expected, old_store
from fakes.peer import batch_of
from fakes.store_child import open_and_close, take_in
from garrison.common.events import Event, Lane
from garrison.common.frames import Ack
from garrison.common.names import NodeName
from garrison.master.store import EventFilter, Store

MANY = 100_000  # in 36 files: moving the rest takes far longer than noticing that some are there

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


def events_of(store_path: Path) -> list[Event]:
    store = Store(store_path)
    found, cursor = [], 0
    while page := store.events_page(EventFilter(), after=cursor):
        found += [e for _, e in page]
        cursor = page[-1][0]
    store.close()
    return found


@contextlib.contextmanager
def mounted(where: Path, *, size_kib: int) -> Iterator[None]:
    """A small file system of its own."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", where], check=True)


def restore(directory: Path, backup: Path) -> None:
    """What docs/master.md says: the store's files away, the copy's into their place."""
    for path in directory.glob("store.db*"):
        path.unlink()
    shutil.rmtree(directory / "events")
    shutil.copytree(backup, directory, dirs_exist_ok=True)


@pytest.fixture
def master(tmp_path_factory):
    made = Master(tmp_path_factory.mktemp("gm"))
    made.start()
    yield made
    made.close()


# ---- kill -9 ---------------------------------------------------------------------------------------------------------
def test_store_killed_at_any_moment_over_many_midnights_has_each_event_once_and_all_that_was_acked(tmp_path):
    path = tmp_path / "store.db"
    dice = random.Random(4)  # noqa: S311 - where it is killed, the same each time
    total = {Lane.ALERT: list(range(1, 1_500, 3)), Lane.SHELL: list(range(2, 1_500, 3)), Lane.METRIC: list(range(3, 1_500, 3))}
    acked, rounds = dict.fromkeys(total, 0), 0
    context = multiprocessing.get_context("spawn")
    finished = False
    while not finished:
        ours, theirs = context.Pipe()
        left = {lane: [seq for seq in seqs if seq > acked[lane]] for lane, seqs in total.items()}
        child = context.Process(target=take_in, args=(path, rounds * 5, left, theirs))
        child.start()
        theirs.close()
        for _ in range(dice.randrange(3, 60) if rounds < 8 else 10**6):
            if (told := ours.recv()) is None:
                finished = True
                break
            lane, seq = told
            acked[Lane(lane)] = max(acked[Lane(lane)], seq)
        assert child.pid is not None
        if not finished:
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        rounds += 1

    found = [(e.lane, e.seq) for e in events_of(path)]

    assert rounds > 3, "it was killed several times"
    assert len({name.name[:10] for name in (tmp_path / "events").iterdir()}) > 10, "over several days"
    assert len(found) == len(set(found)), "nothing twice"
    assert set(found) == {(lane, seq) for lane, seqs in total.items() for seq in seqs}, "nothing lost"


@pytest.mark.parametrize("files", [1, 10, 20], ids=["at its beginning", "later", "later still"])
def test_upgrade_that_is_killed_goes_on_and_loses_and_repeats_nothing(tmp_path, files):
    clock, path = Clock(), tmp_path / "store.db"
    old_store(path, MANY, clock, every_s=15)
    child = multiprocessing.get_context("spawn").Process(target=open_and_close, args=(path,))
    child.start()
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "events").glob("*.db"))) < files:
        assert time.monotonic() < deadline, "the upgrade goes on"
        assert child.is_alive(), "killed before its end"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert path.stat().st_size > 1 << 20, "the old table is there still"

    store = Store(path, clock_ns=clock)

    assert everything(store) == expected(MANY)
    assert sum(facts.events for _, facts in store.event_log.catalogue.files()) == MANY
    assert store.acked(NodeName("n1"), "e1") == {0: MANY, 1: MANY - 2}
    store.close()


# ---- backup ------------------------------------------------------------------------------------------------------------
def test_backup_made_while_events_come_in_is_one_moment_of_all_lanes(master, tmp_path):
    peer, stop = master.enrolled(), threading.Event()
    acked: dict[int, int] = {}

    def send() -> None:
        n = 0
        while not stop.is_set():
            lane = Lane.ALERT if n % 2 else Lane.METRIC
            peer.send(batch_of(list(range(n * 50 + 1, n * 50 + 51)), lane=lane))
            answer = peer.wait_for(Ack)
            acked[answer.lane] = answer.seq
            n += 1

    sender = threading.Thread(target=send)
    sender.start()
    master.until(lambda: len(acked) == 2, "events come in")
    before = dict(acked)
    done = json.loads(master.cli("store", "backup", str(tmp_path / "copy"), "--json").stdout)
    stop.set()
    sender.join()

    copy = Store(tmp_path / "copy" / "store.db")
    found = [e for _, e in copy.events_page(EventFilter(), after=0)]
    nodes = [node.name for node in copy.nodes()]
    copy.close()

    seqs = sorted(e.seq for e in found)
    assert seqs == list(range(1, len(seqs) + 1)), "the lanes took turns: a later batch is not there without the one before it"
    assert all(max(e.seq for e in found if e.lane == lane) >= seq for lane, seq in before.items()), (
        "what was acked before is there"
    )
    assert done["events"] == len(found)
    assert nodes == ["n1"]


def test_backup_refuses_a_folder_that_holds_something_and_leaves_it_alone(master, tmp_path):
    (tmp_path / "precious").write_text("mine")

    refused = master.cli("store", "backup", str(tmp_path), ok=(2,))

    assert "not empty" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_backup_that_fails_leaves_nothing_behind(master, tmp_path):
    peer = master.enrolled()
    peer.send(batch_of(list(range(1, 2_000))))
    peer.wait_for(Ack)
    small = tmp_path / "small"
    small.mkdir()
    with mounted(small, size_kib=200):
        failed = master.cli("store", "backup", str(small / "copy"), ok=(1,))
        left = list(small.iterdir())

    assert "room" in failed.stderr
    assert left == []
    assert master.cli("store", "backup", str(tmp_path / "copy")).returncode == 0, "the next one goes"


# ---- restore -----------------------------------------------------------------------------------------------------------
def test_master_restored_from_an_older_copy_says_what_it_lacks_and_gets_all_that_the_node_still_holds(make_fleet, tmp_path):
    fleet = make_fleet(1)
    host = fleet.fabric.hosts["edge-1"]

    def ran(word: str) -> bool:
        return any(e["actor"].get("args") == ["/usr/bin/echo", word] for e in fleet.events("--kind", "exec"))

    host.run("/usr/bin/echo", "before-the-copy")
    fleet.until(lambda: ran("before-the-copy"), "events arrive")
    fleet.cli("store", "backup", str(tmp_path / "copy"))
    for n in range(20):
        host.run("/usr/bin/echo", f"after-{n}")
    fleet.until(lambda: ran("after-19"), "more events arrive")
    fleet.end_master()
    shutil.copytree(fleet.directory, tmp_path / "old")
    host.run("/usr/bin/echo", "while-it-was-gone")

    restore(fleet.directory, tmp_path / "copy")
    fleet.start_master()
    fleet.until(lambda: ran("while-it-was-gone"), "the node goes on")
    gaps = fleet.until(lambda: [e for e in fleet.events("--kind", "gap") if "of_epoch" in e["data"]], "the loss is told")
    fleet.end_master()

    held, old = events_of(fleet.directory / "store.db"), events_of(tmp_path / "old" / "store.db")
    here = {(e.epoch, e.lane, e.seq) for e in held}
    missing = [e for e in old if (e.epoch, e.lane, e.seq) not in here]
    assert missing, "the copy is older"
    assert len(here) == len(held), "nothing twice"
    for lane in Lane:
        told = [gap for gap in gaps if gap.get("lane", Lane.STATE) == lane]
        lost = [e.seq for e in missing if e.lane == lane]
        assert sum(gap["data"]["count"] for gap in told) == len(lost), f"exact for {lane.name}: {told}"
        assert all(gap["data"]["first_seq"] <= min(lost) and max(lost) <= gap["data"]["last_seq"] for gap in told)
    log = (fleet.work / "master.log").read_text()
    assert "restored from an older copy: node edge-1 had been acked up to" in log


# ---- retention -----------------------------------------------------------------------------------------------------------
def test_operator_sees_what_the_store_holds_and_prunes_what_it_need_not_keep(master):
    peer = master.enrolled()
    peer.send(batch_of([1, 2, 3], lane=Lane.METRIC))
    peer.wait_for(Ack)
    master.end()
    events = master.directory / "events"
    (day,) = events.glob("*.metric.db")
    shutil.copy(day, events / "2020-01-01.metric.db")  # as if it had come then
    day.unlink()
    master.start()

    info = json.loads(master.cli("store", "info", "--json").stdout)
    shown = master.cli("store", "info").stdout
    checked = json.loads(master.cli("store", "prune", "--check", "--json").stdout)
    assert [lane["events"] for lane in info["lanes"] if lane["lane"] == "metric"] == [3]
    assert "goes next: metric of 2020-01-01, 3 events" in shown
    assert [(one["lane"], one["day"]) for one in checked["dropped"]] == [("metric", "2020-01-01")]
    assert (events / "2020-01-01.metric.db").exists()

    pruned = master.cli("store", "prune").stderr

    assert "dropped metric of 2020-01-01: 3 events" in pruned
    assert not (events / "2020-01-01.metric.db").exists()
    (told,) = master.events("--kind", "retention")
    assert (told["node"], told["data"]["count"]) == ("(master)", 3)
    peer.connect()
    assert peer.hello().acked == {"4": 3}, "what the node was acked is still known"
    assert "nothing has to go" in master.cli("store", "prune").stderr
