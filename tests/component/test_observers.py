"""Errors are collected from the real kernel log, a real journald and real files, once over every kind of restart."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from garrison.common import limits
from garrison.common.events import Kind, Lane, encode_event
from garrison.minion.observers import _positions
from garrison.minion.observers.errors import ErrorObserver

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

JOURNALD = Path("/lib/systemd/systemd-journald")
_START_JOURNALD = """
mount --make-rprivate / && mount -t tmpfs observe /run && mount -t tmpfs observe /var/log
mkdir -p /run/systemd/journal /run/log/journal /run/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=\\nForwardToWall=no\\n' >/run/systemd/journald.conf.d/test.conf
exec /lib/systemd/systemd-journald
"""


def until(look, what, timeout_s=20):
    """Return the first true answer of ``look``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = look()
        if answer:
            return answer
        threading.Event().wait(0.02)
    pytest.fail(f"not within {timeout_s} s: {what}")


class Watch:
    """Observers of one state directory, one after the other, and all events that they gave."""

    def __init__(self, state, **how):
        self.state, self.how, self.events, self.observer = state, how, [], None

    def start(self):
        self.observer = ErrorObserver(files=self.how.get("files", ()), state_dir=self.state, journal=self.how.get("journal"))
        self.observer.start(self.events.append)
        until(lambda: not self._unsettled(), "every source is where it begins")
        return self

    def _unsettled(self):
        wanted = (
            {"kernel"} | ({"files"} if self.how.get("files") else set()) | ({"journal"} if self.how.get("journal") else set())
        )
        return [name for name in wanted if not (self.state / f"{name}.json").exists()]

    def stop(self):
        self.observer.stop()

    def messages(self, mark):
        return [e.data["message"] for e in list(self.events) if mark in str(e.data["message"])]

    def expect(self, mark, count):
        until(lambda: len(self.messages(mark)) >= count, f"{count} messages with {mark}: {self.observer.status()}")
        return self.messages(mark)


@pytest.fixture
def mark():
    return f"observe-{secrets.token_hex(6)}"


@pytest.fixture
def watch(tmp_path):
    made = []

    def make(**how):
        made.append(Watch(tmp_path / "state", **how))
        return made[-1]

    yield make
    for one in made:
        if one.observer is not None:
            one.stop()


def kernel_says(text, priority=3):
    """Write a record as a program may; one open each, since the kernel limits the rate by descriptor."""
    with Path("/dev/kmsg").open("w") as kmsg:
        kmsg.write(f"<{priority}>{text}\n")


def test_kernel_errors_are_told_and_lesser_ones_are_not(watch, mark):
    seen = watch().start()

    kernel_says(f"{mark} warning", priority=4)
    kernel_says(f"{mark} critical", priority=2)

    assert seen.expect(mark, 1) == [f"{mark} critical"]
    event = next(e for e in seen.events if mark in str(e.data["message"]))
    assert (event.lane, event.kind, event.data["source"], event.data["priority"]) == (Lane.ERROR, Kind.ERROR, "kernel", 2)
    assert abs(event.ts - time.time_ns()) < 60e9
    assert seen.observer.status().healthy
    encode_event(event)


def test_kernel_errors_while_the_agent_is_down_are_told_once_when_it_is_back(watch, mark):
    seen = watch()
    kernel_says(f"{mark} before the first start")
    seen.start()
    kernel_says(f"{mark} one")
    seen.expect(mark, 1)
    seen.stop()
    kernel_says(f"{mark} two")
    seen.start()
    kernel_says(f"{mark} three")

    assert seen.expect(mark, 3) == [f"{mark} one", f"{mark} two", f"{mark} three"]


def test_after_a_reboot_the_whole_kernel_log_is_new(watch, mark, tmp_path):
    kernel_says(f"{mark} early in this boot")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kernel.json").write_text('{"version": 1, "position": {"boot": "another", "seq": 999999999}}')

    assert watch().start().expect(mark, 1) == [f"{mark} early in this boot"]


@pytest.fixture
def journald():
    if not JOURNALD.exists() or shutil.which("journalctl") is None:
        pytest.skip("this machine has no systemd-journald")
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", _START_JOURNALD], stderr=subprocess.DEVNULL)
    root = Path(f"/proc/{process.pid}/root/run")
    until(lambda: (root / "systemd/journal/socket").exists() and any((root / "log/journal").iterdir()), "journald is up")
    yield Journald(root)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)


class Journald:
    """A journald of its own, spoken to by its native protocol."""

    def __init__(self, run):
        self.directory, self._socket = run / "log/journal", str(run / "systemd/journal/socket")

    def say(self, message, priority=3, **fields):
        lines = {"MESSAGE": message, "PRIORITY": priority, **fields}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(self._socket)
            sock.send("".join(f"{key}={value}\n" for key, value in lines.items()).encode())


def test_journal_errors_are_told_with_their_unit_and_lesser_ones_are_not(watch, journald, mark):
    seen = watch(journal=journald.directory).start()

    journald.say(f"{mark} info", priority=6)
    journald.say(f"{mark} bad", UNIT="db.service", SYSLOG_IDENTIFIER="systemd")

    assert seen.expect(mark, 1) == [f"{mark} bad"]
    event = next(e for e in seen.events if mark in str(e.data["message"]))
    assert (event.data["source"], event.object, event.data["identifier"]) == ("journal", "db.service", "systemd")


def test_journal_errors_while_the_agent_is_down_are_told_once_when_it_is_back(watch, journald, mark):
    journald.say(f"{mark} before the first start")
    seen = watch(journal=journald.directory).start()
    seen.stop()
    journald.say(f"{mark} one")
    seen.start()
    journald.say(f"{mark} two")
    assert seen.expect(mark, 2) == [f"{mark} one", f"{mark} two"]
    seen.stop()
    seen.start()
    journald.say(f"{mark} three")

    assert seen.expect(mark, 3) == [f"{mark} one", f"{mark} two", f"{mark} three"]


def test_journalctl_that_dies_is_started_again_where_it_was(watch, journald, mark, monkeypatch):
    monkeypatch.setattr("garrison.minion.observers._worker.RETRY_S", 0.1)
    seen = watch(journal=journald.directory).start()
    journald.say(f"{mark} one")
    seen.expect(mark, 1)

    for pid in children_of_all_threads():
        if Path(f"/proc/{pid}/comm").exists() and Path(f"/proc/{pid}/comm").read_text().strip() == "journalctl":
            os.kill(int(pid), signal.SIGKILL)
    journald.say(f"{mark} two")

    assert seen.expect(mark, 2) == [f"{mark} one", f"{mark} two"]
    assert seen.observer.status().counters["journal_restarts"] == 1
    until(lambda: seen.observer.status().healthy, "it is healthy again")


def children_of_all_threads():
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def test_log_file_is_followed_through_a_rotation_by_another_process(watch, tmp_path, mark):
    log = tmp_path / "app.log"
    log.touch()
    seen = watch(files=(log,)).start()

    script = (
        "import os, sys\n"
        "log, mark = sys.argv[1:]\n"
        "held = open(log, 'a')\n"
        "held.write(f'ERROR {mark} aaa\\n'); held.flush()\n"
        "os.rename(log, log + '.1')\n"
        "held.write(f'ERROR {mark} bbb\\n'); held.flush()\n"
        "open(log, 'a').write(f'ERROR {mark} ccc\\n')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(log), mark], check=True, timeout=20)

    assert seen.expect(mark, 3) == [f"ERROR {mark} {word}" for word in ("aaa", "bbb", "ccc")]


_AGENT = """
import sys, threading
from pathlib import Path
from garrison.minion.observers.errors import ErrorObserver
log, state, out = map(Path, sys.argv[1:])
told = out.open("a")
def emit(event):
    told.write(str(event.data["message"]) + "\\n")
    told.flush()
ErrorObserver(files=(log,), state_dir=state).start(emit)
threading.Event().wait()
"""


def test_agent_killed_again_and_again_skips_no_line_of_a_file(tmp_path):
    """At least once: what was told shortly before the kill may come twice, nothing is missing."""
    log, state, out = tmp_path / "app.log", tmp_path / "state", tmp_path / "told"
    log.touch()
    out.touch()
    written = 0
    for _ in range(3):
        agent = subprocess.Popen([sys.executable, "-c", _AGENT, str(log), str(state), str(out)])
        until((state / "files.json").exists, "the agent watches")
        for _ in range(limits.ERROR_REPEATS_MAX):
            written += 1
            with log.open("a") as file:
                file.write(f"ERROR kind-{'x' * written} happened\n")
        until(lambda: f"kind-{'x' * written} " in out.read_text(), "the last line is told")  # noqa: B023
        agent.kill()
        agent.wait(timeout=10)

    told = out.read_text().splitlines()
    assert {f"ERROR kind-{'x' * n} happened" for n in range(1, written + 1)} <= set(told)


def test_storm_in_a_file_is_told_by_exact_counts(watch, tmp_path, mark):
    log = tmp_path / "app.log"
    log.touch()
    seen = watch(files=(log,)).start()

    with log.open("a") as file:
        file.write("".join(f"ERROR {mark} number {n}\n" for n in range(50_000)))
    until(lambda: seen.observer.status().counters["files_found"] == 50_000, "all are read")
    seen.stop()

    assert len(seen.events) <= 4 * (limits.ERROR_REPEATS_MAX + 1)
    assert sum(int(e.data.get("count", 1)) for e in seen.events) == 50_000


def test_state_directory_that_cannot_be_written_shows_and_errors_are_told_all_the_same(tmp_path, mark):
    (tmp_path / "state").write_text("in the way")
    events = []
    observer = ErrorObserver(files=(), state_dir=tmp_path / "state")
    observer.start(events.append)
    try:
        until(lambda: "cannot be written" in observer.status().detail, "the cause shows")
        kernel_says(f"{mark} all the same")
        until(lambda: any(mark in str(e.data["message"]) for e in events), "the error is told")
        assert not observer.status().healthy
    finally:
        observer.stop()


def test_position_settles_later_than_the_spool_commits():
    assert _positions.SETTLE_S > 100 * limits.SPOOL_COMMIT_MAX_S
