"""A refused program is not run by loading it some other way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Posture, Postures, Verdict
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process

LINKER = "/lib64/ld-linux-x86-64.so.2"
MAP = "mmap.mmap(os.open('{0}', os.O_RDONLY), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | {1})"
MPROTECT = (
    "libc.mmap.restype = ctypes.c_void_p; a = libc.mmap(None, 4096, 1, 2, os.open('{0}', os.O_RDONLY), 0); "
    "call('mprotect', ctypes.c_void_p(a), 4096, 5)"
)


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    machine: Machine = request.param
    with Lab() as lab:
        yield Guard(lab.boot("maps", machine))


@pytest.mark.bypass(9, "refuses ld.so PROGRAM")
def test_dynamic_linker_does_not_run_a_refused_program(guard: Guard) -> None:
    rule = process("/usr/bin/base64")
    guard.hold(rule)
    guard.events(0)

    refused = guard.vm.run(LINKER, "/usr/bin/base64", "/etc/hostname")
    other = guard.vm.run(LINKER, "/usr/bin/cat", "/etc/hostname")

    assert (refused.returncode != 0, refused.stdout) == (True, "")
    assert other.stdout == "maps\n"
    event = guard.events()[0]
    assert (event.operation, event.object, event.rule) == ("map", "/usr/bin/base64", rule.id)


@pytest.mark.bypass(9, "refuses mmap and mprotect to code")
def test_refused_file_is_not_mapped_or_made_executable(guard: Guard) -> None:
    guard.hold(process("/usr/bin/base64"))

    tried = guard.tries(
        MAP.format("/usr/bin/base64", "mmap.PROT_EXEC"),
        MAP.format("/usr/bin/base64", "0"),
        MPROTECT.format("/usr/bin/base64"),
        MAP.format("/usr/bin/cat", "mmap.PROT_EXEC"),
        MPROTECT.format("/usr/bin/cat"),
    )

    assert tried == [REFUSED, "OK", REFUSED, "OK", "OK"]


@pytest.mark.bypass(9, "refuses LD_PRELOAD of a library that a process rule names")
def test_preloaded_library_is_refused_by_its_path(guard: Guard) -> None:
    guard.vm.check(
        "sh", "-c", "mkdir -p /srv/lib; cp /lib/x86_64-linux-gnu/libm.so.6 /srv/lib/evil.so; cp /srv/lib/evil.so /srv/fine.so"
    )
    guard.hold(process("/srv/lib/**"))

    evil = guard.vm.run("cat", "/etc/hostname", env={"LD_PRELOAD": "/srv/lib/evil.so"})
    fine = guard.vm.run("cat", "/etc/hostname", env={"LD_PRELOAD": "/srv/fine.so"})

    assert "cannot be preloaded" in evil.stderr
    assert (fine.stdout, fine.stderr) == ("maps\n", "")


def test_allow_lists_do_not_keep_libraries_out(guard: Guard) -> None:
    guard.hold(process("/usr/bin/cat", Verdict.ALLOW, by="/usr/bin/dash"), postures=Postures(file=Posture.BLOCK))

    listed = guard.vm.run("sh", "-c", "cat /etc/hostname")
    other = guard.vm.run("sh", "-c", "sha256sum /etc/hostname")

    assert listed.stdout == "maps\n"
    assert other.returncode == 126


def test_source_of_a_program_rule_holds_through_the_linker(guard: Guard) -> None:
    guard.hold(process("/usr/bin/base64", by="/usr/bin/dash"))

    by_shell = guard.vm.run("sh", "-c", f"{LINKER} /usr/bin/base64 /etc/hostname; exit 9")
    by_python = guard.tries(f"subprocess.run(['{LINKER}', '/usr/bin/base64', '/etc/hostname'], check=True, stdout=-3)")

    assert (by_shell.returncode, by_shell.stdout) == (9, "")
    assert by_python == "OK"


@pytest.mark.bypass(9, "what ld.so runs is known as that program, its children too")
def test_source_of_a_file_rule_holds_through_the_linker_and_its_children(guard: Guard) -> None:
    guard.files("/srv/maps/secret")
    guard.hold(file("/srv/maps/secret", by="/usr/bin/cat"), file("/srv/maps/secret", by="/usr/bin/dash"))

    assert guard.vm.run(LINKER, "/usr/bin/cat", "/srv/maps/secret").stdout == ""
    assert guard.vm.run(LINKER, "/usr/bin/sha256sum", "/srv/maps/secret").returncode == 0
    # A child of the shell that opens the file itself, before it starts anything.
    assert guard.vm.run(LINKER, "/usr/bin/dash", "-c", "(exec 3</srv/maps/secret; echo read) & wait").stdout == ""
    assert guard.vm.run(LINKER, "/usr/bin/bash", "-c", "(exec 3</srv/maps/secret; echo read) & wait").stdout == "read\n"


@pytest.mark.bypass(9, "a program's allow-list holds when ld.so runs it")
def test_allow_list_of_a_program_holds_through_the_linker(guard: Guard) -> None:
    guard.files("/srv/maps/listed", "/srv/maps/other")
    listed = (file("/usr/**", Verdict.ALLOW, by="/usr/bin/cat"), file("/etc/**", Verdict.ALLOW, by="/usr/bin/cat"))
    guard.hold(*listed, file("/srv/maps/listed", Verdict.ALLOW, by="/usr/bin/cat"), postures=Postures(file=Posture.BLOCK))

    for how in ((), (LINKER,)):
        assert guard.vm.run(*how, "/usr/bin/cat", "/srv/maps/listed").stdout == "hi\n", how
        assert guard.vm.run(*how, "/usr/bin/cat", "/srv/maps/other").returncode == 1, how
        assert guard.vm.run(*how, "/usr/bin/sha256sum", "/srv/maps/other").returncode == 0, how


def test_grant_does_not_hold_through_the_linker(guard: Guard) -> None:
    guard.files("/srv/maps/granted")
    guard.hold(file("/srv/maps/granted"), file("/srv/maps/granted", Verdict.ALLOW, by="/usr/bin/sha256sum", exempts=True))

    assert guard.vm.run("sha256sum", "/srv/maps/granted").returncode == 0
    assert guard.vm.run(LINKER, "/usr/bin/sha256sum", "/srv/maps/granted").returncode == 1
