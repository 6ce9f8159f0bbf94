"""Enforcement outlives agents, rule sets, versions of itself, and attempts to weaken it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from garrison.common.events import Event, Kind
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process

pytestmark = pytest.mark.long

# Opens a file, or starts a program, over and over and counts what came of it.
OPENS = r"""
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile sig_atomic_t ending;
static void end(int signal) { ending = 1; }
int main(int argc, char **argv) {
  long refused = 0, opened = 0;
  signal(SIGTERM, end);
  puts("ready"); fflush(stdout);
  while (!ending) {
    if (argc > 2) {
      int status;
      pid_t pid = vfork();
      if (!pid) { execl(argv[1], argv[1], (char *)0); _exit(errno == EPERM ? 111 : 1); }
      waitpid(pid, &status, 0);
      if (WIFEXITED(status) && WEXITSTATUS(status) == 111) refused++;
      else opened++;
      continue;
    }
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0) refused++;
    else { opened++; close(fd); }
  }
  printf("%ld %ld\n", refused, opened);
}
"""


@pytest.fixture(scope="module")
def opens(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program in ``OPENS``, built."""
    folder = tmp_path_factory.mktemp("opens")
    (folder / "opens.c").write_text(OPENS)
    subprocess.run(["gcc", "-O1", "-static", "opens.c", "-o", "opens"], check=True, cwd=folder)
    return (folder / "opens").read_bytes()


@pytest.fixture(params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("life", machine))
        guard.files("/srv/life/a", "/srv/life/b", "/srv/life/free")
        yield guard


@pytest.mark.bypass(25, "0 opens and starts slip through 100 restarts, upgrades and changes of policy")
def test_no_open_or_start_slips_through_a_hundred_restarts_upgrades_and_swaps(guard: Guard, opens: bytes) -> None:
    guard.vm.put("/tmp/opens", opens, mode=0o755)
    guard.vm.put("/srv/life/program", "#!/bin/sh\n", mode=0o755)
    always = (file("/srv/life/a"), process("/srv/life/program"))
    guard.hold(*always)
    trying = [
        guard.vm.start("chrt", "-i", "0", "/tmp/opens", "/srv/life/a", log="/tmp/opens.log"),
        guard.vm.start("chrt", "-i", "0", "/tmp/opens", "/srv/life/program", "start", log="/tmp/starts.log"),
    ]
    for one in trying:
        guard.vm.until(lambda one=one: "ready" in one.output(), "the loops to run")

    turns = [(*always, file(f"/srv/life/{n}*")) for n in range(9)]
    # Each round: a kill, a new agent, 9 swaps; twice other programs too, only twice because beside such loops they load slowly.
    for n in range(10):
        guard.kill()
        guard.version = "another" if 4 <= n < 8 else ""
        guard.swap(*turns)

    for one in trying:
        one.kill("TERM")
        one.wait(60)
        refused, passed = map(int, one.output().split()[1:])
        assert (refused > 100, passed) == (True, 0)


@pytest.mark.bypass(25, "0 opens slip through")
def test_no_open_slips_through_while_rules_are_swapped_and_agents_die(guard: Guard, opens: bytes) -> None:
    guard.vm.put("/tmp/opens", opens, mode=0o755)
    always = file("/srv/life/a")
    guard.hold(always)
    opening = guard.vm.start("/tmp/opens", "/srv/life/a", log="/tmp/opens.log")
    guard.vm.until(lambda: "ready" in opening.output(), "the loop to run")

    turns = [(always, file("/srv/life/b" if n % 2 else "/srv/life/c/**"), file(f"/srv/life/{n}*")) for n in range(20)]
    for _ in range(5):
        guard.swap(*turns)
        guard.kill()
    opening.kill("TERM")
    opening.wait()

    refused, opened = map(int, opening.output().split()[1:])
    assert opened == 0
    assert refused > 1000


@pytest.mark.bypass(25, "0 opens slip through")
def test_no_open_slips_through_while_another_version_takes_over(guard: Guard, opens: bytes) -> None:
    guard.vm.put("/tmp/opens", opens, mode=0o755)
    rule = file("/srv/life/a")
    guard.hold(rule)
    before = guard.vm.check("ls", "/sys/fs/bpf/garrison").split()
    guard.kill()
    assert not guard.opens("/srv/life/a")
    opening = guard.vm.start("/tmp/opens", "/srv/life/a", log="/tmp/opens.log")
    guard.vm.until(lambda: "ready" in opening.output(), "the loop to run")

    guard.version = "another"
    guard.hold(rule)
    opening.kill("TERM")
    opening.wait()

    refused, opened = map(int, opening.output().split()[1:])
    assert (refused > 100, opened) == (True, 0)
    after = guard.vm.check("ls", "/sys/fs/bpf/garrison").split()
    assert (len(before), len(after), before != after) == (1, 1, True)
    assert not guard.opens("/srv/life/a")
    assert guard.opens("/srv/life/free")


def test_events_that_no_agent_was_there_to_read_are_named_by_the_next(guard: Guard) -> None:
    rule = file("/srv/life/a", message="kept", severity=6)
    guard.hold(rule)
    guard.kill()

    assert not guard.opens("/srv/life/a")
    guard.hold(file("/srv/life/b"))

    event = next(e for e in guard.events() if e.object == "/srv/life/a")
    assert (event.rule, event.severity, event.data["message"]) == (rule.id, 6, "kept")


def test_installation_that_was_cut_short_is_done_again(guard: Guard) -> None:
    guard.hold(file("/srv/life/a"))
    guard.kill()
    guard.vm.check("sh", "-c", "rmdir /sys/fs/bpf/garrison/*/links/ready")

    guard.hold(file("/srv/life/b"))

    assert guard.opens("/srv/life/a")
    assert not guard.opens("/srv/life/b")


# ---- attempts -------------------------------------------------------------------------------------------------------------
PREPARE = """
import glob, struct
agent = {pid}
pin = glob.glob('/sys/fs/bpf/garrison/*/links/guard_open')[0]
held = pin.replace('links/guard_open', 'maps/active')
def bpf(command, raw):
    attr = ctypes.create_string_buffer(raw, 128)
    return syscall(321, command, attr, 128)
def first_map():
    attr = ctypes.create_string_buffer(8)
    syscall(321, 12, attr, 8)
    return struct.unpack_from('=I', attr, 4)[0]
def get(path):
    name = ctypes.create_string_buffer(path.encode())
    return bpf(7, struct.pack('=QII', ctypes.addressof(name), 0, 0))
"""


TRIES = {
    "os.unlink(pin)": ("unpin", "pins"),
    "os.rename(pin, pin + '2')": ("unpin", "pins"),
    "call('umount2', b'/sys/fs/bpf', 2)": ("umount", "pins"),
    "call('mount', b't', b'/sys/fs/bpf', b'tmpfs', 0, None)": ("umount", "pins"),
    "get(held)": ("open", "map"),
    "bpf(14, struct.pack('=III', first_map(), 0, 0))": ("open", "map"),
    "call('ptrace', 16, agent, 0, 0)": ("ptrace", "agent"),
    "open(f'/proc/{agent}/mem')": ("ptrace", "agent"),
    "os.kill(agent, 19)": ("signal 19", "agent"),
    "os.kill(agent, 9)": ("signal 9", "agent"),
}


def _attempts(guard: Guard) -> list[str | list[str]]:
    prepare = PREPARE.format(pid=guard.pid)
    return [guard.tries(f"exec({prepare!r}, globals()); {attempt}") for attempt in TRIES]


def _told(event: Event) -> tuple[str, str, str]:
    return event.operation, event.object.split()[0], event.result


@pytest.mark.bypass(24, "tamper = block: refused and told")
def test_blocked_attempts_at_the_agent_fail_and_are_told(guard: Guard) -> None:
    guard.tamper = "BLOCK"
    guard.hold(file("/srv/life/a"))
    guard.events(0)

    assert set(_attempts(guard)) <= {REFUSED, "EACCES"}

    told = [_told(e) for e in guard.events(len(TRIES)) if e.kind == Kind.TAMPER]
    assert told == [(operation, target, REFUSED) for operation, target in TRIES.values()]
    assert not guard.opens("/srv/life/a")
    guard.hold(file("/srv/life/b"))
    assert guard.opens("/srv/life/a")


@pytest.mark.bypass(24, "tamper = audit: told")
def test_audited_attempts_are_told_and_succeed(guard: Guard) -> None:
    guard.hold(file("/srv/life/a"))
    guard.events(0)

    assert guard.tries(f"exec({PREPARE.format(pid=guard.pid)!r}, globals()); get(held)") == "OK"
    assert guard.tries(f"exec({PREPARE.format(pid=guard.pid)!r}, globals()); os.unlink(pin)") == "OK"

    assert [_told(e) for e in guard.events(2)] == [("open", "map", "passed"), ("unpin", "pins", "passed")]


@pytest.mark.bypass(24, "LINK_DETACH and LINK_UPDATE: the kernel knows neither for these programs")
@pytest.mark.parametrize("tamper", ["AUDIT", "BLOCK"])
def test_links_are_not_detached_or_exchanged_through_a_descriptor(guard: Guard, tamper: str) -> None:
    guard.tamper = tamper
    guard.hold(file("/srv/life/a"))

    opened, *tried = guard.tries(
        f"exec({PREPARE.format(pid=guard.pid)!r}, globals()); link = get(pin)",
        "bpf(34, struct.pack('=I', link))",  # BPF_LINK_DETACH
        "bpf(29, struct.pack('=IIII', link, 0, 0, 0))",  # BPF_LINK_UPDATE
    )

    assert opened == "OK"
    assert set(tried) <= {"EOPNOTSUPP", "ENOTSUP", "EINVAL", "EBADF"}
    assert not guard.opens("/srv/life/a")
    assert guard.opens("/srv/life/free")


@pytest.mark.bypass(24, "SIGSTOP, kill -9 with tamper = audit: rules hold, the signal is told when an agent reads again")
@pytest.mark.parametrize("number", [19, 9], ids=["STOP", "KILL"])
def test_agent_that_is_stopped_or_killed_is_not_needed(guard: Guard, number: int) -> None:
    guard.hold(file("/srv/life/a"))
    guard.events(0)

    assert guard.tries(f"os.kill({guard.pid}, {number})") == "OK"
    assert not guard.opens("/srv/life/a")
    assert guard.opens("/srv/life/free")

    if number == 9:
        guard.forget()
    else:
        guard.vm.check("kill", "-CONT", str(guard.pid))
    guard.hold(file("/srv/life/a"))
    assert (f"signal {number}", "agent", "passed") in [_told(e) for e in guard.events(2) if e.kind == Kind.TAMPER]
    assert not guard.opens("/srv/life/a")


@pytest.mark.bypass(
    24, "limit: with tamper = audit root can take the pins away; told, and the agent says that it enforces no more"
)
@pytest.mark.parametrize("how", ["rm -r /sys/fs/bpf/garrison/*/links", "umount /sys/fs/bpf"], ids=["rm", "umount"])
def test_pins_that_are_taken_away_are_missed(guard: Guard, how: str) -> None:
    guard.hold(file("/srv/life/a"))
    guard.events(0)
    assert guard.trouble() == ""

    guard.vm.check("sh", "-c", how)

    assert {_told(e) for e in guard.events() if e.kind == Kind.TAMPER} == {
        ("umount" if "umount" in how else "unpin", "pins", "passed")
    }
    assert "pins" in guard.trouble()


def test_agent_that_ends_as_asked_or_dies_lets_the_next_take_over(guard: Guard) -> None:
    guard.tamper = "BLOCK"
    guard.hold(file("/srv/life/a"))
    guard.vm.check("kill", "-TERM", str(guard.pid))
    guard.forget()

    guard.hold(file("/srv/life/b"))
    assert guard.opens("/srv/life/a")
    guard.ask("close")
    guard.ask("release")

    assert guard.vm.check("find", "/sys/fs/bpf", "-mindepth", "1") == ""


def test_others_maps_and_mounts_are_none_of_its_business(guard: Guard) -> None:
    guard.tamper = "BLOCK"
    guard.hold(file("/srv/life/a"))
    guard.events(0)

    tried = guard.tries(
        f"exec({PREPARE.format(pid=guard.pid)!r}, globals()); f = bpf(0, struct.pack('=IIII', 2, 4, 4, 1))",
        "name = ctypes.create_string_buffer(b'/sys/fs/bpf/other'); bpf(6, struct.pack('=QII', ctypes.addressof(name), f, 0))",
        "get('/sys/fs/bpf/other')",
        "os.rename('/sys/fs/bpf/other', '/sys/fs/bpf/another')",
        "os.unlink('/sys/fs/bpf/another')",
        "call('mount', b't', b'/mnt', b'tmpfs', 0, None)",
        "call('umount2', b'/mnt', 0)",
        "open(f'/proc/{agent}/status').read()",
        "os.kill(agent, 0)",
    )

    assert set(tried) == {"OK"}, tried
    assert guard.events(0) == []
