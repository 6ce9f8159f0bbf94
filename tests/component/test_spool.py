"""The spool on real disks: killed at any moment, full, read-only."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from garrison.common.errors import SpoolError
from garrison.common.events import Event, Kind, Lane, decode_event
from garrison.minion.spool import Spool, SpoolCaps

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CAPS = SpoolCaps.of_total(32 << 20)

WRITER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from garrison.common.events import Event, Lane
    from garrison.minion.spool import Spool, SpoolCaps

    directory, start = Path(sys.argv[1]), int(sys.argv[2])
    spool = Spool.open(directory, SpoolCaps.of_total(32 << 20), boot="boot")
    number, acked = start, 0
    while True:
        for _ in range(37):
            spool.put(Event(lane=Lane(number % 5), kind="exec", data={"n": number, "pad": "x" * (number % 700)}))
            number += 1
        if not spool.flush(10):
            sys.exit(3)
        os.write(1, b"%d\\n" % number)  # everything below is durable
        batch = spool.next_batch(Lane(number % 5), 0, 20, 1 << 20)
        if batch is not None and number % 3 == 0:
            # What a master does: store (here: tell), then acknowledge.
            os.write(1, b"stored %d %s\\n" % (batch.lane, b",".join(b"%d" % seq for seq in batch.seqs)))
            spool.ack(batch.epoch, Lane(batch.lane), batch.seqs[-1])
""")


def drain(spool, lane):
    found, after = [], 0
    while batch := spool.next_batch(lane, after, 1000, 1 << 20):
        found += zip(batch.seqs, map(decode_event, batch.events), strict=True)
        after = batch.seqs[-1]
    return found


def until(look, what, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if look():
            return
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def test_writer_killed_again_and_again_keeps_everything_it_called_durable_and_uses_no_number_twice(tmp_path):
    """Each round: a process writes and acknowledges, is killed at a random moment; then every event is accounted for."""
    rng = random.Random(7)  # noqa: S311 - the moment of a kill is no secret
    durable, stored, event_of_seq = 0, set(), {}
    for _ in range(30):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(durable)], stdout=subprocess.PIPE, text=True)
        lines = [writer.stdout.readline() for _ in range(rng.randrange(1, 40))]
        writer.kill()
        lines += writer.stdout.readlines()
        writer.wait()
        for line in lines:
            if line.startswith("stored") and line.endswith("\n"):
                stored |= {int(seq) for seq in line.split()[2].split(",")}
            elif line.endswith("\n") and line.strip():
                durable = max(durable, int(line))

        spool = Spool.open(tmp_path, CAPS, boot="boot")
        for lane in Lane:
            for seq, event in drain(spool, lane):
                assert event.kind == "exec"
                assert event_of_seq.setdefault(seq, event.data["n"]) == event.data["n"], "a number means one event for ever"
        durable = max([durable, *(number + 1 for number in event_of_seq.values())])
        spool.close()

    held = {number for seq, number in event_of_seq.items()}
    with_unknown_content = len(stored - set(event_of_seq))  # stored and deleted before this test could look
    assert len(held) + with_unknown_content >= durable
    assert len(held) == len(event_of_seq), "each event under one number"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "spool-test", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(place):
    ballast = place / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return ballast


def test_full_disk_keeps_events_in_memory_and_loses_none_once_there_is_room(small_disk):
    spool = Spool.open(small_disk / "spool", SpoolCaps.of_total(4 << 20), boot="boot")
    spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": -1}))
    assert spool.flush(5)
    ballast = fill_up(small_disk)

    for number in range(3000):
        spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": number, "pad": "x" * 200}))
    until(lambda: spool.stats().disk_error, "the disk refuses")
    assert not spool.flush(0.2)
    ballast.unlink()

    assert spool.flush(20)
    assert [event.data["n"] for _, event in drain(spool, Lane.SHELL)] == list(range(-1, 3000))
    assert spool.stats().disk_error == ""
    spool.close()


def test_disk_that_stays_full_costs_counted_events_and_the_agent_goes_on(small_disk):
    spool = Spool.open(small_disk / "spool", SpoolCaps.of_total(4 << 20), boot="boot")
    ballast = fill_up(small_disk)
    count = 70_000
    for number in range(count):
        spool.put(Event(lane=Lane.METRIC, kind="metric", data={"n": number}))
    for number in range(100):
        spool.put(Event(lane=Lane.ALERT, kind="alert", data={"n": number}))
    until(lambda: spool.stats().disk_error, "the disk refuses")

    ballast.unlink()
    assert spool.flush(30)

    metrics = [event for _, event in drain(spool, Lane.METRIC)]
    kept = sum(1 for event in metrics if event.kind != Kind.GAP)
    gaps = [event.data for event in metrics if event.kind == Kind.GAP]
    assert kept + sum(gap["count"] for gap in gaps) == count
    assert any("disk" in gap["reason"] or "queue" in gap["reason"] for gap in gaps)
    assert len(drain(spool, Lane.ALERT)) == 100
    spool.close()


def test_spool_at_its_cap_on_a_disk_hardly_larger_goes_on(small_disk):
    spool = Spool.open(small_disk / "spool", SpoolCaps.of_total(4 << 20), boot="boot")

    for round_ in range(20):
        for number in range(2000):
            spool.put(Event(lane=Lane(number % 5), kind="exec", data={"n": round_ * 2000 + number, "pad": "x" * 300}))
        assert spool.flush(20), spool.stats()

    assert spool.stats().disk_errors == 0
    spool.close()


def test_closing_with_a_full_disk_ends_and_what_was_durable_stays(small_disk):
    spool = Spool.open(small_disk / "spool", SpoolCaps.of_total(4 << 20), boot="boot")
    spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": 0}))
    assert spool.flush(5)
    ballast = fill_up(small_disk)
    for number in range(1, 3000):
        spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": number, "pad": "x" * 400}))
    until(lambda: spool.stats().disk_error, "the disk refuses")

    spool.close()
    ballast.unlink()

    again = Spool.open(small_disk / "spool", SpoolCaps.of_total(4 << 20), boot="boot")
    numbers = [event.data["n"] for _, event in drain(again, Lane.SHELL)]
    assert numbers == list(range(len(numbers)))
    assert numbers
    again.close()


def test_full_disk_at_the_start_is_an_error_that_passes(small_disk):
    ballast = fill_up(small_disk)

    with pytest.raises(SpoolError):
        Spool.open(small_disk / "spool", SpoolCaps.of_total(4 << 20), boot="boot")
    ballast.unlink()

    Spool.open(small_disk / "spool", SpoolCaps.of_total(4 << 20), boot="boot").close()


def test_put_to_durable_memory_stays_small(tmp_path):
    """The agent promises 45 MiB at rest; a backlog on disk must not come into memory."""
    program = textwrap.dedent(f"""
        import json, resource
        from pathlib import Path
        from garrison.common.events import Event, Lane
        from garrison.minion.spool import Spool, SpoolCaps

        spool = Spool.open(Path("{tmp_path}"), SpoolCaps.of_total(64 << 20), boot="boot")
        spool.put(Event(lane=Lane.SHELL, kind="exec"))
        spool.flush(10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for part in range(100):
            for number in range(1000):
                spool.put(Event(lane=Lane.SHELL, kind="exec", data={{"n": number, "pad": "x" * 300}}))
            spool.flush(10)
        after = 0
        while batch := spool.next_batch(Lane.SHELL, after, 2000, 512 << 10):
            after = batch.seqs[-1]
        print(json.dumps({{"grown_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}}))
    """)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert json.loads(done.stdout)["grown_kib"] < 12 << 10


def test_reopening_a_large_backlog_needs_no_reading_of_it(tmp_path):
    spool = Spool.open(tmp_path, SpoolCaps.of_total(128 << 20), boot="boot")
    for _ in range(60):
        for number in range(3000):
            spool.put(Event(lane=Lane.SHELL, kind="exec", data={"n": number, "pad": "x" * 400}))
        assert spool.flush(20)
    waiting = spool.pending()[Lane.SHELL]
    spool.close()
    assert (tmp_path / "spool.db").stat().st_size > 64 << 20
    read_before = _read_bytes()

    again = Spool.open(tmp_path, SpoolCaps.of_total(128 << 20), boot="boot")

    assert again.pending()[Lane.SHELL] == waiting
    assert _read_bytes() - read_before < 4 << 20
    again.close()


def _read_bytes():
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])
