"""The preset ``exec``: what comes into a running workload from outside starts no program there, and the workload itself does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest

from garrison.common.policy.rules import Entity, Other, Rule, Verdict, WorkloadScope
from garrison.minion.workloads.model import Workload, WorkloadKind
from vm.lab import K61, K612, Background, Lab, Machine
from vm.lsm import Guard

_ROOT = "/sys/fs/cgroup"
WEB = WorkloadScope(labels=("app=web",))
_names = itertools.count()

# Takes steps that stand one a line in its input; says what came of each.
_STEPS = r"""
import ctypes, os, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def procs(cgroup):
    return f"/sys/fs/cgroup{cgroup}/cgroup.procs"
def move(cgroup, pid=0):
    open(procs(cgroup), "w").write(str(pid))
def run():
    subprocess.run(["/bin/true"], check=True)
def put(cgroup):
    # Another process is put there, as runtimes do it, and starts a program then.
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(r, 1)
        try:
            os.execv("/bin/true", ["true"])
        except OSError as err:
            os._exit(err.errno)
    move(cgroup, pid)
    os.write(w, b"x")
    finish(pid)
def born(cgroup):
    fd = os.open(f"/sys/fs/cgroup{cgroup}", os.O_RDONLY)
    args = struct.pack("=QQQQQQQQQQQ", 1 << 33, 0, 0, 0, 17, 0, 0, 0, 0, 0, fd)
    pid = libc.syscall(435, args, len(args))
    if not pid:
        try:
            os.execv("/bin/true", ["true"])
        except OSError as err:
            os._exit(err.errno)
    assert pid > 0, ctypes.get_errno()
    finish(pid)
def finish(pid):
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(code, "exec")
def thread():
    # A thread that is not the first starts the program, and that one the next.
    import threading
    pid = os.fork()
    if not pid:
        def start():
            try:
                os.execv("/bin/sh", ["sh", "-c", "/bin/true"])
            except OSError as err:
                os._exit(err.errno)
        threading.Thread(target=start).start()
        threading.Event().wait()
    finish(pid)
def child():
    # A child of a child.
    pid = os.fork()
    if not pid:
        try:
            run()
            os._exit(0)
        except OSError as err:
            os._exit(err.errno)
    finish(pid)
for line in sys.stdin:
    try:
        exec(line)
        print("ok", flush=True)
    except OSError as err:
        print(err.errno, flush=True)
"""


class Site(Guard):
    """An enforcer, and cgroups to run things in."""

    def cgroup(self, *, known: bool = True) -> str:
        """Make a cgroup, which is the one workload if ``known``."""
        path = f"/c{next(_names)}"
        self.vm.check("mkdir", "-p", _ROOT + path)
        if known:
            self.know(path)
        return path

    def know(self, path: str, kind: WorkloadKind = WorkloadKind.CONTAINER) -> None:
        """Tell the enforcer of the one workload."""
        one = Workload(kind=kind, name=path[1:], labels=frozenset({"app=web"}), cgroup=path)
        self.ask("workloads", workloads=msgspec.to_builtins([one]))

    def steps(self, *steps: str) -> list[str]:
        """Run one process through these steps, from outside, and return what came of each."""
        done = self.vm.run("python3", "-SEc", _STEPS, stdin="".join(f"{step}\n" for step in steps))
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def resident(self, cgroup: str) -> Background:
        """Start a process that stays in the cgroup, as its first."""
        log = f"/run/resident-{next(_names)}"
        script = 'echo 0 >"$0/cgroup.procs" && echo there && exec sleep 600'
        there = self.vm.start("sh", "-c", script, _ROOT + cgroup, log=log)
        self.vm.until(lambda: "there" in there.output() and "sleep" in self.vm.get(f"/proc/{there.pid}/comm").decode(), "it")
        return there


def rule(verdict: Verdict = Verdict.BLOCK) -> Rule:
    return Rule(id=f"p/exec-{verdict}", policy="p", entity=Entity.PRESET, verdict=verdict, target=Other("exec"), scope=WEB)


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    machine: Machine = request.param
    with Lab() as lab:
        yield Site(lab.boot("entry", machine))


@pytest.fixture
def lived_in(site: Site) -> Iterator[str]:
    """A workload that runs, under the rule."""
    path = site.cgroup()
    site.hold(rule())
    there = site.resident(path)
    site.ask("events")
    yield path
    there.kill()


def test_first_process_of_a_workload_and_its_children_start_what_they_will(site: Site) -> None:
    path = site.cgroup()
    assert {line["status"] for line in site.hold(rule())} == {"enforced"}

    said = site.steps(f"move('{path}')", "run()", "child()", "thread()", "os.execv('/bin/true', ['true'])")

    assert said == ["ok"] * 4, "the last step has nobody to tell of it"
    for way in (f"put('{path}')", f"born('{path}')"):
        assert site.steps(way, "run()") == ["ok", "ok"], "an empty workload is begun, not entered"


@pytest.mark.parametrize("way", ["put", "born"])
def test_process_that_is_put_into_a_running_workload_starts_nothing(site: Site, lived_in: str, way: str) -> None:
    assert site.steps(f"{way}('{lived_in}')", "run()") == ["1", "ok"]

    event = site.events(1)[0]
    assert event.actor
    assert (event.operation, event.verdict, event.object, event.data["preset"], event.rule) == (
        "exec",
        "block",
        "/usr/bin/true",
        "exec",
        "p/exec-block",
    )


def test_process_that_enters_by_itself_starts_nothing_nor_do_its_children(site: Site, lived_in: str) -> None:
    assert site.steps("run()", f"move('{lived_in}')", "run()", "child()", "thread()") == ["ok", "ok", "1", "1", "1"]


def test_cgroup_that_is_made_for_it_in_the_workload_does_not_help(site: Site, lived_in: str) -> None:
    site.vm.check("mkdir", f"{_ROOT}{lived_in}/own")

    assert site.steps(f"put('{lived_in}/own')", f"born('{lived_in}/own')") == ["1", "1"]
    site.vm.check("mkdir", f"{_ROOT}{lived_in}/next")
    assert site.steps(f"move('{lived_in}/own')", f"move('{lived_in}/next')", "run()") == ["ok", "ok", "1"]


def test_who_entered_and_leaves_again_by_itself_is_still_marked_and_one_that_is_moved_out_is_not(
    site: Site, lived_in: str
) -> None:
    out = site.cgroup(known=False)

    assert site.steps(f"move('{lived_in}')", f"move('{out}')", "run()") == ["ok", "ok", "1"]
    assert site.steps("run()", f"put('{out}')") == ["ok", "ok"]


def test_what_is_moved_about_inside_starts_what_it_will(site: Site) -> None:
    path = site.cgroup()
    site.hold(rule())
    for inner in ("a", "b"):
        site.vm.check("mkdir", f"{_ROOT}{path}/{inner}")

    said = site.steps(
        f"move('{path}/a')",
        "import time; other = os.fork() or time.sleep(600)",
        f"move('{path}/b')",
        "run()",
        f"put('{path}/a')",
        f"born('{path}/a')",
        f"move('{path}/a')",
        "run()",
        "os.kill(other, 9)",
    )

    assert said == ["ok"] * 9


def test_other_workloads_and_the_host_are_entered_as_before(site: Site, lived_in: str) -> None:
    other = site.cgroup(known=False)
    there = site.resident(other)

    assert site.steps(f"put('{other}')", f"born('{other}')", f"move('{other}')", "run()") == ["ok"] * 4

    there.kill()
    assert site.steps(f"put('{lived_in}')") == ["1"]
    assert len(site.events(1)) == 1


def test_audit_tells_and_lets_pass(site: Site, lived_in: str) -> None:
    site.hold(rule(Verdict.AUDIT))
    site.ask("events")

    assert site.steps(f"put('{lived_in}')") == ["ok"]

    assert [(e.verdict, e.result) for e in site.events(1)] == [("audit", "passed")]


def test_service_manager_of_the_machine_may_reload_a_unit_and_others_may_not_enter(lab: Lab) -> None:
    site = Site(lab.boot("units", Machine("6.1")))
    unit = "[Service]\nExecStart=/bin/sleep 600\nExecReload=/bin/touch /run/reloaded\n"
    site.vm.put("/run/systemd/system/probe.service", unit)
    site.know("/system.slice/probe.service", WorkloadKind.UNIT)
    site.hold(rule())
    site.vm.check("systemctl", "daemon-reload")
    site.vm.check("systemctl", "start", "probe.service")

    assert site.steps("put('/system.slice/probe.service')") == ["1"]
    site.vm.check("systemctl", "reload", "probe.service")

    assert site.vm.run("test", "-e", "/run/reloaded").returncode == 0
