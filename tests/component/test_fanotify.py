"""Rules on programs and files hold in the kernel, refuse nothing else, and survive what happens to the responder."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from component.fanotify_node import Node, directory, exact, glob, name, wait_for
from garrison.common.errors import KernelError
from garrison.common.policy.rules import Entity, Mode, Posture, Postures, Rule, Verdict, WorkloadScope

pytestmark = pytest.mark.root


@pytest.fixture
def node():
    node = Node()
    yield node
    node.close()


def status_of(reports, rule: Rule) -> str:
    return {line.rule: line.status for line in reports}[rule.id]


# ---- What is refused, and what is not --------------------------------------------------------------------------------
def test_probe_refuses_a_real_open(node):
    assert node.enforcer.probe().ok


def test_blocked_program_does_not_start_and_the_alert_says_who_what_and_why(node):
    rule = node.exec_rule(exact(node.root / "bin/true"), message="no", tags=("T1",), severity=7)
    assert node.executes(node.root / "bin/true")

    reports = node.apply(rule)

    assert status_of(reports, rule) == "enforced"
    assert not node.executes("/bin/sh", "-c", f"exec {node.root}/bin/true")
    assert node.executes(node.root / "bin/ls", "/")
    alert = wait_for(lambda: node.alerts(operation="exec"), "the alert")[0]
    assert (alert.object, alert.verdict, alert.result) == (f"{node.root}/bin/true", "block", "EPERM")
    assert (alert.policy, alert.rule, alert.severity, alert.backend) == ("test", rule.id, 7, "fanotify")
    assert alert.data["message"] == "no"
    assert alert.data["tags"] == ["T1"]
    assert alert.actor.exe == os.path.realpath("/bin/sh")
    assert alert.actor.uid == 0
    assert alert.ts > 0


def test_alert_tells_the_arguments_of_a_process_that_still_runs(node):
    secret = node.write("data/secret")
    node.apply(node.file_rule(exact(secret)))
    script = f"{{ true <{secret}; }} 2>/dev/null; read line; : marker-7"

    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE) as child:
        alert = wait_for(lambda: node.alerts(object=str(secret)), "the alert")[0]
        child.communicate(b"go on\n")

    assert alert.actor.args == ("/bin/sh", "-c", script)
    assert alert.actor.pid == child.pid
    assert alert.actor.unit.startswith("/")


def test_blocked_file_cannot_be_opened_and_its_neighbour_can(node):
    secret, public = node.write("data/secret"), node.write("data/public")

    reports = node.apply(rule := node.file_rule(exact(secret)))

    assert status_of(reports, rule) == "degraded"
    assert not node.reads(secret)
    assert not node.writes(secret)
    assert node.reads(public)
    wait_for(lambda: len(node.alerts(object=str(secret), result="EPERM")) == 2, "two alerts")


def test_file_put_in_the_place_of_a_blocked_one_is_blocked_too(node):
    secret, other = node.write("data/secret"), node.write("data/other")
    node.apply(node.file_rule(exact(secret)))

    other.rename(secret)

    assert not node.reads(secret)


def test_file_that_does_not_exist_yet_is_blocked_once_it_does(node):
    node.apply(node.file_rule(exact(node.root / "later/on/secret")))

    secret = node.write("later/on/secret")

    assert not node.reads(secret)
    assert node.reads(node.write("later/on/public"))


def test_directory_rule_reaches_its_children_and_recursive_all_below(node):
    flat, flat_deep = node.write("flat/a"), node.write("flat/sub/a")
    deep, deeper = node.write("deep/a"), node.write("deep/sub/sub/a")

    node.apply(node.file_rule(directory(node.root / "flat")), node.file_rule(directory(node.root / "deep", recursive=True)))

    assert not node.reads(flat)
    assert node.reads(flat_deep)
    assert not node.reads(deep)
    assert not node.reads(deeper)
    assert node.reads(node.write("elsewhere"))


def test_glob_matches_across_directories_and_nothing_else(node):
    key, other = node.write("home/kim/.ssh/id_rsa"), node.write("home/kim/.ssh/known_hosts")

    node.apply(node.file_rule(glob(f"{node.root}/home/**/id_*")))

    assert not node.reads(key)
    assert node.reads(other)


def test_program_is_blocked_by_name_wherever_it_lies(node):
    program = node.root / "bin" / "garrison-forbidden"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)

    node.apply(node.exec_rule(name("garrison-forbidden")))

    assert not node.executes(program)
    assert node.executes(node.root / "bin/true")


def test_owner_only_refuses_everybody_but_the_owner(node):
    mine = node.write("data/file")
    mine.chmod(0o666)
    os.chown(mine, 1000, 1000)
    node.root.chmod(0o755)
    node.apply(node.file_rule(exact(mine), owner_only=True))

    assert node.reads(mine, user=1000)
    assert not node.reads(mine, user=1001)
    assert not node.reads(mine, user=0)


def test_read_only_refuses_writes_and_lets_reads_pass(node):
    file = node.write("data/file")
    node.apply(node.file_rule(exact(file), read_only=True))

    assert node.reads(file)
    assert not node.writes(file)
    assert not node.executes("/bin/sh", "-c", f": >{file}")
    assert file.read_text() == "content\n", "truncating is writing"


def test_rule_with_a_source_concerns_that_program_only(node):
    secret = node.write("data/secret")
    node.apply(node.file_rule(exact(secret), sources=(node.root / "bin/cat",)))

    assert not node.reads(secret, by=node.root / "bin/cat")
    assert node.reads(secret, by="/bin/cat")


def test_allow_rule_with_a_source_exempts_it_from_the_block_of_its_policy(node):
    secret = node.write("data/secret")
    allow = node.file_rule(exact(secret), Verdict.ALLOW, sources=(node.root / "bin/cat",))
    node.apply(node.file_rule(exact(secret)), allow)

    assert node.reads(secret, by=node.root / "bin/cat")
    assert not node.reads(secret, by="/bin/cat")


def test_allow_list_of_a_program_refuses_what_it_does_not_name_and_dynamic_loaders_are_not_counted(node):
    shell, true, ls = (node.root / "bin" / p for p in ("sh", "true", "ls"))
    node.apply(node.exec_rule(exact(true), Verdict.ALLOW, sources=(shell,)), postures=Postures(file=Posture.BLOCK))

    assert node.executes(shell, "-c", f"{true} && {true}")
    assert not node.executes(shell, "-c", f"{ls} /")
    assert node.executes("/bin/sh", "-c", f"{ls} /")
    assert wait_for(lambda: node.alerts(object=str(ls)), "the alert")[0].data["by_posture"] is True


def test_audit_lets_pass_and_tells(node):
    file = node.write("data/file")
    reports = node.apply(rule := node.file_rule(exact(file), mode=Mode.AUDIT))

    assert node.reads(file)
    assert status_of(reports, rule) == "audited"
    wait_for(lambda: node.alerts(object=str(file), verdict="audit", result="passed"), "the alert")


def test_arguments_that_are_not_listed_are_refused(node):
    ls = node.root / "bin/ls"
    reports = node.apply(rule := node.exec_rule(exact(ls), allowed_args=("-a", "/")))

    assert status_of(reports, rule) == "degraded"
    assert node.executes(ls, "-a", "/")
    assert not node.executes(ls, "-l", "/")
    assert not node.executes(ls)


def test_no_tty_refuses_only_processes_of_a_terminal(node):
    true = node.root / "bin/true"
    node.apply(node.exec_rule(exact(true), no_tty=True))

    assert node.executes(true)
    pid, master = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["/bin/sh", "-c", f"{true}; exit $?"])  # noqa: S606 - a child with a terminal of its own
    os.waitpid(pid, 0)
    os.close(master)

    alert = wait_for(lambda: node.alerts(object=str(true)), "the alert")[0]
    assert alert.result == "EPERM"
    assert alert.actor.tty.startswith("pts/")


# ---- Other names of the same file ---------------------------------------------------------------------------------------
def test_symbolic_and_hard_links_do_not_escape(node):
    secret = node.write("data/secret")
    hard, soft = node.root / "hard", node.root / "soft"
    os.link(secret, hard)
    soft.symlink_to(secret)

    node.apply(node.file_rule(exact(secret)))

    assert not node.reads(hard)
    assert not node.reads(soft)
    os.link(secret, node.root / "later")
    assert not node.reads(node.root / "later")


def test_open_file_whose_name_was_removed_is_still_known_by_it(node):
    secret = node.write("data/secret")
    os.link(secret, node.root / "kept")
    node.apply(node.file_rule(directory(node.root / "data"), read_only=True))
    script = f"exec 3<{secret}; rm {secret}; echo x >>/proc/self/fd/3"

    assert not node.executes("/bin/sh", "-c", script)
    assert (node.root / "kept").read_text() == "content\n"


def test_bind_mount_of_a_file_does_not_escape(node):
    secret, place = node.write("data/secret"), node.write("place")
    node.apply(node.file_rule(exact(secret)))
    subprocess.run(["mount", "--bind", str(secret), str(place)], check=True)

    try:
        assert not node.reads(place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("recursive", [False, True])
def test_names_made_up_in_another_mount_namespace_do_not_escape(node, recursive):
    node.write("data/secret")
    (node.root / "public").mkdir()
    node.write("public/own")
    node.apply(node.file_rule(directory(node.root / "data", recursive=recursive)))

    def inside(script: str) -> bool:
        return node.executes("unshare", "--mount", "sh", "-c", script)

    assert not inside(f"mount --bind {node.root}/data {node.root}/public && cat {node.root}/public/secret")
    assert inside(f"cat {node.root}/public/own")


def test_program_renamed_in_another_mount_namespace_gains_nothing(node):
    secret = node.write("data/secret")
    trusted = node.root / "bin/cat"
    node.apply(node.file_rule(exact(secret)), node.file_rule(exact(secret), Verdict.ALLOW, sources=(trusted,)))
    script = f"mount --bind /bin/cat {trusted} && {trusted} {secret}"

    assert node.reads(secret, by=trusted)
    assert not node.executes("unshare", "--mount", "sh", "-c", script)


def test_path_too_long_to_be_told_is_refused_where_a_block_rule_could_apply(node):
    node.write("data/secret")
    node.apply(node.file_rule(directory(node.root / "data", recursive=True)))
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for _ in range(30):\n"
        "    os.mkdir('d' * 200)\n"
        "    os.chdir('d' * 200)\n"
        "os.close(os.open('file', os.O_CREAT | os.O_WRONLY))\n"
    )

    done = node.run(sys.executable, "-c", script, node.root / "data")

    assert "PermissionError" in done.stderr


_AGENT_ELSEWHERE = """
import pathlib, sys
from garrison.common.policy.rules import *
from garrison.minion.enforcers.fanotify import FanotifyEnforcer
enforcer = FanotifyEnforcer(lambda event: None, runtime_dir=pathlib.Path(sys.argv[1]))
target = PathTarget(how=PathKind.EXACT, value=sys.argv[2])
enforcer.apply(RuleSet(rules=(Rule(id="p/1", policy="p", entity=Entity.FILE, verdict=Verdict.BLOCK, target=target),)))
import subprocess
print(subprocess.run(["cat", sys.argv[2]], capture_output=True).returncode, flush=True)
sys.stdin.read()
"""


def test_processes_outside_the_agents_pid_namespace_are_not_its_business(node):
    secret = node.write("data/secret")
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    agent = [*unshare, sys.executable, "-c", _AGENT_ELSEWHERE, str(node.root / "run"), str(secret)]

    with subprocess.Popen(agent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"1\n", "inside it is refused"
        assert node.reads(secret)
        running.communicate()


# ---- What it says it cannot do ------------------------------------------------------------------------------------------
def test_rule_for_labelled_workloads_and_for_proc_are_impossible_with_a_reason(node):
    labelled = node.file_rule(exact("/srv/a"), scope=WorkloadScope(labels=("app=web",)))
    in_proc = node.file_rule(exact("/proc/version"))

    reports = node.apply(labelled, in_proc)

    assert {line.status for line in reports} == {"impossible"}
    assert all(line.reason for line in reports)


def test_rules_of_other_kinds_are_not_reported(node):
    other = Rule(id="test/n", policy="test", entity=Entity.CAPABILITY, verdict=Verdict.BLOCK, target=exact("/x"))

    assert node.apply(other) == ()


# ---- Swaps and failures -------------------------------------------------------------------------------------------------
_OPEN_LOOP = """
import os, sys
passed = tried = 0
print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    for _ in range(50):
        tried += 1
        try:
            os.close(os.open(sys.argv[1], os.O_RDONLY))
            passed += 1
        except PermissionError:
            pass
print(passed, tried)
"""


def test_swap_of_rules_leaves_no_open_unprotected(node):
    secret, stop = node.write("data/secret"), node.root / "stop"
    rule = node.file_rule(exact(secret), Verdict.BLOCK)
    wide = node.file_rule(directory(node.root / "data", recursive=True))
    others = [node.file_rule(exact(node.root / f"other/{i}")) for i in range(200)]
    node.apply(rule)
    loop = subprocess.Popen([sys.executable, "-c", _OPEN_LOOP, secret, stop], stdout=subprocess.PIPE, text=True)
    assert loop.stdout.readline() == "ready\n"

    for turn in range(60):
        node.apply(*((rule,), (wide,), (rule, *others), (wide, *others))[turn % 4])
    stop.touch()
    passed, tried = map(int, loop.communicate(timeout=20)[0].split())

    assert tried > 1000
    assert passed == 0


def test_rules_that_the_kernel_refuses_leave_the_old_ones_enforced(node, monkeypatch):
    secret, other = node.write("data/secret"), node.write("data/other")
    node.apply(node.file_rule(exact(secret)))
    monkeypatch.setattr("garrison.minion.enforcers.fanotify.marks._UNWATCHABLE", frozenset())

    with pytest.raises(KernelError, match="watch /proc"):
        node.apply(node.file_rule(exact(other)), node.file_rule(exact("/proc/version")))

    assert not node.reads(secret)
    assert node.reads(other)
    assert node.enforcer.status().healthy


def test_killed_worker_is_replaced_and_the_lapse_is_told(node):
    secret = node.write("data/secret")
    node.apply(node.file_rule(exact(secret)))
    before = node.worker_pid()

    os.kill(before, signal.SIGKILL)

    wait_for(lambda: [e for e in node.events if e.kind == "tamper" and e.data["state"] == "restarted"], "it is back")
    assert node.worker_pid() != before
    assert not node.reads(secret)
    assert [e.data["state"] for e in node.events if e.kind == "tamper"] == ["ended", "restarted"]
    assert node.enforcer.status().healthy


def test_killed_watcher_takes_the_worker_along_and_both_are_replaced(node):
    secret = node.write("data/secret")
    node.apply(node.file_rule(exact(secret)))
    worker = node.worker_pid()

    os.kill(node.watcher_pid(), signal.SIGKILL)

    wait_for(lambda: [e for e in node.events if e.kind == "tamper" and e.data["state"] == "restarted"], "it is back")
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), "the old worker is gone")
    assert not node.reads(secret)
    assert node.enforcer.status().counters["restarts"] == 1


def test_hung_worker_is_killed_so_that_the_node_goes_on(node):
    secret, public = node.write("data/secret"), node.write("data/public")
    node.apply(node.file_rule(exact(secret)))
    os.kill(node.worker_pid(), signal.SIGSTOP)

    assert node.reads(public), "waits for the watchdog, not for ever"

    states = wait_for(
        lambda: s if "restarted" in (s := [e.data["state"] for e in node.events if e.kind == "tamper"]) else [], "it is back"
    )
    assert states == ["hung", "restarted"]
    assert not node.reads(secret)
    assert node.enforcer.status().counters["hung"] == 1


def test_watcher_that_stands_still_is_seen_in_the_status_and_enforcement_goes_on(node):
    secret = node.write("data/secret")
    node.apply(node.file_rule(exact(secret)))
    os.kill(node.watcher_pid(), signal.SIGSTOP)

    wait_for(lambda: not node.enforcer.status().healthy, "it is told")
    assert not node.reads(secret)
    os.kill(node.watcher_pid(), signal.SIGCONT)
    wait_for(lambda: node.enforcer.status().healthy, "it is well again")


def test_end_of_the_agent_ends_the_responder(node):
    secret = node.write("data/secret")
    node.apply(node.file_rule(exact(secret)))
    watcher, worker = node.watcher_pid(), node.worker_pid()

    node.enforcer.close()

    assert not Path(f"/proc/{watcher}").exists()
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")
    assert node.reads(secret), "fail-open, documented"


_FLOOD = """
import os, sys
for _ in range(int(sys.argv[2])):
    try:
        os.open(sys.argv[1], os.O_RDONLY)
    except PermissionError:
        continue
    sys.exit("an open passed")
"""


def test_flood_of_alerts_stops_no_enforcement_and_every_lost_one_is_counted_for_its_rule(node, monkeypatch):
    monkeypatch.setattr("garrison.minion.enforcers.fanotify.process._QUEUE_BYTES", 256 << 10)
    one, two = node.write("data/one"), node.write("data/two")
    first, second = node.file_rule(exact(one)), node.file_rule(exact(two))
    node.apply(first, second)
    node.gate.clear()

    for file, count in ((one, 3_000), (two, 1_000)):
        done = node.run(sys.executable, "-c", _FLOOD, file, str(count), timeout=60)
        assert done.returncode == 0, done.stderr
    node.gate.set()

    def told(rule: Rule) -> int:
        events = [e for e in list(node.events) if e.rule == rule.id]
        return sum(e.data["count"] if e.kind == "gap" else 1 for e in events)

    wait_for(lambda: (told(first), told(second)) == (3_000, 1_000), "all are told or counted", 30)
    assert any(e.kind == "gap" for e in node.events)
    assert node.enforcer.status().counters["dropped"] > 0


def test_agent_itself_is_refused_nothing_and_that_is_told(node):
    secret = node.write("data/secret")
    node.apply(node.file_rule(exact(secret)))

    assert secret.read_text() == "content\n"

    alert = wait_for(lambda: node.alerts(object=str(secret)), "the alert")[0]
    assert (alert.result, alert.data["exempt"]) == ("passed", True)


def test_threads_of_the_agent_that_start_programs_under_exec_rules_do_not_deadlock(node):
    node.apply(node.exec_rule(directory(node.root / "bin"), Verdict.AUDIT))

    def work() -> None:
        for _ in range(20):
            assert node.executes(node.root / "bin/true")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not any(thread.is_alive() for thread in threads)
    wait_for(lambda: len(node.alerts(operation="exec")) == 80, "all alerts")
