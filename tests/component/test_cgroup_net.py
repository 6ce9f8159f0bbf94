"""Network rules in the real kernel: who is refused what, what is reported, and what happens when things change or run full."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.common.errors import BackendUnsupportedError, CompileError
from garrison.common.events import Event
from garrison.common.policy.rules import (
    Entity,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Protocol,
    Rule,
    RuleSet,
    Source,
    Verdict,
)
from garrison.minion.enforcers.cgroup_net import CgroupNetEnforcer
from lab.hosts import Fabric, cgroup2_mount

pytestmark = pytest.mark.root

TAG = "kernelnet"
UDP = ("udp", "127.0.0.1", "9")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Path:
    """The program that is judged."""
    path = tmp_path_factory.mktemp("net") / "netprobe"
    subprocess.run(["gcc", "-static", "-O1", "-o", path, Path(__file__).with_name("netprobe.c")], check=True)
    return path


@pytest.fixture
def cgroup() -> Iterator[Path]:
    path = cgroup2_mount() / f"{TAG}-{next(_numbers)}"
    path.mkdir(exist_ok=True)
    yield path
    until(lambda: not (path / "cgroup.procs").read_text(), "the cgroup is empty")
    path.rmdir()


class Guard:
    """An enforcer on a cgroup, and what it reported."""

    def __init__(self, cgroup: Path, *, gate: threading.Event | None = None, ring_bytes: int = 1 << 20) -> None:
        self.cgroup, self.events, self._gate = cgroup, list[Event](), gate
        self.enforcer = CgroupNetEnforcer(self._take, cgroup=cgroup, ring_bytes=ring_bytes)

    def _take(self, event: Event) -> None:
        if self._gate is not None:
            self._gate.wait(30)
        self.events.append(event)

    def hold(self, *rules: Rule, posture: Posture = Posture.AUDIT) -> None:
        self.enforcer.apply(RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id)), postures=Postures(network=posture)))

    def argv(self, *argv: str | Path) -> list[str]:
        return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(self.cgroup), *map(str, argv)]

    def run(self, *argv: str | Path) -> str:
        return subprocess.run(self.argv(*argv), check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def seen(self, count: int) -> list[Event]:
        until(lambda: len(self.events) >= count, f"{count} events")
        return self.events


@pytest.fixture
def guard(cgroup) -> Iterator[Guard]:
    made = Guard(cgroup)
    yield made
    made.enforcer.close()


def until(holds: Callable[[], object], what: str, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def rule(name: str, *sources: str, verdict: Verdict = Verdict.BLOCK, number: int = 1, **fields) -> Rule:
    """A rule of policy ``p``; a source that ends in ``**`` is a directory with all below."""
    held = tuple(Source(s.removesuffix("**"), recursive=s.endswith("**")) for s in sources)
    return Rule(
        id=f"p/{number}", policy="p", entity=Entity.NETWORK, verdict=verdict, target=Protocol(name), sources=held, **fields
    )


ATTEMPTS = {
    "tcp": (("tcp", "127.0.0.1", "9"), "tcp", "connect", "tcp://127.0.0.1:9"),
    "tcp6": (("tcp", "::1", "9"), "tcp", "connect", "tcp://[::1]:9"),
    "v4-mapped": (("tcp", "::ffff:127.0.0.1", "9"), "tcp", "connect", "tcp://127.0.0.1:9"),
    "fast-open": (("tfo", "127.0.0.1", "9"), "tcp", "connect", "tcp://127.0.0.1:9"),
    "udp-connect": (("udpc", "127.0.0.1", "9"), "udp", "connect", "udp://127.0.0.1:9"),
    "udp-sendto": (UDP, "udp", "sendmsg", "udp://127.0.0.1:9"),
    "udp6-sendto": (("udp", "::1", "9"), "udp", "sendmsg", "udp://[::1]:9"),
    "udp-v4-mapped": (("udp", "::ffff:127.0.0.1", "9"), "udp", "sendmsg", "udp://127.0.0.1:9"),
    "bind": (("bind", "127.0.0.1", "0"), "tcp", "bind", "tcp://127.0.0.1:0"),
    "bind6": (("bind", "::1", "0"), "tcp", "bind", "tcp://[::1]:0"),
    "udp-bind": (("bindu", "127.0.0.1", "0"), "udp", "bind", "udp://127.0.0.1:0"),
    "raw": (("raw",), "icmp", "socket", "raw://icmp"),
    "raw6": (("raw6",), "raw", "socket", "raw://icmpv6"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_blocked_program_gets_eperm_its_neighbour_does_not_and_the_alert_says_what(guard, probe, tmp_path, attempt):
    argv, protocol, operation, shown = attempt
    other = Path(shutil.copy(probe, tmp_path / "other"))
    before = guard.run(probe, *argv)
    guard.hold(rule(protocol, str(probe), severity=7, tags=("t",), message="no"))

    assert "EPERM" not in before, "positive control"
    assert guard.run(other, *argv) == before
    assert guard.run(probe, *argv) == "EPERM:1"
    (event,) = guard.seen(1)
    assert (event.operation, event.object) == (operation, shown)
    assert (event.verdict, event.result, event.policy, event.rule, event.severity) == ("block", "EPERM", "p", "p/1", 7)
    assert event.data == {"message": "no", "tags": ["t"]}
    assert event.actor is not None
    assert (event.actor.exe, event.actor.uid, event.actor.unit) == (str(probe), 0, f"/{guard.cgroup.name}")
    assert event.actor.pid > 0


def test_audit_rule_lets_pass_and_tells(guard, probe):
    guard.hold(rule("udp", verdict=Verdict.AUDIT))

    assert guard.run(probe, *UDP) == "ok:1"
    assert [(e.verdict, e.result) for e in guard.seen(1)] == [("audit", "passed")]


@pytest.mark.parametrize(("posture", "said"), [(Posture.BLOCK, "EPERM:1"), (Posture.AUDIT, "ok:1")])
def test_allow_list_gives_the_rest_the_posture(guard, probe, posture, said):
    guard.hold(rule("tcp", str(probe), verdict=Verdict.ALLOW), posture=posture)

    assert guard.run(probe, "tcp", "127.0.0.1", "9") == "ECONNREFUSED:1"
    assert guard.run(probe, *UDP) == said
    (event,) = guard.seen(1)
    assert (event.rule, event.data["by_posture"]) == ("p/1", True)


def test_packet_and_unix_sockets_pass_as_the_report_says(guard, probe):
    guard.hold(rule("all"))

    assert guard.run(probe, "packet") == "ok:1"
    assert guard.run(probe, "unix") == "ok:1"
    assert guard.run(probe, "raw") == "EPERM:1"


@pytest.mark.parametrize("length", [1, 8, 31, 32, 33, 64, 255])
def test_names_of_every_length_are_told_apart_by_their_last_byte(guard, probe, tmp_path, length):
    stem = "n" * (length - 1)
    named, other = (Path(shutil.copy(probe, tmp_path / (stem + end))) for end in "ab")
    guard.hold(rule("udp", str(named)))

    assert guard.run(named, *UDP) == "EPERM:1"
    assert guard.run(other, *UDP) == "ok:1"


def test_directories_mean_what_match_says_at_every_depth(guard, probe, tmp_path):
    deep = tmp_path / "/".join(["ddd"] * 60)
    for directory in (tmp_path / "flat" / "below", tmp_path / "tree" / "below", deep):
        directory.mkdir(parents=True)
    places = {name: Path(shutil.copy(probe, tmp_path / name)) for name in ("flat/p", "flat/below/p", "tree/p", "tree/below/p")}
    places["deep"] = Path(shutil.copy(probe, deep / "p"))
    guard.hold(
        rule("udp", f"{tmp_path}/flat/", f"{tmp_path}/tree/**", f"{tmp_path}/ddd/**"),
        rule("tcp", f"{tmp_path}/**", verdict=Verdict.AUDIT, number=2),
    )

    said = {name: guard.run(path, *UDP) for name, path in places.items()}

    assert said == {
        "flat/p": "EPERM:1",
        "flat/below/p": "ok:1",
        "tree/p": "EPERM:1",
        "tree/below/p": "EPERM:1",
        "deep": "EPERM:1",
    }
    assert guard.run(probe, *UDP) == "ok:1"


def test_program_on_another_mount_is_known_by_its_whole_path(guard, probe, tmp_path):
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "kernel-test", place], check=True)
    try:
        named = Path(shutil.copy(probe, place / "p"))
        guard.hold(rule("udp", str(named)))
        assert guard.run(named, *UDP) == "EPERM:1"
        guard.hold(rule("udp", f"{tmp_path}/**"))
        assert guard.run(named, *UDP) == "EPERM:1"
    finally:
        subprocess.run(["umount", place], check=True)


def test_program_without_a_path_counts_as_source_of_block_rules(guard, probe):
    guard.hold(rule("udp", "/nowhere/else"))

    assert guard.run(probe, *UDP) == "ok:1", "positive control"
    assert guard.run(probe, "memfd", *UDP) == "EPERM:1"
    assert guard.enforcer.status().counters["unresolved"] == 1


def test_program_without_a_path_is_never_the_source_of_an_allow_rule(guard, probe):
    guard.hold(rule("udp"), rule("udp", "/**", verdict=Verdict.ALLOW, number=2))

    assert guard.run(probe, *UDP) == "ok:1", "positive control: the allow rule exempts it"
    assert guard.run(probe, "memfd", *UDP) == "EPERM:1"


def test_program_put_in_the_place_of_another_is_judged_by_its_path(guard, probe, tmp_path):
    named = Path(shutil.copy(probe, tmp_path / "named"))
    guard.hold(rule("udp", str(named)))

    Path(shutil.copy(probe, tmp_path / "newer")).replace(named)

    assert guard.run(named, *UDP) == "EPERM:1"


def test_swapping_rules_under_load_lets_nothing_through(guard, probe):
    guard.hold(rule("udp"))
    worker = subprocess.Popen(guard.argv(probe, *UDP, "300000"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    swaps = 0
    while worker.poll() is None:
        swaps += 1
        guard.hold(rule("udp", number=swaps), rule("tcp", f"/opt/{swaps}", number=0))

    said, _ = worker.communicate(timeout=60)
    assert said.strip() == "EPERM:300000"
    assert swaps > 1


def test_full_ring_refuses_all_the_same_and_counts_each_lost_alert_by_rule(cgroup, probe):
    gate = threading.Event()
    guard = Guard(cgroup, gate=gate, ring_bytes=8192)
    try:
        guard.hold(rule("udp"))
        assert guard.run(probe, *UDP, "500") == "EPERM:500"
        counters = guard.enforcer.status().counters
        gate.set()

        assert counters["blocked"] == 500
        assert counters["dropped"] == counters["dropped.p/1"] > 400
        assert len(guard.seen(500 - counters["dropped"])) + counters["dropped"] == 500
        guard.enforcer.close()
        assert guard.enforcer.status().counters["dropped.p/1"] == counters["dropped"], "figures outlive the programs"
    finally:
        gate.set()
        guard.enforcer.close()


def test_rules_that_do_not_compile_leave_the_previous_ones_in_force(guard, probe):
    guard.hold(rule("udp"))
    wrong = Rule(id="p/9", policy="p", entity=Entity.NETWORK, verdict=Verdict.BLOCK, target=PathTarget(PathKind.EXACT, "/x"))

    with pytest.raises(CompileError):
        guard.hold(wrong)

    assert guard.run(probe, *UDP) == "EPERM:1"


def test_without_network_rules_and_after_close_nothing_is_attached(guard, probe):
    guard.hold(rule("udp"))
    guard.hold()
    assert guard.enforcer.loaded is None
    assert guard.run(probe, *UDP) == "ok:1"
    guard.hold(rule("udp"))
    assert guard.run(probe, *UDP) == "EPERM:1"

    guard.enforcer.close()
    guard.enforcer.close()

    assert guard.run(probe, *UDP) == "ok:1"


def test_cgroup_that_goes_away_is_told_by_the_status():
    path = cgroup2_mount() / f"{TAG}-gone"
    path.mkdir()
    guard = Guard(path)
    guard.hold(rule("udp"))
    assert guard.enforcer.status().healthy

    path.rmdir()

    assert not guard.enforcer.status().healthy
    assert "gone" in guard.enforcer.status().detail
    guard.enforcer.close()


def test_cgroup_that_is_not_there_is_said_by_the_probe_and_refused_by_apply(tmp_path):
    enforcer = CgroupNetEnforcer(lambda _: None, cgroup=tmp_path / "none")

    assert not enforcer.probe().ok
    assert "none" in enforcer.probe().reason
    with pytest.raises(BackendUnsupportedError):
        enforcer.apply(RuleSet(rules=(rule("udp"),)))


_IN_HOST = """
import json, socket, subprocess, sys, time
from pathlib import Path
from garrison.common.policy.rules import *
from garrison.minion.enforcers.cgroup_net import CgroupNetEnforcer
cgroup, probe = sys.argv[1:]
events, out = [], {}
enforcer = CgroupNetEnforcer(events.append, cgroup=Path(cgroup))
free = Rule(id="p/1", policy="p", entity=Entity.NETWORK, verdict=Verdict.BLOCK, target=Protocol("all"))
named = Rule(id="p/2", policy="p", entity=Entity.NETWORK, verdict=Verdict.BLOCK, target=Protocol("udp"), sources=(Source(probe),))
enforcer.apply(RuleSet(rules=(named,)))
child = subprocess.Popen([probe, "udp", "127.0.0.1", "9"], stdout=subprocess.PIPE, text=True)
out["named"], out["pid"] = child.communicate()[0].strip(), child.pid
enforcer.apply(RuleSet(rules=(free,)))
out["child"] = subprocess.run([probe, "udp", "127.0.0.1", "9"], stdout=subprocess.PIPE, text=True).stdout.strip()
out["agent"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
deadline = time.monotonic() + 5
while len(events) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
enforcer.close()
out["actors"] = [[e.actor.pid, e.actor.exe, e.rule] for e in events]
print(json.dumps(out))
"""


def test_host_on_an_overlay_root_with_pids_of_its_own_is_guarded_and_its_agent_is_not_refused(tmp_path, probe):
    fabric = Fabric(TAG, tmp_path / "hosts")
    try:
        host = fabric.host("edge-1")
        shutil.copy(probe, host.path("/usr/local/bin/netprobe"))

        done = host.run(sys.executable, "-c", _IN_HOST, str(host.cgroup), "/usr/local/bin/netprobe")

        assert done.returncode == 0, done.stderr
        out = json.loads(done.stdout)
        assert (out["named"], out["child"], out["agent"]) == ("EPERM:1", "EPERM:1", 1)
        assert out["actors"][0] == [out["pid"], "/usr/local/bin/netprobe", "p/2"]
        assert out["actors"][1][2] == "p/1"
    finally:
        fabric.close()
