"""System calls that rules name are told with path and result, those of others are not, and none is lost without a count."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from garrison.common.events import Event, Kind, Lane
from garrison.common.policy.rules import Entity, Other, Rule, RuleSet, Source, SyscallPath, Verdict
from garrison.minion.enforcers.syscalls import SyscallsEnforcer

pytestmark = pytest.mark.root

UNLINKS = "rmdir,unlink,unlinkat"
PYTHON = os.path.realpath(sys.executable)


def until(holds: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def rule(calls: str, *sources: str, path: str = "", recursive: bool = False, name: str = "1", **options) -> Rule:
    """A rule; a source that ends in ``//`` is a directory with all below it."""
    held = tuple(Source(s.removesuffix("/") if s.endswith("//") else s, recursive=s.endswith("//")) for s in sources)
    spec = msgspec.json.encode(SyscallPath(path, recursive)).decode() if path else ""
    options = {"verdict": Verdict.AUDIT} | options
    return Rule(id=f"p/{name}", policy="p", entity=Entity.SYSCALL, target=Other(calls, spec), sources=held, **options)


class Watch:
    """An enforcer, what it told, and a directory to work in."""

    def __init__(self, root: Path) -> None:
        self.root, self.events = root, list[Event]()
        self.enforcer = SyscallsEnforcer(self.events.append)

    def apply(self, *rules: Rule) -> None:
        self.enforcer.apply(RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id))))

    def file(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        return path

    def told(self) -> list[Event]:
        """All alerts about this test's directory, after everything that was called so far has been judged."""
        self.enforcer.close()
        return [e for e in self.events if str(self.root) in e.object]

    def objects(self) -> list[str]:
        return [e.object.replace(str(self.root), "") for e in self.told()]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    made.enforcer.close()


def run(*argv: str | Path, code: int = 0, **options) -> int:
    child = subprocess.Popen([str(arg) for arg in argv], stderr=subprocess.DEVNULL, **options)
    assert child.wait(30) == code
    return child.pid


def python_unlinks(path: Path) -> int:
    return run(sys.executable, "-I", "-S", "-c", f"import os; os.unlink({str(path)!r})")


def copied(program: str, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, to)
    return to


# ---- what is told ------------------------------------------------------------------------------------------------------
def test_call_is_told_with_who_what_and_how_it_ended(watch):
    watch.apply(rule(UNLINKS, "/usr/bin/rm", severity=7, tags=("a", "b"), message="removed"))
    file = watch.file("f")

    pid = run("rm", file)

    (event,) = watch.told()
    assert (event.kind, event.lane, event.operation, event.verdict) == (Kind.ALERT, Lane.ALERT, "syscall", "audit")
    assert (event.object, event.result) == (f"unlinkat {file}", "passed")
    assert (event.policy, event.rule, event.severity, event.backend) == ("p", "p/1", 7, "syscalls")
    assert event.data == {"message": "removed", "tags": ["a", "b"]}
    assert event.actor is not None
    assert (event.actor.pid, event.actor.ppid, event.actor.exe, event.actor.uid) == (pid, os.getpid(), "/usr/bin/rm", 0)
    assert abs(event.ts - time.time_ns()) < 60e9


def test_call_that_failed_is_told_with_its_error(watch):
    watch.apply(rule(UNLINKS, "/usr/bin/rmdir"))

    run("rmdir", watch.root / "none", code=1)

    assert [(e.object, e.result) for e in watch.told()] == [(f"rmdir {watch.root}/none", "ENOENT")]


def test_call_without_a_path_is_told_with_what_it_returned(watch):
    watch.apply(rule("getpid,exit_group", PYTHON))

    pid = run(sys.executable, "-I", "-S", "-c", "import os; os.getpid()")

    watch.enforcer.close()
    own = [e for e in watch.events if e.actor is not None and e.actor.pid == pid]
    assert ("getpid", "passed", {"returned": pid}) in [(e.object, e.result, e.data) for e in own]
    assert [(e.object, e.result) for e in own][-1] == ("exit_group", ""), "what does not come back has no result"


def test_exec_is_told_by_its_caller_and_its_path(watch):
    watch.apply(rule("execve", path=f"{watch.root}/", recursive=True))
    program = copied("/usr/bin/true", watch.root / "bin/true")

    run("/bin/sh", "-c", f"{program}; exec {program}")

    told = watch.told()
    assert [(e.object, e.result, e.actor and e.actor.exe) for e in told] == [
        (f"execve {program}", "passed", os.path.realpath("/bin/sh"))
    ] * 2


def test_exec_of_a_thread_that_is_not_the_first_is_told_too(watch):
    watch.apply(rule("execve", path=f"{watch.root}/", recursive=True))
    program = copied("/usr/bin/true", watch.root / "true")
    script = f"import os, threading; threading.Thread(target=os.execv, args=({str(program)!r}, ['true'])).start()"

    run(sys.executable, "-I", "-S", "-c", f"{script}; import time; time.sleep(30)")

    assert [(e.object, e.result) for e in watch.told()] == [(f"execve {program}", "")]


def test_exec_of_a_descriptor_is_told_by_its_file(watch):
    watch.apply(rule("execveat", path=f"{watch.root}/", recursive=True))
    program = copied("/usr/bin/true", watch.root / "true")

    run(sys.executable, "-I", "-S", "-c", f"import os; os.execve(os.open({str(program)!r}, os.O_PATH), ['true'], {{}})")

    assert [(e.object, e.result) for e in watch.told()] == [(f"execveat {program}", "passed")]


def test_program_that_lies_at_no_path_counts_as_the_source(watch):
    watch.apply(rule("unlinkat", "/opt/some/program"))
    script = "import os; fd = os.memfd_create('x', 0); os.sendfile(fd, os.open('/usr/bin/rm', 0), 0, 1 << 24)"

    run(sys.executable, "-I", "-S", "-c", f"{script}; os.execve(fd, ['rm', {str(watch.file('f'))!r}], {{}})")

    assert watch.objects() == ["unlinkat /f"]


def test_both_paths_of_a_call_count(watch):
    watch.apply(rule("rename,renameat,renameat2", path=str(watch.root / "kept")))
    watch.file("f")

    run("mv", watch.root / "f", watch.root / "kept")
    run("mv", watch.root / "kept", watch.root / "g")
    run("mv", watch.root / "g", watch.root / "h")

    told = watch.told()
    assert {e.object.partition(" ")[2] for e in told} == {str(watch.root / "kept")}
    passed = [e.data["paths"] for e in told if e.result == "passed"]
    assert passed == [[f"{watch.root}/f", f"{watch.root}/kept"], [f"{watch.root}/kept", f"{watch.root}/g"]]


# ---- by whom -----------------------------------------------------------------------------------------------------------
def test_source_path_names_one_program(watch):
    watch.apply(rule(UNLINKS, "/usr/bin/rm"))

    run("rm", watch.file("by-rm"))
    python_unlinks(watch.file("by-python"))

    assert watch.objects() == ["unlinkat /by-rm"]


def test_source_directory_names_what_is_directly_in_it(watch):
    watch.apply(rule(UNLINKS, f"{watch.root}/bin/"))

    run(copied("/usr/bin/rm", watch.root / "bin/rm"), watch.file("in"))
    run(copied("/usr/bin/rm", watch.root / "bin/deep/rm"), watch.file("below"))
    run("rm", watch.file("elsewhere"))

    assert watch.objects() == ["unlinkat /in"]


def test_recursive_source_directory_names_what_is_below_it_too(watch):
    watch.apply(rule(UNLINKS, f"{watch.root}/bin//"))

    run(copied("/usr/bin/rm", watch.root / "bin/rm"), watch.file("in"))
    run(copied("/usr/bin/rm", watch.root / "bin/deep/er/rm"), watch.file("below"))
    run("rm", watch.file("elsewhere"))

    assert watch.objects() == ["unlinkat /in", "unlinkat /below"]


def test_rules_of_a_directory_hold_for_a_program_that_another_rule_names(watch):
    watch.apply(rule("unlinkat", "/usr//", name="dir"), rule("chdir", "/usr/bin/rm", name="file"))

    run("rm", watch.file("f"))

    assert [e.rule for e in watch.told()] == ["p/dir"]


# ---- on what -----------------------------------------------------------------------------------------------------------
def test_target_path_names_one_file(watch):
    watch.apply(rule(UNLINKS, path=str(watch.root / "f")))

    python_unlinks(watch.file("other"))
    python_unlinks(watch.file("f"))

    assert watch.objects() == ["unlink /f"]


def test_target_directory_names_what_is_directly_in_it(watch):
    watch.apply(rule(UNLINKS, path=f"{watch.root}/d/"))

    for name in ("d/in", "d/e/below", "dd/beside"):
        python_unlinks(watch.file(name))

    assert watch.objects() == ["unlink /d/in"]


def test_recursive_target_directory_names_what_is_below_it_too(watch):
    watch.apply(rule(UNLINKS, path=f"{watch.root}/d/", recursive=True))

    for name in ("d/in", "d/e/below", "dd/beside"):
        python_unlinks(watch.file(name))

    assert watch.objects() == ["unlink /d/in", "unlink /d/e/below"]


@pytest.mark.parametrize(
    "script",
    [
        "cd d; rm f",
        "cd d; rm ./f",
        "mkdir -p e; cd e; rm ../d/f",
        "rm -r d/",
        "rm link/f",
        'rm "$PWD/d/../d//f"',
        'rm "$PWD/link/f"',
    ],
)
def test_no_spelling_gets_past_a_target(watch, script):
    watch.apply(rule("unlinkat", path=str(watch.root / "d/f")))
    watch.file("d/f")
    (watch.root / "link").symlink_to("d")

    run("sh", "-c", script, cwd=watch.root)

    assert watch.objects() == ["unlinkat /d/f"]


def test_path_that_cannot_be_told_any_more_counts_as_the_target(watch):
    watch.apply(rule("unlinkat", "/usr/bin/rm", path=str(watch.root / "d/f")))
    watch.file("d/f")

    pid = run("rm", "/proc/self/cwd/d/f", cwd=watch.root)

    watch.enforcer.close()
    own = [e.object for e in watch.events if e.actor is not None and e.actor.pid == pid]
    assert own[0] in {f"unlinkat {watch.root}/d/f", f"unlinkat /proc/{pid}/cwd/d/f"}


def test_descriptor_alone_is_its_file(watch):
    watch.apply(rule("fchmod", path=str(watch.root / "f")))

    run(sys.executable, "-I", "-S", "-c", f"import os; os.fchmod(os.open({str(watch.file('f'))!r}, 0), 0o600)")

    assert watch.objects() == ["fchmod /f"]


def test_link_to_the_target_is_the_target_for_calls_that_follow_links_and_only_those(watch):
    watch.apply(rule("chmod,fchmodat,fchmodat2,unlinkat", path=str(watch.file("f"))))
    (watch.root / "link").symlink_to("f")

    run("chmod", "600", watch.root / "link")
    run("rm", watch.root / "link")

    assert [o.partition(" ")[2] for o in watch.objects()] == ["/f"]


def test_files_that_are_opened_often_are_told_apart_in_the_kernel(watch):
    watch.apply(rule("open,openat,openat2", "/usr/bin/cat", path=str(watch.file("f"))))
    for number in range(50):
        watch.file(f"other-{number}")

    run("sh", "-c", f"cat {watch.root}/other-* {watch.root}/f >/dev/null")

    assert watch.objects() == ["openat /f"]
    assert watch.enforcer.status().counters["seen"] < 50


def test_directory_that_is_named_is_told_with_and_without_its_slash(watch):
    watch.apply(rule("openat", "/usr/bin/ls", path=str(watch.file("d/f").parent)))

    run("ls", watch.root / "d", stdout=subprocess.DEVNULL)
    run("ls", f"{watch.root}/d/", stdout=subprocess.DEVNULL)
    run("ls", f"{watch.root}/d/.", stdout=subprocess.DEVNULL)

    assert watch.objects() == ["openat /d"] * 3


# ---- life --------------------------------------------------------------------------------------------------------------
def test_nothing_is_attached_without_rules(watch):
    assert watch.enforcer.probe().ok
    watch.apply()
    assert watch.enforcer.loaded is None

    watch.apply(rule(UNLINKS))
    assert watch.enforcer.loaded is not None
    watch.apply()

    assert watch.enforcer.loaded is None


def test_new_rules_take_the_place_of_old_ones(watch):
    watch.apply(rule("unlinkat", name="old"))
    run("rm", watch.file("a"))
    watch.apply(rule("unlink", name="new"))
    run("rm", watch.file("b"))
    python_unlinks(watch.file("c"))

    assert [(e.rule, e.object.rpartition("/")[2]) for e in watch.told()] == [("p/old", "a"), ("p/new", "c")]


def test_call_that_lasts_longer_than_its_rules_is_told_by_them(watch):
    watch.apply(rule("pause", PYTHON, name="old"))
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
    until(lambda: Path(f"/proc/{child.pid}/syscall").read_text().startswith("34 "), "it pauses")
    watch.apply(rule(UNLINKS, name="new"))
    child.terminate()
    child.wait(10)

    watch.enforcer.close()
    assert [(e.rule, e.object, e.result) for e in watch.events if e.actor and e.actor.pid == child.pid] == [
        ("p/old", "pause", "EINTR")
    ]


INT80 = """
int main(void) {
    long result;
    for (int i = 0; i < 5; i++)
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
    return result <= 0;
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="how x86 makes 32-bit calls")
def test_32_bit_calls_are_counted_and_not_taken_for_the_64_bit_calls_of_their_number(watch):
    program = watch.root / "int80"
    subprocess.run(["gcc", "-xc", "-", "-o", program], input=INT80, text=True, check=True)
    if subprocess.run([program], check=False).returncode:
        pytest.skip("this kernel takes no 32-bit calls")
    watch.apply(rule("writev", f"{watch.root}//"))  # 20; as a 32-bit call getpid

    run(program)

    watch.enforcer.close()
    assert watch.events == []
    status = watch.enforcer.status()
    assert status.counters["calls_32bit"] >= 5
    assert "32-bit system calls were made" in status.detail


def test_agent_does_not_report_itself(watch):
    watch.apply(rule(UNLINKS))

    watch.file("own").unlink()

    assert watch.objects() == []


def test_burst_of_thousand_calls_is_told_call_by_call(watch):
    watch.apply(rule("unlinkat", "/usr/bin/rm", path=f"{watch.root}/d/"))
    for number in range(1000):
        watch.file(f"d/{number}")

    run("sh", "-c", "exec rm d/*", cwd=watch.root)

    objects = watch.objects()
    counters = watch.enforcer.status().counters
    assert len(objects) + counters["dropped"] == 1000
    assert len(set(objects)) == len(objects)


def test_what_does_not_fit_into_the_ring_is_counted_by_rule_exactly(watch):
    gate, events = threading.Event(), list[Event]()
    small = SyscallsEnforcer(lambda event: (gate.wait(30), events.append(event))[1], ring_bytes=16384)
    try:
        small.apply(RuleSet(rules=(rule("unlinkat", f"{watch.root}/rm", name="a"), rule("chdir", f"{watch.root}/rm", name="b"))))
        for number in range(1000):
            watch.file(f"d/{number}")
        run(copied("/usr/bin/rm", watch.root / "rm"), *(watch.root / "d").iterdir())
        assert small.status().counters["dropped.p/a"] > 900
    finally:
        gate.set()
        small.close()

    counters = small.status().counters
    assert len(events) + counters["dropped.p/a"] == 1000
    assert (counters["dropped"], counters.get("dropped.p/b", 0), counters["unhandled"]) == (counters["dropped.p/a"], 0, 0)
