"""The deadman as a process of its own: it waits, it obeys one word, and it acts when nobody says it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.common.errors import KernelError
from garrison.minion import arming
from garrison.minion.arming import DEADMAN, Armed, arm, await_last, read_record

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "d" * 64


class Node:
    """A runtime directory and a process that stands for an agent."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.agent = subprocess.Popen(["sleep", "600"])
        self.armed: Armed | None = None

    def arm(self, timeout_s: float = 600) -> Armed:
        self.armed = arm(
            self.runtime_dir, generation=3, digest=DIGEST, boot="this", timeout_s=timeout_s, writes=(), agent=self.agent.pid
        )
        return self.armed

    def state(self) -> str:
        record = read_record(self.runtime_dir)
        return record.state if record else ""

    def close(self) -> None:
        self.agent.kill()
        self.agent.wait()
        if self.armed is not None:
            until(lambda: not self.armed.alive)


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def node(tmp_path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def test_armed_deadman_waits_and_says_so(node):
    armed = node.arm()

    record = read_record(node.runtime_dir)
    assert (record.state, record.generation, record.digest, record.boot) == ("armed", 3, DIGEST, "this")
    assert 0 < record.left_s <= 600
    assert record.deadline_boottime == armed.deadline
    assert armed.alive


def test_disarmed_deadman_ends_and_touches_nothing(node):
    armed = node.arm()

    assert armed.disarm(DIGEST)

    assert not armed.alive
    assert node.state() == "disarmed"
    assert node.agent.poll() is None


def test_wrong_digest_disarms_nothing(node):
    armed = node.arm()

    assert not armed.disarm("e" * 64)

    assert armed.alive
    assert node.state() == "armed"
    assert armed.disarm(DIGEST)


def test_time_that_is_over_ends_the_agent_and_is_on_record(node):
    node.arm(timeout_s=0.2)

    assert node.agent.wait(30) == -signal.SIGKILL
    until(lambda: not node.armed.alive)
    record = read_record(node.runtime_dir)
    assert (record.state, record.errors) == ("reverted", ())
    assert "within 0.2 s" in record.why


def test_stopped_agent_is_ended_too(node):
    node.agent.send_signal(signal.SIGSTOP)

    node.arm(timeout_s=0.2)

    assert node.agent.wait(30) == -signal.SIGKILL


def test_death_of_the_agent_is_not_waited_out(node):
    node.arm(timeout_s=86_400)

    node.agent.kill()
    node.agent.wait()

    until(lambda: not node.armed.alive)
    assert read_record(node.runtime_dir).why == "the agent ended before it was confirmed"


def test_word_that_comes_too_late_confirms_nothing(node):
    armed = node.arm(timeout_s=0.1)
    until(lambda: not armed.alive)

    with pytest.raises(KernelError, match="deadman"):
        armed.disarm(DIGEST)

    assert node.state() == "reverted"


def test_agent_that_went_back_by_itself_stands_it_down(node):
    armed = node.arm()

    armed.stand_down("no ssh")

    record = read_record(node.runtime_dir)
    assert (record.state, record.why) == ("stood down", "no ssh")
    armed.stand_down("again: it is gone, and nothing happens")
    assert node.agent.poll() is None


def test_agent_that_cannot_go_back_is_ended(node):
    node.arm().go_back("cannot go back")

    assert node.agent.wait(30) == -signal.SIGKILL
    until(lambda: not node.armed.alive)
    assert read_record(node.runtime_dir).why == "cannot go back"


def test_deadman_that_is_told_to_end_goes_back_first_and_spares_the_agent(node):
    node.arm()

    os.kill(read_record(node.runtime_dir).pid, signal.SIGTERM)

    until(lambda: not node.armed.alive)
    assert node.state() == "reverted"
    assert node.agent.poll() is None


def test_deadman_that_was_killed_is_seen(node):
    armed = node.arm()

    os.kill(read_record(node.runtime_dir).pid, signal.SIGKILL)

    until(lambda: not armed.alive)
    with pytest.raises(KernelError):
        armed.disarm(DIGEST)


def test_deadman_that_cannot_be_started_is_an_error(node, monkeypatch):
    monkeypatch.setattr(arming, "interpreter", lambda: ["/nonexistent/python"])

    with pytest.raises(KernelError, match="start the deadman"):
        node.arm()


def test_deadman_whose_writes_cannot_be_rehearsed_does_not_arm(node):
    with (Path(node.runtime_dir) / "no-map").open("wb") as file, pytest.raises(KernelError, match="start the deadman"):
        arm(
            node.runtime_dir,
            generation=3,
            digest=DIGEST,
            boot="this",
            timeout_s=60,
            writes=(arming.MapWrite(file.fileno(), bytes(4), bytes(4)),),
            agent=node.agent.pid,
        )


def test_next_agent_waits_for_a_deadman_that_is_still_at_work(node):
    node.arm(timeout_s=0.5)

    record = await_last(node.runtime_dir, "this")

    assert record.state == "reverted"
    until(lambda: not node.armed.alive)


def test_next_agent_ends_a_deadman_that_hangs(node, monkeypatch):
    node.arm()
    pid = read_record(node.runtime_dir).pid
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(arming, "_ANSWER_MAX_S", 0.1)

    record = await_last(node.runtime_dir, "this")

    assert record.state == "armed"
    assert not node.armed.alive


def test_old_deadman_does_not_write_into_the_record_of_a_new_one(node):
    first = node.arm()
    second = node.arm()

    first.stand_down("superseded")

    assert node.state() == "armed"
    second.disarm(DIGEST)


def test_deadman_needs_the_standard_library_alone():
    """It is started without site-packages: an import of anything else would only fail on the day that counts."""
    code = f"import runpy, sys, json; runpy.run_path({str(DEADMAN)!r}); print(json.dumps(sorted(sys.modules)))"

    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)

    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded <= sys.stdlib_module_names | {"__main__", "_sysconfigdata__linux_x86_64-linux-gnu", "sitecustomize"}
