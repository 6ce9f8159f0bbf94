"""The deadman on real kernel maps: one write brings back what was, with everything else gone."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.bpf.loader import BpfMap, MapType
from garrison.minion.arming import Armed, arm, read_record
from garrison.minion.enforcers.base import MapWrite

pytestmark = pytest.mark.root

KEY, OLD, NEW = bytes(4), struct.pack("=I", 0), struct.pack("=I", 1)
OURS = struct.pack("=QII", 1, 2, 3)
NOBODY = struct.pack("=QII", 1, 2, 0)


@pytest.fixture
def maps() -> Iterator[tuple[BpfMap, BpfMap]]:
    active = BpfMap.create(MapType.ARRAY, 4, 4, 1, name="active")
    agent = BpfMap.create(MapType.ARRAY, 4, 16, 1, name="agent")
    agent.update(KEY, OURS)
    yield active, agent
    active.close()
    agent.close()


@pytest.fixture
def agent() -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(["sleep", "600"])
    yield made
    made.kill()
    made.wait()


def armed_over(maps, tmp_path, agent, timeout_s: float = 600) -> Armed:
    writes = (MapWrite(maps[0].fd, KEY, OLD), MapWrite(maps[1].fd, KEY, NOBODY))
    return arm(tmp_path, generation=2, digest="d" * 64, boot="b", timeout_s=timeout_s, writes=writes, agent=agent.pid)


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_arming_changes_no_map(maps, tmp_path, agent):
    maps[0].update(KEY, NEW)

    armed = armed_over(maps, tmp_path, agent)

    assert maps[0].lookup(KEY) == NEW
    assert maps[1].lookup(KEY) == OURS
    assert armed.disarm("d" * 64)
    assert maps[0].lookup(KEY) == NEW


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_agent_that_is_gone_or_stuck_has_the_maps_written_back(maps, tmp_path, agent, how):
    armed = armed_over(maps, tmp_path, agent, timeout_s=0.5 if how is signal.SIGSTOP else 600)
    maps[0].update(KEY, NEW)

    agent.send_signal(how)

    agent.wait(30)
    until(lambda: not armed.alive)
    assert maps[0].lookup(KEY) == OLD
    assert maps[1].lookup(KEY) == NOBODY
    assert read_record(tmp_path).errors == ()


def test_no_memory_may_be_had_and_no_file_opened_when_it_counts(maps, tmp_path, agent):
    """With a limit of no further descriptors and no further memory, as where everything is denied."""
    armed = armed_over(maps, tmp_path, agent)
    maps[0].update(KEY, NEW)
    pid = read_record(tmp_path).pid
    for limit in ("--nofile=3:3", "--data=1:1", "--fsize=4096:4096", "--nproc=0:0"):
        subprocess.run(["prlimit", f"--pid={pid}", limit], check=True)

    agent.kill()
    agent.wait()

    until(lambda: not armed.alive)
    assert maps[0].lookup(KEY) == OLD
    assert read_record(tmp_path).state == "reverted"


def test_deadman_is_locked_in_memory_and_in_a_session_of_its_own(maps, tmp_path, agent):
    armed = armed_over(maps, tmp_path, agent)
    pid = read_record(tmp_path).pid

    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines())

    assert int(status["VmLck"].split()[0]) > 0
    assert os.getsid(pid) == pid
    armed.stand_down("done")
