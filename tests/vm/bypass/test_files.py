"""Known ways to a file that a rule refuses."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from garrison.common.policy.normalise import Normalised
from garrison.common.policy.rules import RuleSet
from vm.lab import K61, K612, Background, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process

CONFINED = "/usr/bin/confined"  # another python
# An agent with all of its backends, which resolves links; without a master.
AGENT = """
import signal, sys
from pathlib import Path
import msgspec
from garrison.common.policy.normalise import Normalised
from garrison.minion.enforcers.stack import EnforcerStack, default_backends
stack = EnforcerStack(default_backends(lambda event: None, runtime_dir=Path("/run"), cgroup=None, names=["bpf_lsm"]))
stack.apply(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Normalised))
print("held", flush=True)
signal.pause()
"""
HOLDS = """
import os, sys, time
f = os.open(sys.argv[1], os.O_RDONLY)
g = os.open(sys.argv[2], os.O_RDONLY)
print("ready", f, g, flush=True)
time.sleep(1000)
"""
TAKE = "p = syscall(434, {pid}, 0); f = syscall(438, p, {fd}, 0)"  # pidfd_open, pidfd_getfd


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("files", machine))
        guard.vm.check(
            "sh", "-c", f"mkdir -p /mnt/a /mnt/b; cp /usr/bin/python3.11 {CONFINED}; cp /usr/bin/cat /usr/bin/other-cat"
        )
        yield guard


@pytest.fixture(autouse=True)
def _no_rules(guard: Guard) -> None:
    guard.hold()


def holding(guard: Guard, *paths: str) -> Background:
    """A process that has files open."""
    running = guard.vm.start("python3", "-SEc", HOLDS, *paths, log=f"/tmp/holds{paths[0].replace('/', '-')}")
    guard.vm.until(lambda: "ready" in running.output(), "the files to be open")
    return running


@pytest.mark.bypass(1, "refuses to make one, to the file as to who may not write it; refuses through one made before the rule")
def test_hard_link_made_before_the_rule_leads_to_it(guard: Guard) -> None:
    guard.files("/srv/h/secret", "/srv/h/free")
    guard.vm.check("sh", "-c", "mkdir -p /srv/other; ln -f /srv/h/secret /srv/other/link; ln -f /srv/h/free /srv/other/free")
    guard.hold(file("/srv/h/secret"))

    assert not guard.opens("/srv/other/link")
    assert guard.tries("os.link('/srv/h/secret', '/srv/other/second')") == REFUSED
    assert guard.opens("/srv/other/free")
    assert guard.tries("os.link('/srv/h/free', '/srv/other/third')") == "OK"


@pytest.mark.bypass(2, "resolves links and merged /usr on the node, and again when they change")
def test_rule_on_a_link_holds_for_what_it_leads_to_and_follows_it(guard: Guard) -> None:
    guard.files("/srv/s/one", "/srv/s/two")
    guard.vm.check("ln", "-sfn", "one", "/srv/s/link")
    guard.kill()
    rules = (file("/srv/s/link", by="/bin/cat"), process("/bin/base64"))
    guard.vm.put("/run/rules.json", msgspec.json.encode(Normalised(RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id))))))
    agent = guard.vm.start("python3", "-c", AGENT, "/run/rules.json", log="/run/resolving.log")
    guard.vm.until(lambda: "held" in agent.output(), "the rules to be held", 120)
    try:
        assert (guard.opens("/srv/s/link"), guard.opens("/srv/s/one"), guard.opens("/srv/s/two")) == (False, False, True)
        assert not guard.starts("/usr/bin/base64")
        assert guard.starts("/usr/bin/cat")

        guard.vm.check("ln", "-sfn", "two", "/srv/s/link")

        guard.vm.until(lambda: not guard.opens("/srv/s/two"), "the rule to follow the link", 60)
        assert guard.opens("/srv/s/one")
    finally:
        agent.kill()
        agent.wait()


@pytest.mark.bypass(3, "refuses in a detached copy of a directory, wherever it is mounted, and after pivot_root")
def test_detached_trees_and_other_roots_lead_to_the_same_rules(guard: Guard) -> None:
    guard.files("/srv/t/a/x", "/srv/t/free/x")
    guard.hold(file("/srv/t/a/**"))

    tree = "t = syscall(428, -100, b'/srv/t/{0}', 1); os.open('x', 0, dir_fd=t)"  # open_tree, OPEN_TREE_CLONE
    mounted = "syscall(429, t, b'', -100, b'/mnt/a', 4); open('/mnt/a/x')"  # move_mount
    assert guard.tries(tree.format("a"), mounted) == [REFUSED, REFUSED]
    guard.vm.check("umount", "/mnt/a")
    assert guard.tries(tree.format("free"), mounted) == ["OK", "OK"]
    guard.vm.check("umount", "/mnt/a")
    pivot = 'mount --bind / /mnt/b && cd /mnt/b && pivot_root . mnt/a && exec cat "$0"'
    assert guard.vm.run("unshare", "-m", "sh", "-c", pivot, "/srv/t/free/x").returncode == 0
    refused = guard.vm.run("unshare", "-m", "sh", "-c", pivot, "/srv/t/a/x")
    assert (refused.returncode, "not permitted" in refused.stderr) == (1, True)


@pytest.mark.bypass(4, "refuses after setns into another's namespaces; nothing is known by a namespace's number")
@pytest.mark.bypass(20, "refuses through /proc/PID/root of another mount namespace")
def test_other_namespaces_that_somebody_made_lead_to_the_same_rules(guard: Guard) -> None:
    guard.files("/srv/n/secret", "/srv/n/free")
    guard.hold(file("/srv/n/secret"))
    made = guard.vm.start("unshare", "-m", "sleep", "1000", log="/tmp/unshared")
    guard.vm.until(lambda: guard.vm.check("cat", f"/proc/{made.pid}/comm") == "sleep\n", "the namespaces")
    try:
        inside = ("nsenter", "-t", str(made.pid), "-m", "-p")
        assert guard.vm.run(*inside, "cat", "/srv/n/free").returncode == 0
        assert "not permitted" in guard.vm.run(*inside, "cat", "/srv/n/secret").stderr
        assert guard.opens(f"/proc/{made.pid}/root/srv/n/free")
        assert not guard.opens(f"/proc/{made.pid}/root/srv/n/secret")
    finally:
        made.kill()


@pytest.mark.bypass(12, "refuses pidfd_getfd, and /proc/PID/fd opened anew")
def test_descriptor_of_another_process_is_not_taken(guard: Guard) -> None:
    guard.files("/srv/fd/secret", "/srv/fd/free")
    guard.hold(file("/srv/fd/secret", by=CONFINED))
    other = holding(guard, "/srv/fd/secret", "/srv/fd/free")
    secret, free = other.output().split()[1:3]
    try:
        tried = guard.tries(
            TAKE.format(pid=other.pid, fd=secret),
            TAKE.format(pid=other.pid, fd=free),
            f"open('/proc/{other.pid}/fd/{secret}')",
            f"open('/proc/{other.pid}/fd/{free}')",
            by=CONFINED,
        )
        assert tried == [REFUSED, "OK", REFUSED, "OK"]
        assert guard.tries(TAKE.format(pid=other.pid, fd=secret)) == "OK"
    finally:
        other.kill()


@pytest.mark.bypass(
    12, "limit: what a permitted program opened and hands down by fork and exec can be read; not opened anew or mapped to write"
)
def test_inherited_descriptor_is_read_but_not_opened_anew(guard: Guard) -> None:
    guard.files("/srv/i/secret")
    guard.hold(file("/srv/i/secret", by=CONFINED))

    tries = "import os; print(os.read(0, 2)); open('/proc/self/fd/0')"
    done = guard.vm.run("sh", "-c", f'{CONFINED} -SEc "$0" </srv/i/secret', tries)

    assert done.stdout == "b'hi'\n"
    assert "PermissionError" in done.stderr
    assert guard.tries("open('/srv/i/secret')") == "OK"


@pytest.mark.bypass(14, "refuses a running process from its next operation on; limit: what is open is read on")
def test_running_process_obeys_a_new_rule_from_its_next_operation_on(guard: Guard) -> None:
    guard.files("/srv/r/secret")
    guard.vm.run("rm", "-f", "/tmp/go-on")
    running = guard.vm.start("python3", "-SEc", GOES_ON, log="/tmp/goes-on")
    guard.vm.until(lambda: "ready" in running.output(), "the process")

    guard.hold(file("/srv/r/secret"), process("/usr/bin/base64"))
    guard.vm.put("/tmp/go-on", "")

    assert running.wait() == 0, running.output()
    assert running.output().split() == ["ready", "hi", "1", "1", "1", "0"]


# Opens a file and starts programs before the rules come; then reads on, opens it, opens its descriptor, starts both.
GOES_ON = """
import os, subprocess, time
f = os.open("/srv/r/secret", 0)
run = lambda name: subprocess.run([name, "/etc/hostname"], stdout=-3)
run("base64")
print("ready", flush=True)
while not os.path.exists("/tmp/go-on"):
    time.sleep(0.05)
print(os.read(f, 2).decode())
for what in (lambda: open("/srv/r/secret"), lambda: open(f"/proc/self/fd/{f}"), lambda: run("base64"), lambda: run("cat")):
    try:
        what()
        print(0)
    except OSError as err:
        print(err.errno)
"""


@pytest.mark.bypass(21, "refuses chattr on a descriptor that may only be read, fallocate, and O_PATH as a way to either")
def test_attributes_and_size_are_not_changed_through_a_descriptor(guard: Guard) -> None:
    guard.files("/srv/k/kept", "/srv/k/free")
    guard.hold(file("/srv/k/kept", read_only=True))
    guard.events(0)
    ways = {
        "import fcntl, struct; fcntl.ioctl(os.open({0!r}, 0), 0x40086602, struct.pack('l', 0x40))": "setattr",  # FS_IOC_SETFLAGS
        "fcntl.ioctl(os.open({0!r}, 0), 0x401c5820, bytes(28))": "setattr",  # FS_IOC_FSSETXATTR
        "os.posix_fallocate(os.open({0!r}, os.O_WRONLY), 0, 4096)": "open",
        "os.open(f\"/proc/self/fd/{{os.open('{0}', os.O_PATH)}}\", os.O_WRONLY)": "open",
        "os.chmod(f\"/proc/self/fd/{{os.open('{0}', os.O_PATH)}}\", 0o600)": "setattr",
        "os.truncate(f\"/proc/self/fd/{{os.open('{0}', os.O_PATH)}}\", 1)": "truncate",
    }

    assert guard.tries(*(way.format("/srv/k/kept") for way in ways)) == [REFUSED] * len(ways)
    assert [(e.operation, e.object) for e in guard.events(len(ways))] == [(o, "/srv/k/kept") for o in ways.values()]
    assert guard.tries(*(way.format("/srv/k/free") for way in ways)) == ["OK"] * len(ways)
    assert guard.vm.get("/srv/k/kept") == b"hi\n"
