"""Known ways to run a program that a rule refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Posture, Postures, Verdict
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process

ONLY_USR = (process("/usr/**", Verdict.ALLOW), process("/opt/**", Verdict.ALLOW))
LISTED = Postures(file=Posture.BLOCK)
# A program that has no name any more, or never had one; ``f`` is its descriptor.
FILELESS = {
    "memfd": "f = os.memfd_create('m'); os.write(f, TRUE)",
    "O_TMPFILE": (
        "w = os.open('/tmp', os.O_TMPFILE | 2, 0o700); os.write(w, TRUE); f = os.open(f'/proc/self/fd/{w}', 0); os.close(w)"
    ),
    "unlinked": "open('/tmp/u', 'wb').write(TRUE); os.chmod('/tmp/u', 0o700); f = os.open('/tmp/u', 0); os.unlink('/tmp/u')",
    "/dev/shm": "open('/dev/shm/u', 'wb').write(TRUE); os.chmod('/dev/shm/u', 0o700); f = os.open('/dev/shm/u', 0)",
}
RUN = "subprocess.run([f'/proc/self/fd/{f}'], pass_fds=[f], check=True)"
FEXECVE = "p = os.fork(); p or child(lambda: os.execve(f, ['true'], {})); ended(p)"
PREPARE = """
TRUE = open('/usr/bin/true', 'rb').read()
def child(what):
    try:
        what()
    except OSError as err:
        os._exit(err.errno)
    os._exit(0)
def ended(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, '')
"""
HELPER = "#!/bin/sh\n/usr/bin/touch /srv/k/ran\n"


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest, programs: dict[str, bytes]) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("programs", machine))
        for name, raw in programs.items():
            guard.vm.put(f"/srv/p/{name}", raw, mode=0o755)
        yield guard


@pytest.fixture(autouse=True)
def _no_rules(guard: Guard) -> None:
    guard.hold()


@pytest.mark.bypass(8, "an allow-list refuses all of them, by fexecve too")
@pytest.mark.parametrize("kind", FILELESS)
@pytest.mark.parametrize("how", [RUN, FEXECVE], ids=["path", "fexecve"])
def test_program_without_a_name_is_on_no_list(guard: Guard, kind: str, how: str) -> None:
    tried = f"exec({PREPARE!r}, globals()); {FILELESS[kind]}; {how}"

    guard.hold()
    assert guard.tries(tried) == "OK"

    guard.hold(*ONLY_USR, postures=LISTED)
    assert guard.tries(tried) == REFUSED
    assert guard.starts("/usr/bin/cat")


@pytest.mark.bypass(
    9, "ends a program that names a refused one as its interpreter; the system's own linker is no program of a rule"
)
def test_refused_program_does_not_run_as_the_interpreter_of_another(guard: Guard) -> None:
    guard.hold()
    assert guard.vm.run("/srv/p/borrowed").stdout == "ran\n"

    guard.hold(process("/srv/p/hello"), process("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))

    assert guard.vm.run("/srv/p/borrowed").stdout == ""
    assert guard.tries("subprocess.run(['/srv/p/hello'])") == REFUSED
    assert guard.tries("subprocess.run(['/lib64/ld-linux-x86-64.so.2', '/usr/bin/true'])") == REFUSED
    assert guard.vm.run("cat", "/etc/hostname").returncode == 0


@pytest.mark.bypass(10, "a file rule refuses the script to every interpreter; a process rule refuses to start it")
def test_script_that_a_file_rule_refuses_is_run_by_no_interpreter(guard: Guard) -> None:
    guard.vm.put("/srv/s/bad", "#!/bin/sh\nprintf ran\n", mode=0o755)
    guard.vm.put("/srv/s/good", "#!/bin/sh\nprintf ran\n", mode=0o755)
    guard.vm.put("/srv/s/bad.py", "print('ran', end='')")
    guard.vm.put("/srv/s/good.py", "print('ran', end='')")
    guard.hold(file("/srv/s/bad"), file("/srv/s/bad.py"))

    def ran(*argv: str) -> bool:
        return guard.vm.run(*argv).stdout == "ran"

    for name, expected in (("bad", False), ("good", True)):
        assert ran("env", f"/srv/s/{name}") is expected
        assert ran("sh", f"/srv/s/{name}") is expected
        assert ran("sh", "-c", f". /srv/s/{name}") is expected
        assert ran("sh", "-c", f"sh </srv/s/{name}") is expected
        assert ran("python3", f"/srv/s/{name}.py") is expected
        assert ran("python3", "-c", f"exec(open('/srv/s/{name}.py').read())") is expected


@pytest.mark.bypass(
    10, "limit: text that comes by a pipe, a here document or -c is typing; an allow-list without the interpreter refuses it"
)
def test_text_that_is_no_file_is_refused_with_its_interpreter(guard: Guard) -> None:
    guard.vm.put("/srv/s/named", "#!/bin/sh\nprintf ran\n", mode=0o755)
    guard.hold(process("/srv/s/named"))
    assert guard.tries("subprocess.run(['/srv/s/named'])") == REFUSED
    assert guard.vm.run("sh", "-c", "sh <<E\nprintf ran\nE").stdout == "ran", "a rule about a program is not about its text"

    guard.hold(process("/usr/bin/cat", Verdict.ALLOW, by="/usr/bin/dash"), postures=LISTED)
    assert guard.vm.run("sh", "-c", "python3 -c 0").returncode == 126
    assert guard.vm.run("sh", "-c", "cat /etc/hostname").returncode == 0


@pytest.mark.bypass(2, "knows the program, whatever link led to it and whatever it is told to be called")
def test_link_to_a_program_and_another_first_argument_do_not_hide_it(guard: Guard) -> None:
    guard.vm.check("sh", "-c", "mkdir -p /srv/l; ln -sf /usr/bin/base64 /srv/l/innocent; ln -sf /usr/bin/cat /srv/l/other")
    guard.hold(process("/usr/bin/base64"))

    assert guard.tries("subprocess.run(['/srv/l/innocent', '/etc/hostname'])") == REFUSED
    assert guard.tries("subprocess.run(['cat', '/etc/hostname'], executable='/usr/bin/base64')") == REFUSED
    assert guard.tries("subprocess.run(['base64', '/etc/hostname'], executable='/usr/bin/cat', check=True, stdout=-3)") == "OK"
    assert guard.tries("subprocess.run(['/srv/l/other', '/etc/hostname'], check=True, stdout=-3)") == "OK"


@pytest.mark.bypass(19, "limit: a copy is another program for a rule about a path; an allow-list refuses it")
def test_copy_of_a_refused_program_is_on_no_list(guard: Guard) -> None:
    guard.vm.check("sh", "-c", "mkdir -p /srv/c; cp /usr/bin/base64 /srv/c/copy")
    guard.hold(process("/usr/bin/base64"))
    assert guard.starts("/srv/c/copy")

    guard.hold(*ONLY_USR, postures=LISTED)
    assert not guard.starts("/srv/c/copy")
    assert guard.starts("/usr/bin/base64")


@pytest.mark.bypass(23, "refuses programs of 32 bits what it refuses others")
def test_program_of_32_bits_gets_the_same_answers(guard: Guard) -> None:
    guard.files("/srv/b/secret", "/srv/b/free")
    guard.hold(file("/srv/b/secret"), process("/usr/bin/base64"))

    assert guard.vm.run("/srv/p/tricks32", "/srv/b/secret").stdout == "ERR\n"
    assert guard.vm.run("/srv/p/tricks32", "/srv/b/free").stdout == "OK\n"
    assert guard.vm.run("/srv/p/tricks32", "/usr/bin/base64", "start").returncode == 1
    assert guard.vm.run("/srv/p/tricks32", "/usr/bin/cat", "start").returncode == 0


# ---- by the kernel --------------------------------------------------------------------------------------------------------
KERNEL_STARTS = {
    "core_pattern": "echo '|/srv/k/helper' >/proc/sys/kernel/core_pattern; ulimit -c unlimited; sh -c 'kill -SEGV $$' || true",
    "modprobe": "echo /srv/k/helper >/proc/sys/kernel/modprobe; python3 -c 'import socket; socket.socket(36, 2)' || true",
}


@pytest.mark.bypass(
    22,
    "refuses core_pattern and modprobe helpers by the host's rules, with an event; binfmt_misc is in none of the lab's kernels",
)
@pytest.mark.parametrize("by", KERNEL_STARTS)
def test_program_that_the_kernel_starts_obeys_the_hosts_rules(guard: Guard, by: str) -> None:
    guard.vm.put("/srv/k/helper", HELPER, mode=0o755)

    def ran() -> bool:
        return guard.vm.run("test", "-e", "/srv/k/ran").returncode == 0

    guard.hold()
    guard.vm.check("rm", "-f", "/srv/k/ran")
    guard.vm.check("sh", "-c", KERNEL_STARTS[by])
    guard.vm.until(ran, "the helper to run without a rule")

    guard.hold(process("/srv/k/helper"))
    guard.events(0)
    guard.vm.check("rm", "-f", "/srv/k/ran")
    guard.vm.check("sh", "-c", KERNEL_STARTS[by])
    assert ("exec", "/srv/k/helper", REFUSED) in {(e.operation, e.object, e.result) for e in guard.events()}
    assert not ran()
