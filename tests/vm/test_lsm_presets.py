"""Presets in the kernel: what they refuse, however it is tried, and what they leave alone."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from garrison.common.policy.rules import Entity, Mode, Other, Rule, Source, Verdict, WorkloadScope
from garrison.minion.workloads.model import Workload, WorkloadKind
from vm.lab import K61, K612, Lab
from vm.lsm import REFUSED, Guard

PROGRAM = "/srv/p/true"
# What statements of ``Guard.tries`` may use.
_HELP = """
import ctypes, os, signal, subprocess, threading
CODE = open('/srv/p/true', 'rb').read()
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
R, W, X = 1, 2, 4
LINKER = '/lib64/ld-linux-x86-64.so.2'
def map_(prot, flags, fd=-1, size=4096):
    at = libc.mmap(None, size, prot, flags, fd, 0)
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), 'mmap')
    return at
def protect(at, prot, size=4096):
    if libc.mprotect(at, size, prot):
        raise OSError(ctypes.get_errno(), 'mprotect')
def memfd():
    fd = os.memfd_create('hidden')
    os.write(fd, CODE)
    return fd
def unlinked(path='/srv/p/gone'):
    copy(path)
    fd = os.open(path, os.O_RDONLY)
    os.unlink(path)
    return fd
def nameless():
    fd = os.open('/srv/p', os.O_TMPFILE | os.O_RDWR, 0o755)
    os.write(fd, CODE)
    again = os.open(f'/proc/self/fd/{fd}', os.O_RDONLY)
    os.close(fd)
    return again
def copy(path, code=CODE):
    with open(path, 'wb') as f:
        f.write(code)
    os.chmod(path, 0o755)
    return path
def run(what):
    if isinstance(what, int):
        os.set_inheritable(what, True)
        pid = os.posix_spawn(f'/proc/self/fd/{what}', ['x'], {})
    else:
        pid = os.posix_spawn(what, ['x'], {})
    assert os.waitpid(pid, 0)[1] == 0
def script():
    fd = os.memfd_create('s', 0)
    os.write(fd, b'#!/bin/sh\\nexit 0\\n')
    return fd
def by_linker(fd):
    done = subprocess.run([LINKER, f'/proc/self/fd/{fd}'], pass_fds=[fd], stderr=-3)
    if done.returncode:
        raise OSError(1, 'the linker failed')
def written():
    at = map_(R | W, 2, disk())
    ctypes.memset(at, 0x90, 16)
    return at
def disk():
    return os.open('/srv/p/true', os.O_RDONLY)
def heap():
    libc.sbrk.restype = ctypes.c_void_p
    return (libc.sbrk(0) - 4096) & ~4095
def bind(what):
    # Over what a process before left there, which is gone.
    subprocess.run(['umount', '-q', '-l', '/srv/env'])
    subprocess.run(['mount', '--bind', what, '/srv/env'], check=True)
def in_thread(what):
    t = threading.Thread(target=what)
    t.start()
    t.join()
def fexec(fd):
    pid = os.fork()
    if not pid:
        try:
            os.execve(fd, ['x'], {})
        except OSError as err:
            os._exit(err.errno)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(code, 'fexecve')
"""
HELP = f"exec({_HELP!r}, globals())"


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    with Lab() as lab:
        guard = Guard(lab.boot("presets", request.param))
        guard.vm.check("install", "-D", "/usr/bin/true", PROGRAM)
        guard.vm.check(
            "sh", "-c", "mkdir -p /srv/t /srv/proc; touch /srv/env; ln -sfn /proc/self/fd /dev/fd; ln -s /dev/shm /srv/p/shm"
        )
        guard.vm.check("sh", "-c", "mount -t tmpfs none /srv/t; mount -t proc proc /srv/proc")
        yield guard


def preset(name: str, verdict: Verdict = Verdict.BLOCK, *, by: str = "", **more: object) -> Rule:
    """Return a preset that holds for the whole host, so that it needs no workload."""
    return Rule(
        id=f"p/{name}-{verdict}-{by}",
        policy="p",
        entity=Entity.PRESET,
        verdict=verdict,
        target=Other(name),
        sources=(Source(by),) if by else (),
        **more,  # type: ignore[arg-type]
    )


def tries(guard: Guard, *statements: str) -> list[str]:
    """Run Python statements with the help above; returns ``OK`` or an error's name for each."""
    return guard.tries(HELP, *statements, "pass")[1:-1]  # type: ignore[return-value]


# ---- filelessExec -------------------------------------------------------------------------------------------------------
IN_MEMORY = {
    "memfd": "fexec(memfd())",
    "memfd by path": "run(memfd())",
    "unlinked": "fexec(unlinked())",
    "unlinked by path": "run(unlinked())",
    "O_TMPFILE": "fexec(nameless())",
    "/dev/shm": "run(copy('/dev/shm/x'))",
    "link to /dev/shm": "copy('/dev/shm/x'); run('/srv/p/shm/x')",
    "tmpfs elsewhere": "run(copy('/srv/t/x'))",
    "script in a memfd": "fexec(script())",
}
LOADED = {
    "memfd by ld.so": "by_linker(memfd())",
    "library in /dev/shm": "ctypes.CDLL(copy('/dev/shm/l.so', open('/lib/x86_64-linux-gnu/libz.so.1', 'rb').read()))",
    "memfd mapped": "map_(R | X, 2, memfd())",
    "memfd mapped, then made code": "protect(map_(R, 2, memfd()), R | X)",
    "unlinked library": "map_(R | X, 2, unlinked())",
}
ON_DISK = (
    "run('/srv/p/true')",
    "fexec(disk())",
    "run(copy('/srv/p/new'))",
    "map_(R | X, 2, disk())",
    "map_(R | W, 2, memfd())",
    "ctypes.CDLL('libz.so.1')",
    "by_linker(disk())",
    "open('/dev/shm/data', 'w').write('x')",
    "copy('/srv/p/script', b'#!/bin/sh\\nexit 0\\n'); run('/srv/p/script')",
)


def test_without_rules_everything_runs(guard: Guard) -> None:
    guard.hold()

    assert tries(guard, *IN_MEMORY.values(), *LOADED.values(), *ON_DISK) == ["OK"] * (len(IN_MEMORY) + len(LOADED) + len(ON_DISK))


def test_program_in_memory_is_not_started_however_it_is_reached(guard: Guard) -> None:
    guard.hold(preset("filelessExec"))
    guard.ask("events")

    said = dict(zip(IN_MEMORY, tries(guard, *IN_MEMORY.values()), strict=True))

    assert said == dict.fromkeys(IN_MEMORY, REFUSED)
    events = guard.events(len(IN_MEMORY))
    assert [e.object for e in events][:2] == ["[...]/memfd:hidden"] * 2
    assert {(e.operation, e.verdict, e.rule, e.data["preset"]) for e in events} == {
        ("exec", "block", "p/filelessExec-block-", "filelessExec")
    }
    assert len(events) == len(IN_MEMORY)


def test_code_in_memory_is_not_loaded(guard: Guard) -> None:
    guard.hold(preset("filelessExec"))
    guard.ask("events")

    by_linker, library, *mapped = tries(guard, *LOADED.values())

    assert (by_linker != "OK", library != "OK", set(mapped)) == (True, True, {REFUSED})
    assert {e.operation for e in guard.events(len(LOADED))} == {"map"}


def test_programs_on_disk_run_and_nothing_is_told(guard: Guard) -> None:
    guard.hold(preset("filelessExec"))
    guard.ask("events")

    assert tries(guard, *ON_DISK) == ["OK"] * len(ON_DISK)

    tries(guard, IN_MEMORY["memfd"])
    assert [e.object for e in guard.events(1)] == ["[...]/memfd:hidden"]


def test_audited_preset_lets_pass_and_tells(guard: Guard) -> None:
    for rule in preset("filelessExec", Verdict.AUDIT), preset("filelessExec", mode=Mode.AUDIT):
        guard.hold(rule)
        guard.ask("events")

        assert tries(guard, IN_MEMORY["memfd"]) == ["OK"]

        # The program, and what the kernel maps of it.
        assert {(e.operation, e.verdict, e.result) for e in guard.events(2)} == {
            ("exec", "audit", "passed"),
            ("map", "audit", "passed"),
        }


# ---- anonymousMapExec ---------------------------------------------------------------------------------------------------
CODE_FROM_DATA = {
    "anonymous": "map_(R | W | X, 0x22)",
    "anonymous, shared": "map_(R | X, 0x21)",
    "made code": "protect(map_(R | W, 0x22), R | X)",
    "shared, made code": "protect(map_(R | W, 0x21), R | X)",
    "/dev/zero": "map_(R | X, 2, os.open('/dev/zero', os.O_RDWR))",
    "/dev/zero, made code": "protect(map_(R | W, 2, os.open('/dev/zero', os.O_RDWR)), R | X)",
    "heap": "protect(heap(), R | X)",
    "stack": "a = [int(l.split('-')[0], 16) for l in open('/proc/self/maps') if '[stack]' in l][0]; protect(a, R | W | X)",
    "memfd": "map_(R | X, 2, memfd())",
    "file, written and made code": "protect(written(), R | X)",
    "file, code that can be written": "map_(R | W | X, 2, disk())",
    "file, code made writable": "protect(map_(R | X, 2, disk()), R | W | X)",
}
CODE_FROM_FILES = (
    "map_(R | W, 0x22)",
    "protect(map_(R | W, 0x22), R)",
    "map_(R | X, 2, disk())",
    "protect(map_(R, 2, disk()), R | X)",
    "protect(map_(R | X, 2, disk()), R)",
    "map_(R | W, 1, memfd())",
    "run('/srv/p/true')",
    "ctypes.CDLL('libz.so.1')",
    "subprocess.run(['perl', '-e', '1'], check=True)",
)


def test_memory_without_a_file_does_not_become_code(guard: Guard) -> None:
    guard.hold()
    assert tries(guard, *CODE_FROM_DATA.values()) == ["OK"] * len(CODE_FROM_DATA)
    guard.hold(preset("anonymousMapExec"))
    guard.ask("events")

    said = dict(zip(CODE_FROM_DATA, tries(guard, *CODE_FROM_DATA.values()), strict=True))

    # The kernel itself says EACCES where it says anything at all.
    assert said == dict.fromkeys(CODE_FROM_DATA, REFUSED)
    events = guard.events(len(CODE_FROM_DATA))
    assert {(e.operation, e.result) for e in events} == {("map_anonymous", "EPERM")}
    assert {"", "/dev/zero", "[...]/memfd:hidden", PROGRAM} <= {e.object for e in events}


def test_code_of_files_and_data_in_memory_are_left_alone(guard: Guard) -> None:
    guard.hold(preset("anonymousMapExec"))
    guard.ask("events")

    assert tries(guard, *CODE_FROM_FILES) == ["OK"] * len(CODE_FROM_FILES)

    tries(guard, CODE_FROM_DATA["anonymous"])
    assert [e.operation for e in guard.events(1)] == ["map_anonymous"]


# ---- protectEnv, protectProc --------------------------------------------------------------------------------------------
ENVIRONS = {
    "by number": "open(f'/proc/{other}/environ', 'rb').read()",
    "by thread": "open(f'/proc/{other}/task/{other}/environ', 'rb').read()",
    "relative": "os.chdir(f'/proc/{other}'); open('environ', 'rb').read()",
    "through a directory": "d = os.open(f'/proc/{other}', os.O_PATH); os.open('environ', os.O_RDONLY, dir_fd=d)",
    "reopened": "f = os.open(f'/proc/{other}/environ', os.O_PATH); os.open(f'/proc/self/fd/{f}', os.O_RDONLY)",
    "another mount": "open(f'/srv/proc/{other}/environ', 'rb').read()",
    "bind mount": "bind(f'/proc/{other}/environ'); open('/srv/env', 'rb').read()",
}
OTHERS = {
    "maps": "open(f'/proc/{other}/maps').read()",
    "memory": "open(f'/proc/{other}/mem', 'rb')",
    "memory of a thread": "open(f'/proc/{other}/task/{other}/mem', 'rb')",
    "directory": "os.listdir(f'/proc/{other}')",
    "descriptors": "os.listdir(f'/proc/{other}/fd')",
    "descriptor": "os.readlink(f'/proc/{other}/fd/0')",
    "open descriptor": "open(f'/proc/{other}/fd/0', 'rb')",
    "program": "open(f'/proc/{other}/exe', 'rb')",
    "root": "open(f'/proc/{other}/root/etc/hostname')",
    "network": "open(f'/proc/{other}/net/dev').read()",
    "status": "open(f'/proc/{other}/status').read()",
}
OWN = (
    "open('/proc/self/environ', 'rb').read()",
    "open(f'/proc/{os.getpid()}/environ', 'rb').read()",
    "open('/proc/thread-self/environ', 'rb').read()",
    "open('/proc/self/maps').read()",
    "os.listdir('/proc/self/fd')",
    "os.readlink('/proc/self/exe')",
    "in_thread(lambda: open(f'/proc/{os.getpid()}/task/{os.getpid()}/maps').read())",
    "open('/proc/net/dev').read()",
    "os.listdir('/proc')",
    "open('/proc/meminfo').read()",
    "open('/proc/sys/kernel/ostype').read()",
    "os.stat(f'/proc/{other}')",
)
START = "other = subprocess.Popen(['sleep', '600'], stdin=open('/etc/hostname')).pid"
END = "os.kill(other, signal.SIGKILL)"


def on_others(guard: Guard, *statements: str) -> list[str]:
    """As ``tries``, with the number of another process in ``other``."""
    return tries(guard, START, *statements, END)[1:-1]


@pytest.mark.parametrize("refused", ["protectEnv", "protectProc"])
def test_environment_of_another_process_is_not_read_and_ones_own_is(guard: Guard, refused: str) -> None:
    guard.hold()
    assert on_others(guard, *ENVIRONS.values(), *OWN) == ["OK"] * (len(ENVIRONS) + len(OWN))
    guard.hold(preset(refused))
    guard.ask("events")

    said = dict(zip(ENVIRONS, on_others(guard, *ENVIRONS.values()), strict=True))

    assert said == dict.fromkeys(ENVIRONS, REFUSED)
    assert on_others(guard, *OWN) == ["OK"] * len(OWN)
    events = guard.events(len(ENVIRONS))
    assert len(events) == len(ENVIRONS), [e.object for e in events]
    assert {e.data["preset"] for e in events} == {refused}
    if refused == "protectEnv":
        assert {(e.operation, e.object.rpartition("/")[2]) for e in events} == {("open", "environ"), ("open", "env")}


def test_files_of_another_process_are_not_read_and_ones_own_are(guard: Guard) -> None:
    guard.hold(preset("protectEnv"))
    assert on_others(guard, *OTHERS.values()) == ["OK"] * len(OTHERS), "the environment alone is protected by the other"
    guard.hold(preset("protectProc"))
    guard.ask("events")

    said = dict(zip(OTHERS, on_others(guard, *OTHERS.values()), strict=True))

    assert said == dict.fromkeys(OTHERS, REFUSED)
    assert on_others(guard, *OWN) == ["OK"] * len(OWN)
    events = guard.events(len(OTHERS))
    assert len(events) == len(OTHERS), [e.object for e in events]
    assert {e.operation for e in events} == {"open", "follow"}


def test_agent_reads_what_it_must(guard: Guard) -> None:
    guard.hold(preset("protectProc"), preset("protectEnv"), preset("filelessExec"))
    guard.ask("events")

    assert guard.tries("open('/proc/1/status')") == REFUSED
    event = guard.events(1)[0]

    # The agent adds what only /proc knows.
    assert event.actor
    assert event.actor.args


def test_preset_for_one_program_leaves_the_others_alone(guard: Guard) -> None:
    guard.hold(preset("protectProc", by="/usr/bin/cat"))

    assert not guard.opens("/proc/1/status")
    assert guard.opens("/proc/1/status", by="head")


# ---- workloads ----------------------------------------------------------------------------------------------------------
def test_presets_and_rules_on_domains_hold_in_the_workload_and_not_outside(guard: Guard) -> None:
    web = WorkloadScope(labels=("app=web",))
    guard.vm.check("mkdir", "-p", "/sys/fs/cgroup/web")
    one = Workload(kind=WorkloadKind.CONTAINER, name="web", labels=frozenset({"app=web"}), cgroup="/web")
    guard.ask("workloads", workloads=msgspec.to_builtins([one]))
    domain = Rule(
        id="p/dns", policy="p", entity=Entity.DNS, verdict=Verdict.BLOCK, target=Other("evil.test"), scope=web
    )  # fmt: skip
    names = ("filelessExec", "anonymousMapExec", "protectEnv")
    guard.hold(domain, *(preset(name, scope=web) for name in names))
    guard.ask("events")
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0\4evil\4test\0\0\1\0\1"
    steps = (
        f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto({query!r}, ('127.0.0.1', 53))",
        IN_MEMORY["memfd"],
        CODE_FROM_DATA["anonymous"],
        "open('/proc/1/environ', 'rb').read()",
    )
    enter, leave = (f"open('/sys/fs/cgroup{where}/cgroup.procs', 'w').write('0')" for where in ("/web", ""))

    said = tries(guard, *steps, enter, *steps, "open('/proc/1/status').read()", leave, *steps)

    # Who was in a container stays its.
    assert said == ["OK"] * 5 + [REFUSED] * 4 + ["OK"] * 2 + [REFUSED] * 4
    assert {e.operation for e in guard.events(4)} == {"query", "exec", "map_anonymous", "open"}
