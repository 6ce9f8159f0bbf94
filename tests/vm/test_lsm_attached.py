"""Programs are attached while rules need them: with these the rules hold, without them nothing is left that would cost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from garrison.common.policy.rules import Entity, Other, Protocol, Rule, Source, Target, Verdict
from vm.lab import K61, K612, Lab
from vm.lsm import REFUSED, Guard, HolderError, file, process
from vm.test_lsm_life import OPENS

pytestmark = pytest.mark.long

NETWORK = {"guard_socket", "guard_connect", "guard_sendmsg", "guard_bind", "guard_listen", "guard_accept"}
PLAIN = file("/srv/at/plain")
PYTHON = "/usr/bin/python3.11"
# Number of the link and name of the program of all that is attached, whoever pinned it: bpf_link_get_next_id and so on.
_ATTACHED = r"""
import ctypes, json, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, raw):
    attr = ctypes.create_string_buffer(raw, 128)
    return libc.syscall(321, command, attr, 128), attr.raw
def info(fd):
    held = ctypes.create_string_buffer(256)
    bpf(15, struct.pack("=IIQ", fd, 256, ctypes.addressof(held)))
    os.close(fd)
    return held.raw
found, number = {}, 0
while True:
    failed, raw = bpf(31, struct.pack("=II", number, 0))
    if failed:
        break
    number = struct.unpack_from("=I", raw, 4)[0]
    fd, _ = bpf(30, struct.pack("=I", number))
    if fd < 0:
        continue
    program, _ = bpf(13, struct.pack("=I", struct.unpack_from("=I", info(fd), 8)[0]))
    if program >= 0:
        found[number] = info(program)[64:80].split(b"\0")[0].decode()
print(json.dumps(found))
"""


def _rule(entity: Entity, target: Target, verdict: Verdict = Verdict.BLOCK, by: str = "") -> Rule:
    sources = (Source(by),) if by else ()
    return Rule(id=f"at/{entity}-{target}", policy="at", entity=entity, verdict=verdict, target=target, sources=sources)


UDP = _rule(Entity.NETWORK, Protocol("udp"), by=PYTHON)
CONNECT = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"


class Kind(NamedTuple):
    """A kind of rules: one that refuses what the statement does, and the programs that it needs."""

    rule: Rule
    attempt: str
    programs: set[str]


_QUERY = b"\0\1\1\0\0\1\0\0\0\0\0\0\4evil\4test\0\0\1\0\1"
_EXECUTES = "fd = os.memfd_create('m'); os.write(fd, open('/usr/bin/true', 'rb').read()); "
KINDS = {
    "network": Kind(UDP, CONNECT, NETWORK),
    "dns": Kind(
        _rule(Entity.DNS, Other("evil.test")),
        f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto({_QUERY!r}, ('127.0.0.1', 53))",
        {"guard_dns_send", "guard_dns_connect", "guard_dns_subflow", "egress_query"},
    ),
    "capability": Kind(_rule(Entity.CAPABILITY, Other("chown"), by=PYTHON), "os.chown('/srv/at/free', 1, 1)", {"guard_capable"}),
    "filelessExec": Kind(
        _rule(Entity.PRESET, Other("filelessExec")),
        _EXECUTES + "os.set_inheritable(fd, True); os.waitpid(os.posix_spawn(f'/proc/self/fd/{fd}', ['x'], {}), 0)",
        {"guard_preset_exec", "guard_preset_mmap", "guard_preset_mprotect"},
    ),
    "protectEnv": Kind(
        _rule(Entity.PRESET, Other("protectEnv")),
        "open('/proc/1/environ')",
        {"guard_preset_open", "guard_preset_follow", "guard_preset_readlink"},
    ),
    "taking over": Kind(
        file("/srv/at/free", Verdict.ALLOW, by="/usr/bin/sleep"),
        "p = subprocess.Popen(['/usr/bin/sleep', '9'])\n"
        "while os.readlink(f'/proc/{p.pid}/exe') != '/usr/bin/sleep': pass\n"
        "try: call('ptrace', 16, p.pid, 0, 0)\n"
        "finally: p.kill()",
        {"guard_takeover", "guard_traced_exec"},
    ),
}


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guard]:
    with Lab() as lab:
        guard = Guard(lab.boot("attached", request.param))
        guard.files("/srv/at/plain", "/srv/at/free")
        yield guard


@pytest.fixture
def guard(guest: Guard) -> Iterator[Guard]:
    """An enforcer that holds a rule that needs nothing in particular."""
    guest.hold(PLAIN)
    _await(guest, needed=set())
    yield guest
    guest.kill()
    guest.tamper, guest.version = "AUDIT", ""


def _attached(guard: Guard) -> dict[str, str]:
    found: dict[str, str] = json.loads(guard.vm.check("python3", "-SEc", _ATTACHED))
    return found


def _optional(guard: Guard) -> set[str]:
    """The names of what is attached and need not be; the kernel knows 15 letters of each."""
    every = set().union(*(kind.programs for kind in KINDS.values()))
    attached = set(_attached(guard).values())
    assert {"guard_exec", "guard_open", "guard_mmap", "watch_move", "guard_pin_unlin"} <= attached
    return {name for name in every if name[:15] in attached}


def _await(guard: Guard, needed: set[str]) -> None:
    # The kernel detaches a moment after the pin is gone.
    guard.vm.until(lambda: _optional(guard) == needed, f"just {needed or 'nothing'} to be attached beside the rest")


@pytest.mark.parametrize("name", KINDS)
def test_rules_of_each_kind_hold_with_their_programs_and_leave_none_behind(guard: Guard, name: str) -> None:
    kind = KINDS[name]
    assert guard.tries(kind.attempt) == "OK"

    guard.hold(PLAIN, kind.rule)
    assert _optional(guard) == kind.programs
    assert (guard.tries(kind.attempt), guard.opens("/srv/at/plain")) == (REFUSED, False)

    guard.hold(PLAIN)
    _await(guard, needed=set())
    assert (guard.tries(kind.attempt), guard.opens("/srv/at/plain")) == ("OK", False)

    guard.hold(PLAIN, kind.rule)
    assert guard.tries(kind.attempt) == REFUSED
    assert guard.trouble() == ""


def test_deadman_goes_back_to_rules_whose_programs_those_on_trial_do_not_need(guard: Guard) -> None:
    guard.hold(PLAIN, UDP)
    guard.try_(PLAIN, KINDS["capability"].rule)
    assert (guard.tries(CONNECT), guard.tries(KINDS["capability"].attempt)) == ("OK", REFUSED)

    guard.kill()
    guard.vm.until(lambda: json.loads(guard.vm.get("/run/deadman.json"))["state"] == "reverted", "the deadman went back")

    assert (guard.tries(CONNECT), guard.tries(KINDS["capability"].attempt)) == (REFUSED, "OK")
    guard.hold(PLAIN)
    _await(guard, needed=set())


@pytest.mark.parametrize(("end", "stays"), [("keep", KINDS["capability"].programs), ("go back", NETWORK)])
def test_end_of_a_trial_leaves_what_the_rules_need_that_stay(guard: Guard, end: str, stays: set[str]) -> None:
    guard.hold(PLAIN, UDP)
    guard.try_(PLAIN, KINDS["capability"].rule)
    assert _optional(guard) == NETWORK | KINDS["capability"].programs

    guard.ask(end)

    _await(guard, needed=stays)
    tried = dict(zip(("udp", "chown"), guard.tries(CONNECT, KINDS["capability"].attempt), strict=True))
    assert tried == ({"udp": "OK", "chown": REFUSED} if end == "keep" else {"udp": REFUSED, "chown": "OK"})


def test_agent_that_takes_over_attaches_nothing_twice(guard: Guard) -> None:
    guard.hold(PLAIN, UDP)
    before = _attached(guard)

    guard.kill()
    assert guard.tries(CONNECT) == REFUSED
    guard.hold(PLAIN, UDP)

    assert _attached(guard) == before
    assert guard.trouble() == ""


def test_another_version_attaches_what_its_rules_need_before_the_old_one_goes(guard: Guard) -> None:
    guard.hold(PLAIN, UDP)
    before = _attached(guard)
    guard.kill()
    guard.version = "another"

    guard.hold(PLAIN, UDP)

    guard.vm.until(lambda: not before.keys() & _attached(guard).keys(), "the old version to be detached")
    assert sorted(_attached(guard).values()) == sorted(before.values())
    assert (guard.tries(CONNECT), guard.opens("/srv/at/plain")) == (REFUSED, False)


def test_program_that_cannot_be_attached_fails_the_change_and_the_rules_before_hold(guard: Guard) -> None:
    guard.vm.check("sh", "-c", "rm /sys/fs/bpf/garrison/*/programs/guard_listen")
    assert "took 1 of" in guard.trouble()

    with pytest.raises(HolderError, match="guard_listen"):
        guard.hold(file("/srv/at/free"), UDP)

    assert (guard.opens("/srv/at/plain"), guard.opens("/srv/at/free"), guard.tries(CONNECT)) == (False, True, "OK")
    _await(guard, needed=set())
    guard.kill()
    guard.hold(file("/srv/at/free"), UDP)
    assert (guard.opens("/srv/at/plain"), guard.opens("/srv/at/free"), guard.tries(CONNECT)) == (True, False, REFUSED)


def test_link_that_was_taken_away_is_made_again_by_the_next_agent(guard: Guard) -> None:
    guard.vm.check("sh", "-c", "rm /sys/fs/bpf/garrison/*/links/guard_open")
    guard.vm.until(lambda: guard.opens("/srv/at/plain"), "the program to be detached")
    assert "took 1 of" in guard.trouble()

    guard.kill()
    guard.hold(PLAIN)

    assert (guard.opens("/srv/at/plain"), guard.trouble()) == (False, "")


def test_under_tamper_block_the_agent_alone_attaches_and_detaches(guard: Guard) -> None:
    guard.kill()
    guard.tamper = "BLOCK"
    guard.hold(PLAIN)
    find = "import glob; pin = glob.glob('/sys/fs/bpf/garrison/*/programs/guard_connect')[0]"
    get = "name = ctypes.create_string_buffer(pin.encode()); syscall(321, 7, (ctypes.c_uint64 * 16)(ctypes.addressof(name)), 128)"
    assert guard.tries(find, "os.unlink(pin)", "os.rename(pin, pin + '2')", get)[1:] == [REFUSED] * 3

    # Attached links are known by their names in the folder here: nobody else may open our programs now.
    def linked() -> bool:
        return guard.vm.run("sh", "-c", "ls /sys/fs/bpf/garrison/*/links/guard_connect").returncode == 0

    guard.hold(PLAIN, UDP)
    assert (linked(), guard.tries(CONNECT)) == (True, REFUSED)
    assert guard.tries(find.replace("programs", "links"), "os.unlink(pin)")[1:] == [REFUSED]
    guard.hold(PLAIN)
    assert (linked(), guard.tries(CONNECT), guard.trouble()) == (False, "OK", "")
    guard.vm.check("kill", "-TERM", str(guard.pid))
    guard.forget()


def test_arguments_go_on_to_be_looked_at_for_starts_that_are_on_their_way(guard: Guard) -> None:
    guard.hold(process("/usr/bin/uname", allowed_args=("-r",)))
    assert guard.vm.run("uname", "-s").returncode != 0
    assert guard.vm.run("uname", "-r").returncode == 0

    guard.hold(PLAIN)

    assert "guard_arguments" in _attached(guard).values()
    assert guard.vm.run("uname", "-s").returncode == 0
    assert guard.trouble() == ""


def test_nothing_slips_through_while_rules_of_other_kinds_come_and_go(
    guard: Guard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("opens")
    (folder / "opens.c").write_text(OPENS)
    subprocess.run(["gcc", "-O1", "-static", "opens.c", "-o", "opens"], check=True, cwd=folder)
    guard.vm.put("/tmp/opens", (folder / "opens").read_bytes(), mode=0o755)
    guard.vm.put("/srv/at/program", "#!/bin/sh\n", mode=0o755)
    always = (PLAIN, process("/srv/at/program"))
    guard.hold(*always)
    trying = [
        guard.vm.start("chrt", "-i", "0", "/tmp/opens", "/srv/at/plain", log="/tmp/opens.log"),
        guard.vm.start("chrt", "-i", "0", "/tmp/opens", "/srv/at/program", "start", log="/tmp/starts.log"),
    ]
    for one in trying:
        guard.vm.until(lambda one=one: "ready" in one.output(), "the loops to run")

    # On the hooks of the loops: programs that come and go beside those that refuse.
    starting = (KINDS["filelessExec"].rule, KINDS["taking over"].rule, _rule(Entity.PRESET, Other("exec")))
    for other in (*((rule,) for rule in starting), starting, (KINDS["protectEnv"].rule,)):
        guard.swap((*always, *other), always, (*always, *other), always)

    for one in trying:
        one.kill("TERM")
        one.wait(60)
        refused, passed = map(int, one.output().split()[1:])
        assert (refused > 100, passed) == (True, 0)
    _await(guard, needed=set())
