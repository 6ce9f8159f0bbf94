"""Shell activity as events: whose commands count, what is hidden, how they end, and what is said about lost ones."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from garrison.common.events import Event, Lane, encode_event
from garrison.minion.enforcers.exec_feed import ExecFeed
from garrison.minion.observers.shell import ShellObserver

pytestmark = pytest.mark.root


def until(holds: Callable[[], object], what: str, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.fixture
def watch() -> Iterator[Callable[..., list[Event]]]:
    observers = []

    def start(scope: str, feed: ExecFeed | None = None) -> list[Event]:
        events = list[Event]()
        observer = ShellObserver(feed or ExecFeed(), scope)
        observer.start(events.append)
        observers.append(observer)
        return events

    yield start
    for observer in observers:
        observer.stop()
        observer.stop()


def of(events: list[Event], pid: int) -> list[Event]:
    return [e for e in list(events) if e.actor and e.actor.pid == pid]


def test_command_and_its_end_become_two_events_of_one_actor(watch):
    events = watch("all")

    child = subprocess.Popen(["/usr/bin/id", "-u", "root"], stdout=subprocess.DEVNULL)
    child.wait()

    until(lambda: len(of(events, child.pid)) == 2, "exec and exit")
    started, ended = of(events, child.pid)
    assert (started.kind, ended.kind, started.lane, ended.lane) == ("exec", "exit", Lane.SHELL, Lane.SHELL)
    assert started.actor.args == ("/usr/bin/id", "-u", "root")
    assert (ended.data["exit_code"], ended.actor.exe, ended.actor.args) == (0, "/usr/bin/id", ())
    assert ended.data["duration_ms"] >= 0


def test_scope_login_takes_what_is_typed_at_a_terminal_and_leaves_services_alone(watch):
    events = watch("login")
    service = subprocess.Popen(["/usr/bin/true", "service"], start_new_session=True)
    service.wait()
    pid, fd = pty.fork()
    if pid == 0:
        os.execv("/usr/bin/true", ["/usr/bin/true", "typed"])  # noqa: S606 - argument list, no shell
    os.waitpid(pid, 0)
    os.close(fd)

    until(lambda: len(of(events, pid)) == 2, "the command and its end")
    assert of(events, pid)[0].actor.tty.startswith("pts/")
    assert of(events, service.pid) == []


def test_secret_on_a_command_line_is_never_in_an_event(watch):
    events = watch("all")

    child = subprocess.Popen(["/usr/bin/true", "--password=hunter2hunter2", "--verbose"])
    child.wait()

    until(lambda: of(events, child.pid), "the command")
    (started, *_) = of(events, child.pid)
    assert started.actor.args == ("/usr/bin/true", "--password=[redacted]", "--verbose")
    assert started.data == {"redacted": 1}
    assert not [e for e in events if b"hunter2hunter2" in encode_event(e)]


def test_lost_commands_become_a_gap_event_with_the_count():
    gate, events = threading.Event(), list[Event]()

    def take(event: Event) -> None:
        if event.kind == "exec":
            gate.wait(30)
        events.append(event)

    feed = ExecFeed(ring_bytes=16384)
    observer = ShellObserver(feed, "all")
    observer.start(take)
    try:
        subprocess.run(["sh", "-c", "i=0; while [ $i -lt 100 ]; do i=$((i+1)); /usr/bin/true; done"], check=True)
        assert observer.status().counters["dropped"] > 50
    finally:
        gate.set()
        observer.stop()

    gaps = [e for e in events if e.kind == "gap"]
    counters = feed.counters()
    assert sum(e.data["count"] for e in gaps) == counters["dropped_execs"] + counters["dropped_exits"]
    assert all(e.lane is Lane.SHELL for e in gaps)
