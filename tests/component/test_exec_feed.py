"""Commands as the kernel saw them: whole, in order, each once, or counted as lost; and process rules watched with them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.common import limits
from garrison.common.events import Event
from garrison.common.policy.rules import Entity, Mode, PathKind, PathTarget, Rule, RuleSet, Source, Verdict
from garrison.minion.enforcers.audit import AuditEnforcer
from garrison.minion.enforcers.exec_feed import Exec, ExecFeed, Exit, FeedEvent
from lab.hosts import Fabric, cgroup2_mount

pytestmark = pytest.mark.root

TAG = "kernelfeed"


def until(holds: Callable[[], object], what: str, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.fixture
def feed() -> Iterator[tuple[ExecFeed, list[FeedEvent]]]:
    made, events = ExecFeed(), list[FeedEvent]()
    stop = made.subscribe(events.append)
    yield made, events
    stop()


def command(events: list[FeedEvent], pid: int) -> tuple[Exec, Exit]:
    """The last exec and the exit of a process; other tests' and people's commands are seen too."""

    def own(kind: type) -> list[FeedEvent]:
        return [e for e in list(events) if isinstance(e, kind) and e.actor.pid == pid]

    until(lambda: own(Exec) and own(Exit), f"exec and exit of {pid}")
    started, ended = own(Exec)[-1], own(Exit)[-1]
    assert isinstance(started, Exec)
    assert isinstance(ended, Exit)
    return started, ended


def run(*argv: str, **options) -> int:
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, **options)
    child.wait(30)
    return child.pid


def test_command_is_told_with_who_what_where_and_how_it_ended(feed, tmp_path):
    started, ended = command(feed[1], run("/usr/bin/env", "-u", "NOTHING", "sh", "-c", "exit 3", cwd=tmp_path))

    assert started.actor.exe == os.path.realpath("/bin/sh")
    assert started.actor.args == ("sh", "-c", "exit 3")
    assert (started.actor.cwd, started.actor.ppid, started.actor.uid) == (str(tmp_path), os.getpid(), 0)
    assert (started.exe_known, started.args_known) == (True, True)
    assert (ended.exit_code, ended.signal) == (3, 0)
    assert abs(started.ts - time.time_ns()) < 60e9
    assert started.mono < ended.mono


def test_signal_is_told_as_a_shell_tells_it(feed):
    _, ended = command(feed[1], run("sh", "-c", "kill -TERM $$"))

    assert (ended.exit_code, ended.signal) == (143, 15)


def test_process_whose_first_thread_ended_first_is_told_once_with_its_exit_code(feed):
    script = "import os, threading, ctypes; threading.Thread(target=lambda: (time.sleep(0.05), os._exit(9))).start(); "
    pid = run(sys.executable, "-c", f"import time; {script} ctypes.CDLL(None).pthread_exit(None)")

    _, ended = command(feed[1], pid)

    assert ended.exit_code == 9
    assert len([e for e in feed[1] if isinstance(e, Exit) and e.actor.pid == pid]) == 1


def test_long_arguments_and_deep_folders_come_whole_within_the_limits(feed, tmp_path):
    deep = tmp_path.joinpath(*["folder-with-a-long-name"] * 20)
    deep.mkdir(parents=True)
    args = [f"{i}-" + "x" * 300 for i in range(50)]

    started, _ = command(feed[1], run("/usr/bin/true", *args, cwd=deep))

    assert started.actor.cwd == str(deep)
    assert started.actor.args == ("/usr/bin/true", *args)
    assert started.args_known


def test_arguments_beyond_the_limits_are_cut_and_marked(feed):
    started, _ = command(feed[1], run("/usr/bin/true", "y" * 100_000, "z"))

    assert not started.args_known
    assert started.actor.args[1].endswith("[...]")
    assert started.actor.args[-1] == "[...]"
    assert len(started.actor.args[1]) == limits.EVENT_ARG_MAX_CHARS


def test_terminal_is_told(feed):
    pid, fd = pty.fork()
    if pid == 0:
        os.execv("/usr/bin/tty", ["tty"])  # noqa: S606 - argument list, no shell
    said = os.read(fd, 100).decode().strip()
    os.waitpid(pid, 0)
    os.close(fd)

    started, _ = command(feed[1], pid)

    assert f"/dev/{started.actor.tty}" == said


@pytest.mark.skipif(not Path("/proc/self/loginuid").exists(), reason="this kernel has no audit: no login uid")
def test_login_is_told(feed):
    script = "echo 4711 >/proc/self/loginuid && exec /usr/bin/true logged-in"

    started, _ = command(feed[1], run("sh", "-c", script))

    assert started.actor.auid == 4711
    assert started.actor.ses > 0


def test_cgroup_is_told_by_name_also_after_it_is_gone(feed):
    unit = cgroup2_mount() / f"{TAG}.slice" / "demo.service"
    unit.mkdir(parents=True, exist_ok=True)
    try:
        pid = run("sh", "-c", f"echo 0 >{unit}/cgroup.procs && exec /usr/bin/true")
        started, _ = command(feed[1], pid)
        assert started.actor.unit == "demo.service"
    finally:
        unit.rmdir()
        unit.parent.rmdir()


def test_thousand_commands_in_a_burst_arrive_each_once_or_are_counted(feed):
    made, events = feed
    subprocess.run(["sh", "-c", "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); /usr/bin/true burst-$i; done"], check=True)

    def marks() -> list[str]:
        return [
            e.actor.args[1] for e in list(events) if isinstance(e, Exec) and e.actor.args[1:2] and "burst-" in e.actor.args[1]
        ]

    counters = made.counters()
    if counters["dropped_execs"] == 0:
        until(lambda: len(marks()) >= 1000, "all arrive")
        assert marks() == [f"burst-{i}" for i in range(1, 1001)], "in order, each once"
    else:
        until(lambda: len(marks()) + counters["dropped_execs"] >= 1000, "the rest arrives")


def test_what_does_not_fit_into_the_ring_is_counted_exactly():
    made, gate, seen = ExecFeed(ring_bytes=16384), threading.Event(), list[FeedEvent]()
    stop = made.subscribe(lambda event: (gate.wait(30), seen.append(event)))
    try:
        subprocess.run(["sh", "-c", "i=0; while [ $i -lt 100 ]; do i=$((i+1)); /usr/bin/true; done"], check=True)
        assert made.counters()["dropped_execs"] > 50
    finally:
        gate.set()
        stop()

    counters = made.counters()
    execs = sum(isinstance(e, Exec) for e in seen)
    assert execs + counters["dropped_execs"] == counters["execs"]
    assert len(seen) - execs + counters["dropped_exits"] == counters["exits"]


def test_feed_is_loaded_with_the_first_subscriber_and_unloaded_with_the_last():
    made, one, two = ExecFeed(), list[FeedEvent](), list[FeedEvent]()
    assert not made.alive
    stop_one, stop_two = made.subscribe(one.append), made.subscribe(two.append)
    command(two, run("/usr/bin/true"))
    stop_one()
    stop_one()
    seen = len(one)
    command(two, run("/usr/bin/true"))

    stop_two()

    assert not made.alive
    assert len(one) == seen
    assert made.counters()["execs"] >= 2


def test_subscriber_that_fails_costs_the_others_nothing():
    made, events = ExecFeed(), list[FeedEvent]()
    stops = [made.subscribe(lambda _: 1 / 0), made.subscribe(events.append)]

    command(events, run("/usr/bin/true"))

    for stop in stops:
        stop()
    assert made.counters()["unhandled"] >= 2


_IN_HOST = """
import json, os, subprocess, sys, time
from garrison.minion.enforcers.exec_feed import Exec, ExecFeed
events = []
stop = ExecFeed.shared().subscribe(events.append)
print("watching", flush=True)
sys.stdin.readline()
child = subprocess.Popen(["/usr/bin/true", "inside"])
child.wait()
deadline = time.monotonic() + 5
while not any(e.actor.pid == child.pid for e in events) and time.monotonic() < deadline:
    time.sleep(0.01)
stop()
seen = [[e.actor.pid, e.actor.ppid, e.actor.exe, e.actor.args] for e in events if isinstance(e, Exec)]
print(json.dumps([child.pid, os.getpid(), seen]))
"""


def test_agent_in_a_pid_namespace_sees_its_own_commands_by_its_own_numbers_and_nobody_elses(tmp_path):
    fabric = Fabric(TAG, tmp_path / "hosts")
    try:
        host = fabric.host("edge-1")
        agent = subprocess.Popen(
            host.argv([sys.executable, "-c", _IN_HOST]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert agent.stdout is not None
        assert agent.stdout.readline() == "watching\n"
        subprocess.run(["/usr/bin/true", "outside"], check=True)
        out, _ = agent.communicate("go\n", timeout=30)
        pid, agent_pid, seen = json.loads(out)

        assert [pid, agent_pid, "/usr/bin/true", ["/usr/bin/true", "inside"]] in seen
        assert not [args for *_, args in seen if "outside" in args]
    finally:
        fabric.close()


def process_rule(path: str, verdict: Verdict = Verdict.BLOCK, number: int = 1, **fields) -> Rule:
    target = PathTarget(PathKind.EXACT, path)
    return Rule(id=f"p/{number}", policy="p", entity=Entity.PROCESS, verdict=verdict, target=target, **fields)


@pytest.fixture
def audit() -> Iterator[tuple[AuditEnforcer, list[Event]]]:
    events = list[Event]()
    made = AuditEnforcer(events.append, feed=ExecFeed())
    yield made, events
    made.close()


def test_watched_program_runs_and_is_reported_as_passed(audit):
    enforcer, events = audit
    reports = enforcer.apply(RuleSet(rules=(process_rule("/usr/bin/base64", severity=8),)))

    assert subprocess.run(["/usr/bin/base64", "/etc/hostname"], check=False, capture_output=True).returncode == 0

    assert [(r.status, r.reason) for r in reports] == [("degraded", "audit only: sees, cannot refuse")]
    until(lambda: events, "the alert")
    (event,) = events
    assert (event.operation, event.object, event.verdict, event.result) == ("exec", "/usr/bin/base64", "audit", "passed")
    assert (event.policy, event.rule, event.severity, event.backend) == ("p", "p/1", 8, "audit")


def test_source_is_the_program_that_called(audit):
    enforcer, events = audit
    shell = os.path.realpath("/bin/sh")
    enforcer.apply(RuleSet(rules=(process_rule("/usr/bin/base64", Verdict.AUDIT, sources=(Source(shell),)),)))

    subprocess.run(["/usr/bin/base64", "/etc/hostname"], check=True, capture_output=True)
    subprocess.run(["sh", "-c", "/usr/bin/base64 /etc/hosts; true"], check=True, capture_output=True)

    until(lambda: events, "the alert")
    assert [e.actor.args[1] for e in events if e.actor] == ["/etc/hosts"]


def test_audit_reports_what_it_makes_of_each_rule(audit):
    rules = (
        process_rule("/a", Verdict.AUDIT, 1),
        process_rule("/b", mode=Mode.AUDIT, number=2),
        process_rule("/c", Verdict.ALLOW, 3),
        process_rule("/d", number=4),
    )

    assert [r.status for r in audit[0].compile(RuleSet(rules=rules))] == ["audited", "audited", "audited", "degraded"]
