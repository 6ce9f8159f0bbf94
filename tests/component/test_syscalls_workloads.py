"""System call rules for workloads, in the kernel: who is inside or has left is told of, nobody else, as workloads come and go."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from component.test_syscalls import Watch, copied, rule, run, until
from garrison.common.events import Event
from garrison.common.policy.rules import RuleSet, Verdict, WorkloadScope
from garrison.minion.enforcers.syscalls import SyscallsEnforcer
from garrison.minion.workloads.model import Workload, WorkloadKind
from lab.hosts import cgroup2_mount

pytestmark = pytest.mark.root

WEB, BOB = WorkloadScope(labels=("app=web",)), WorkloadScope(labels=("user=bob",))
_names = itertools.count()

# Does what it is told, one word and a path each: in this process, or in a child that was forked before or just now.
_ACTOR = """
import os, sys
child = 0
for word in sys.argv[1:]:
    act, _, path = word.partition(":")
    if act == "unlink":
        os.unlink(path)
    elif act == "move":
        open(path + "/cgroup.procs", "w").write("0")
    elif act == "fork":  # a child that waits until it is let go
        gate, key = os.pipe()
        if (child := os.fork()) == 0:
            os.read(gate, 1)
            os.unlink(path)
            os._exit(0)
    elif act == "send":
        open(path + "/cgroup.procs", "w").write(str(child))
    elif act == "let":
        os.write(key, b"x")
        assert os.waitpid(child, 0)[1] == 0
"""


class Site(Watch):
    """An enforcer, and cgroups to call from."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._made: list[Path] = []

    def cgroup(self, above: str = "") -> str:
        """Make a cgroup, and return its path below the mount."""
        path = f"{above}/calls-{next(_names)}"
        self._made.append(self.at(path))
        self._made[-1].mkdir()
        return path

    @staticmethod
    def at(path: str) -> Path:
        """Where a cgroup is."""
        return cgroup2_mount() / path.lstrip("/")

    def rm(self, name: str, cgroup: str, program: str | Path = "rm") -> None:
        """Have a file of this name removed in a cgroup."""
        run("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', self.at(cgroup), program, self.file(name))

    def act(self, cgroup: str, *words: str) -> None:
        """Have one process, which begins in a cgroup, do these things."""
        line = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(self.at(cgroup)), sys.executable, "-ISc", _ACTOR]
        subprocess.run([*line, *words], check=True, timeout=30)

    def take_away(self) -> None:
        """Remove the cgroups."""
        for path in reversed(self._made):
            until(lambda path=path: not (path / "cgroup.procs").read_text(), f"{path} is empty")
            path.rmdir()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.enforcer.close()
    made.take_away()


def workload(cgroup: str, *labels: str, kind: WorkloadKind = WorkloadKind.CONTAINER) -> Workload:
    """A workload in a cgroup."""
    return Workload(kind=kind, name=cgroup.rpartition("/")[2], labels=frozenset(labels), cgroup=cgroup)


def test_call_is_told_in_the_workload_and_not_in_another_nor_outside(site):
    web, other = site.cgroup(), site.cgroup()
    site.enforcer.set_workloads([workload(web, "app=web"), workload(other, "app=db")])
    (line,) = site.enforcer.apply(RuleSet(rules=(rule("unlinkat", scope=WEB),)))

    site.rm("outside", "/")
    site.rm("other", other)
    site.rm("web", web)

    assert site.objects() == ["unlinkat /web"]
    assert (line.status, line.reason) == ("audited", "")


@pytest.mark.parametrize("kind", [WorkloadKind.UNIT, WorkloadKind.USER])
def test_what_runs_in_a_unit_or_session_is_in_it_however_deep(site, kind):
    outer = site.cgroup()
    inner = site.cgroup(above=site.cgroup(above=outer))
    site.enforcer.set_workloads([workload(outer, "user=bob", kind=kind), workload(inner, "app=web")])
    site.apply(rule("unlinkat", scope=BOB, name="bob"), rule("unlinkat", "/usr/bin/rm", scope=WEB, name="web"))

    site.rm("outer", outer)
    site.rm("inner", inner)
    site.rm("outside", "/")

    assert [(e.rule, e.object.rpartition("/")[2]) for e in site.told()] == [("p/bob", "outer"), ("p/bob", "inner")]


def test_rules_for_all_and_rules_for_a_workload_hold_beside_each_other(site):
    web = site.cgroup()
    site.enforcer.set_workloads([workload(web, "app=web")])
    site.apply(rule("unlinkat", "/usr/bin/rm", name="all"), rule("unlinkat", f"{site.root}//", scope=WEB, name="web"))
    remover = copied("/usr/bin/rm", site.root / "bin/remover")

    site.rm("a", "/")
    site.rm("b", "/", remover)
    site.rm("c", web)
    site.rm("d", web, remover)

    assert [(e.rule, e.object.rpartition("/")[2]) for e in site.told()] == [("p/all", "a"), ("p/all", "c"), ("p/web", "d")]


def test_program_that_is_exempt_in_a_workload_is_told_elsewhere(site):
    web, other = site.cgroup(), site.cgroup()
    site.enforcer.set_workloads([workload(web, "app=web"), workload(other, "app=db")])
    exempt = rule("unlinkat", "/usr/bin/rm", name="exempt", verdict=Verdict.ALLOW, exempts=True, scope=WEB)
    site.apply(rule("unlinkat", name="all"), exempt)

    site.rm("web", web)
    site.rm("other", other)

    assert site.objects() == ["unlinkat /other"]


def test_workloads_come_and_go_while_rules_hold(site):
    web, later = site.cgroup(), site.cgroup()
    (line,) = site.enforcer.apply(RuleSet(rules=(rule("unlinkat", scope=WEB),)))
    assert line.reason.startswith("no workload of this node matches now")

    site.rm("before", web)
    site.enforcer.set_workloads([workload(web, "app=web")])
    site.rm("there", web)
    rows = site.enforcer.loaded.maps["generation"].lookup(bytes(4))
    site.rm("early", later)
    site.enforcer.set_workloads([workload(web, "app=web"), workload(later, "app=web", "tier=1")])
    site.rm("late", later)
    site.enforcer.set_workloads([workload(later, "app=web", "tier=1")])
    site.rm("gone", web)
    site.rm("stays", later)

    assert site.enforcer.loaded.maps["generation"].lookup(bytes(4)) == rows, (
        "one that is selected as others are needs no new rules"
    )
    assert site.objects() == ["unlinkat /there", "unlinkat /late", "unlinkat /stays"]


def test_running_process_obeys_from_its_next_call_on(site):
    web = site.cgroup()
    site.apply(rule("unlinkat,unlink", scope=WEB))
    hold = site.root / "hold"
    subprocess.run(["mkfifo", hold], check=True)
    first, second = site.file("first"), site.file("second")
    script = f"import os; os.unlink({str(first)!r}); open({str(hold)!r}).read(); os.unlink({str(second)!r})"
    line = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(site.at(web)), sys.executable, "-ISc", script]
    child = subprocess.Popen(line)
    until(lambda: not first.exists(), "the first is gone")

    site.enforcer.set_workloads([workload(web, "app=web")])
    hold.write_text("on")
    assert child.wait(30) == 0

    assert site.objects() == ["unlink /second"]


def test_who_left_a_container_is_told_all_the_same_with_its_children(site):
    web = site.cgroup()
    site.enforcer.set_workloads([workload(web, "app=web")])
    site.apply(rule("unlink", scope=WEB))
    files = {name: str(site.file(name)) for name in ("in", "out", "child", "sent")}

    site.act(
        web, f"unlink:{files['in']}", f"fork:{files['sent']}", f"send:{site.at('/')}", "let",
        f"move:{site.at('/')}", f"unlink:{files['out']}", f"fork:{files['child']}", "let",
    )  # fmt: skip

    assert site.objects() == ["unlink /in", "unlink /sent", "unlink /out", "unlink /child"]


def test_who_left_a_unit_has_left_it(site):
    unit = site.cgroup()
    site.enforcer.set_workloads([workload(unit, "app=web", kind=WorkloadKind.UNIT)])
    site.apply(rule("unlink", scope=WEB))

    site.act(unit, f"unlink:{site.file('in')}", f"move:{site.at('/')}", f"unlink:{site.file('out')}")

    assert site.objects() == ["unlink /in"]


def test_new_rules_find_workloads_as_the_old_ones_did(site):
    web = site.cgroup()
    site.enforcer.set_workloads([workload(web, "app=web"), workload(site.cgroup(), "user=bob")])
    for turn in range(4):  # either copy of the table twice, and without rules for workloads in between
        site.apply(rule("unlinkat", scope=WEB, name=f"web-{turn}"), rule("unlinkat", scope=BOB, name=f"bob-{turn}"))
        site.rm(f"{turn}", web)
        site.apply(rule("rmdir", name="other"))
        site.rm(f"{turn}-not", web)

    assert [e.rule for e in site.told()] == [f"p/web-{turn}" for turn in range(4)]


def test_what_is_lost_is_counted_by_rule_also_in_a_workload(site):
    web = site.cgroup()
    gate, events = threading.Event(), list[Event]()
    small = SyscallsEnforcer(lambda event: (gate.wait(30), events.append(event))[1], ring_bytes=16384)
    try:
        small.set_workloads([workload(web, "app=web")])
        rules = (rule("unlinkat", f"{site.root}/rm", scope=WEB, name="a"), rule("unlinkat", scope=BOB, name="b"))
        small.apply(RuleSet(rules=rules))
        for number in range(1000):
            site.file(f"d/{number}")
        line = ("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', site.at(web))
        run(*line, copied("/usr/bin/rm", site.root / "rm"), *(site.root / "d").iterdir())
        assert small.status().counters["dropped.p/a"] > 900
    finally:
        gate.set()
        small.close()

    counters = small.status().counters
    assert len(events) + counters["dropped.p/a"] == 1000
    assert (counters["dropped"], counters.get("dropped.p/b", 0), counters["unhandled"]) == (counters["dropped.p/a"], 0, 0)
