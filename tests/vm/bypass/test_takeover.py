"""A program that is allowed more than others is not taken over by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Rule, Verdict
from vm.lab import K61, K612, Background, Lab, Machine
from vm.lsm import REFUSED, Guard, file

GRANTED = "/usr/bin/granted"  # a python
KEPT = "/srv/g/kept"
RULES = (file(KEPT), file(KEPT, Verdict.ALLOW, by=GRANTED, exempts=True))
# Ways to take ``pid`` over, and what comes of each when it is refused and when it is not.
WAYS = {
    "call('ptrace', 16, {pid}, 0, 0); os.waitpid({pid}, 0); call('ptrace', 17, {pid}, 0, 0)": (REFUSED, "OK"),  # ATTACH, DETACH
    "call('ptrace', 0x4206, {pid}, 0, 0); os.kill({pid}, 0)": (REFUSED, "OK"),  # SEIZE
    "open('/proc/{pid}/mem', 'r+b', 0).close()": ("EACCES", "OK"),
    "b = ctypes.create_string_buffer(1); r = (ctypes.c_ulong * 2)(ctypes.addressof(b), 1); z = (ctypes.c_ulong * 2)(4096, 1); "
    "call('process_vm_writev', {pid}, r, 1, z, 1, 0)": (REFUSED, "EFAULT"),  # nothing is mapped there
    "p = syscall(434, {pid}, 0); os.close(syscall(438, p, 0, 0))": (REFUSED, "OK"),  # pidfd_getfd
}
WHEN_REFUSED, OTHERWISE = ([said[n] for said in WAYS.values()] for n in (0, 1))
READS = ("open('/proc/{pid}/status').read()", "os.readlink('/proc/{pid}/exe')", "open('/proc/{pid}/environ').read()")
# Starts a program while its parent traces it; says what came of the start.
TRACED = """
def traced(program):
    pid = os.fork()
    if not pid:
        libc.ptrace(0, 0, 0, 0)
        try:
            os.execv(program, [program, '-c', '0'])
        except OSError as err:
            os._exit(err.errno)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status):
        raise OSError(os.WEXITSTATUS(status), '')
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("takeover", machine))
        guard.files(KEPT)
        guard.vm.check("cp", "/usr/bin/python3.11", GRANTED)
        yield guard


def sleeping(guard: Guard, program: str) -> Background:
    """A process of ``program``."""
    running = guard.vm.start(
        program, "-SEc", "print('up', flush=True); import time; time.sleep(1000)", log=f"/tmp/up-{program[9:]}"
    )
    guard.vm.until(lambda: "up" in running.output(), "the process")
    return running


def ways(pid: int) -> list[str]:
    return [way.format(pid=pid) for way in WAYS]


@pytest.mark.bypass(
    13, "refuses to trace, write into, or take descriptors of a program that a rule with a source allows something"
)
def test_program_that_is_allowed_more_is_taken_over_by_no_other(guard: Guard) -> None:
    guard.hold(*RULES)
    guard.events(0)
    granted, plain = sleeping(guard, GRANTED), sleeping(guard, "/usr/bin/python3")
    try:
        assert guard.tries("open('/srv/g/kept')", by=GRANTED) == "OK"
        assert guard.tries(*ways(granted.pid)) == WHEN_REFUSED
        assert {(e.operation, e.object, e.rule) for e in guard.events(len(WAYS))} == {("ptrace", GRANTED, RULES[1].id)}

        assert guard.tries(*(way.format(pid=granted.pid) for way in READS)) == ["OK"] * len(READS)
        assert guard.tries(*ways(plain.pid)) == OTHERWISE
        assert guard.tries(*ways(granted.pid), by=GRANTED) == OTHERWISE, "its like may: they may do the same"
    finally:
        granted.kill()
        plain.kill()


@pytest.mark.bypass(13, "refuses to start such a program while another traces it")
def test_program_that_is_allowed_more_is_not_started_under_a_tracer(guard: Guard) -> None:
    guard.hold(*RULES)

    tried = guard.tries(f"exec({TRACED!r}, globals()); traced({GRANTED!r})", "traced('/usr/bin/python3')")

    assert tried == [REFUSED, "OK"]
    assert guard.tries(f"exec({TRACED!r}, globals()); traced({GRANTED!r})", by=GRANTED) == "OK"
    assert guard.tries(f"subprocess.run([{GRANTED!r}, '-c', '0'], check=True)") == "OK"


@pytest.mark.parametrize("rules", [(), (file(KEPT, by=GRANTED),)], ids=["none", "refusal"])
def test_programs_that_are_allowed_nothing_more_are_traced_as_ever(guard: Guard, rules: tuple[Rule, ...]) -> None:
    guard.hold(*rules)
    granted = sleeping(guard, GRANTED)
    try:
        assert guard.tries(*ways(granted.pid)) == OTHERWISE
    finally:
        granted.kill()
