"""A rule holds for the file that it names, by whatever path it is reached, however deep, whatever was moved or mounted since."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Posture, Postures, Verdict
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process

# Makes and opens a file that many directories deep, going down one by one: no system call takes such a path at once.
DEEP = (
    "os.chdir('/srv/deep'); "
    "[(os.path.exists('{name}') or os.mkdir('{name}'), os.chdir('{name}')) for _ in range({depth})]; open('file', 'a').close()"
)


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("places", machine))
        guard.vm.check("mkdir", "-p", "/mnt/a", "/mnt/b")
        yield guard


# ---- moved ---------------------------------------------------------------------------------------------------------------
def test_file_moved_into_a_protected_directory_is_protected_at_once(guard: Guard) -> None:
    guard.files("/srv/in/free/x")
    guard.vm.check("mkdir", "-p", "/srv/in/kept")
    guard.hold(file("/srv/in/kept/**", Verdict.AUDIT, name="audit"), file("/srv/in/kept/**", read_only=False, by="/usr/bin/cat"))
    assert guard.opens("/srv/in/free/x")

    guard.vm.check("mv", "/srv/in/free/x", "/srv/in/kept/x")

    assert not guard.opens("/srv/in/kept/x")


def test_directory_moved_into_a_protected_one_is_protected_at_once(guard: Guard) -> None:
    guard.files("/srv/din/free/d/x")
    guard.vm.check("mkdir", "-p", "/srv/din/kept")
    guard.hold(file("/srv/din/kept/**", by="/usr/bin/cat"))
    assert guard.opens("/srv/din/free/d/x")

    guard.vm.check("mv", "/srv/din/free/d", "/srv/din/kept/d")

    assert not guard.opens("/srv/din/kept/d/x")


@pytest.mark.bypass(7, "refuses in the renamed directory, where its place is known by inode")
def test_parent_moved_away_by_who_may_takes_the_rule_along(guard: Guard) -> None:
    guard.files("/srv/par/a/b/x", "/srv/par/a/named")
    guard.hold(file("/srv/par/a/b/**", by="/usr/bin/cat"), file("/srv/par/a/named", by="/usr/bin/cat"))
    assert not guard.opens("/srv/par/a/b/x")

    guard.vm.check("mv", "/srv/par/a", "/srv/par/z")
    guard.files("/srv/par/z/b/later")

    assert not guard.opens("/srv/par/z/b/x")
    assert not guard.opens("/srv/par/z/b/later")
    assert not guard.opens("/srv/par/z/named")
    guard.files("/srv/par/a/b/new", "/srv/par/z/other")
    assert not guard.opens("/srv/par/a/b/new")
    assert guard.opens("/srv/par/z/other")


@pytest.mark.bypass(7, "refuses to rename a parent of what a rule refuses to everybody")
def test_parent_of_what_a_rule_refuses_cannot_be_moved_away(guard: Guard) -> None:
    guard.files("/srv/anc/a/b/x", "/srv/anc/g/x.key", "/srv/anc/free/x")
    guard.hold(file("/srv/anc/a/b/**"), file("/srv/anc/g/*.key"))

    tried = guard.tries(
        "os.rename('/srv/anc/a', '/srv/anc/z')",
        "os.rename('/srv/anc/g', '/srv/anc/y')",
        "os.rename('/srv/anc', '/srv/other')",
        "os.rename('/srv/anc/free', '/srv/anc/freed')",
    )

    assert tried == [REFUSED, REFUSED, REFUSED, "OK"]


def test_deleted_file_leaves_its_number_to_others_free(guard: Guard) -> None:
    guard.files("/srv/again/named")
    guard.hold(file("/srv/again/named", by="/usr/bin/cat"))
    number = guard.vm.check("stat", "-c%i", "/srv/again/named")

    guard.vm.check("rm", "/srv/again/named")
    made = guard.vm.check("sh", "-c", "for i in $(seq 50); do echo >/srv/again/f$i; stat -c '%i %n' /srv/again/f$i; done")
    same = [line.split()[1] for line in made.splitlines() if line.split()[0] == number.strip()]

    assert all(guard.opens(path) for path in same)
    guard.files("/srv/again/named")
    assert not guard.opens("/srv/again/named")


# ---- mounted --------------------------------------------------------------------------------------------------------------
@pytest.mark.bypass(3, "refuses through bind mounts of the file, its directory and those above")
def test_bind_mount_leads_to_the_same_rules(guard: Guard) -> None:
    guard.files("/srv/bind/a/b/c/x", "/srv/bind/a/named", "/srv/bind/free/x")
    guard.hold(file("/srv/bind/a/b/**"), file("/srv/bind/a/named"), file("/srv/bind/a/notyet"))

    for what, path in (("a/b", "c/x"), ("a/b/c", "x"), ("a", "b/c/x"), ("a", "named"), ("a", "notyet")):
        guard.vm.check("mount", "--bind", f"/srv/bind/{what}", "/mnt/a")
        assert guard.tries(f"open('/mnt/a/{path}', 'a')") == REFUSED, (what, path)
        guard.vm.check("umount", "/mnt/a")
    guard.vm.check("mount", "--bind", "/srv/bind/free", "/mnt/a")
    assert guard.opens("/mnt/a/x")
    guard.vm.check("umount", "/mnt/a")


def test_cached_verdict_ends_when_a_mount_moves(guard: Guard) -> None:
    guard.vm.check("mount", "-t", "tmpfs", "t", "/mnt/b")
    guard.files("/mnt/b/x")
    guard.vm.check("mkdir", "-p", "/srv/moved/kept")
    guard.hold(file("/srv/moved/kept/**"))
    assert guard.opens("/mnt/b/x")

    guard.vm.check("mount", "--move", "/mnt/b", "/srv/moved/kept")
    assert not guard.opens("/srv/moved/kept/x")
    guard.vm.check("mount", "--move", "/srv/moved/kept", "/mnt/b")

    assert guard.opens("/mnt/b/x")
    guard.vm.check("umount", "/mnt/b")


@pytest.mark.bypass(3, "refuses after chroot")
@pytest.mark.bypass(4, "refuses in new user, PID and mount namespaces")
def test_other_namespaces_and_roots_lead_to_the_same_rules(guard: Guard) -> None:
    guard.files("/srv/ns/a/x", "/srv/ns/free")
    guard.hold(file("/srv/ns/a/**"), process("/usr/bin/base64"))

    for how in (["unshare", "-m"], ["unshare", "-Urm"], ["unshare", "-pf"], ["chroot", "/"]):
        assert guard.vm.run(*how, "cat", "/srv/ns/free").returncode == 0, how
        assert guard.vm.run(*how, "cat", "/srv/ns/a/x").returncode == 1, how
        assert guard.vm.run(*how, "base64", "/etc/hostname").returncode != 0, how
    guard.vm.check("mount", "--bind", "/", "/mnt/a")
    assert guard.vm.run("chroot", "/mnt/a", "cat", "/srv/ns/a/x").returncode == 1
    assert guard.vm.run("chroot", "/mnt/a", "cat", "/srv/ns/free").returncode == 0
    assert guard.vm.run("chroot", "/mnt/a", "base64", "/etc/hostname").returncode != 0
    guard.vm.check("umount", "/mnt/a")


@pytest.mark.bypass(1, "knows a program by its inode: rules about it hold under another name")
def test_program_reached_by_a_bind_mount_or_hard_link_is_the_same_source(guard: Guard) -> None:
    guard.files("/srv/src/x")
    guard.hold(file("/srv/src/x", by="/usr/bin/cat"))
    guard.vm.check("mount", "--bind", "/usr/bin", "/mnt/a")
    guard.vm.check("ln", "-f", "/usr/bin/cat", "/usr/bin/tac2")

    assert guard.vm.run("/mnt/a/cat", "/srv/src/x").returncode == 1
    assert guard.vm.run("/usr/bin/tac2", "/srv/src/x").returncode == 1
    assert guard.vm.run("/mnt/a/sha256sum", "/srv/src/x").returncode == 0
    guard.vm.check("rm", "/usr/bin/tac2")
    guard.vm.check("umount", "/mnt/a")


# ---- deep -----------------------------------------------------------------------------------------------------------------
@pytest.mark.bypass(6, "refuses at every depth")
@pytest.mark.parametrize("depth", [21, 31, 129, 2049])
def test_depth_is_no_way_out(guard: Guard, depth: int) -> None:
    guard.hold()
    guard.vm.check("sh", "-c", "mkdir -p /srv/deep; rm -rf /srv/deep/n")
    guard.hold(file("/srv/deep/**/file", name="glob"))
    assert guard.tries(DEEP.format(name="n", depth=depth)) == REFUSED

    guard.hold(file("/srv/deep/"))
    assert guard.tries(DEEP.format(name="n", depth=depth)) == "OK"
    guard.hold(file("/srv/deep/n/**"))
    assert guard.tries(DEEP.format(name="n", depth=depth)) == REFUSED


@pytest.mark.bypass(6, "refuses a path of 4,095 bytes")
def test_longest_path_is_no_way_out(guard: Guard) -> None:
    path = "/srv/deep"
    while len(path) < 4095 - 256:
        path += "/" + "p" * 255
    path += "/" + "q" * (4095 - len(path) - 1)
    guard.hold()
    made = f"os.makedirs(os.path.dirname({path!r}), exist_ok=True); open({path!r}, 'w').close()"
    assert guard.tries(made) == "OK"

    guard.hold(file(path))
    assert guard.tries(f"open({path!r})") == REFUSED
    guard.hold(file("/srv/deep/**/q*"))
    assert guard.tries(f"open({path!r})") == REFUSED
    guard.hold(file("/srv/deep/**/r*"))
    assert guard.tries(f"open({path!r})") == "OK"


# ---- nowhere --------------------------------------------------------------------------------------------------------------
HANDLE = r"""
class H(ctypes.Structure):
    _fields_ = [("n", ctypes.c_uint), ("t", ctypes.c_int), ("b", ctypes.c_char * 128)]
h = H(128); m = ctypes.c_int()
call("name_to_handle_at", -100, b"/srv/no/{0}", ctypes.byref(h), ctypes.byref(m), 0)
open("/proc/sys/vm/drop_caches", "w").write("2")
os.close(syscall(304, os.open("/", 0), ctypes.byref(h), 0))
"""


@pytest.mark.bypass(20, "refuses what has no path if any block rule could mean it")
def test_file_opened_by_handle_is_refused_if_a_rule_could_mean_it(guard: Guard) -> None:
    guard.files("/srv/no/named", "/srv/no/free")
    guard.hold(file("/srv/no/named"))

    assert guard.tries(HANDLE.format("named")) == REFUSED


@pytest.mark.bypass(7, "refuses to open a deleted file anew")
def test_deleted_file_keeps_its_rule_while_it_is_open(guard: Guard) -> None:
    guard.files("/srv/gone/x", "/srv/free-gone")
    guard.hold(file("/srv/gone/**", read_only=True, by="/usr/bin/cat"), file("/srv/gone/**", by="/usr/bin/sha256sum"))

    tried = guard.vm.run("sh", "-c", "exec 3</srv/gone/x; rm /srv/gone/x; sha256sum /proc/self/fd/3")
    free = guard.vm.run("sh", "-c", "exec 3</srv/free-gone; rm /srv/free-gone; sha256sum /proc/self/fd/3")

    assert tried.returncode == 1
    assert free.returncode == 0


@pytest.mark.bypass(20, "refuses what lies in a detached mount if any block rule could mean it, with an event")
def test_unmounted_file_is_refused_if_a_rule_could_mean_it(guard: Guard) -> None:
    guard.vm.check("mount", "-t", "tmpfs", "t", "/mnt/b")
    guard.files("/mnt/b/x")
    guard.hold(file("/srv/elsewhere"))
    guard.events(0)

    lazily = "f = os.open('/mnt/b/x', os.O_PATH); subprocess.run(['umount', '-l', '/mnt/b'], check=True)"

    assert guard.tries(f"{lazily}; open(f'/proc/self/fd/{{f}}')") == REFUSED
    assert guard.events()[0].operation == "open"
    assert guard.counters()["unresolved"] >= 1


@pytest.mark.bypass(8, "memfd: refused by an allow-list; no rule about a path means it")
def test_program_without_a_name_is_meant_by_no_name_but_is_on_no_list_either(guard: Guard) -> None:
    fileless = (
        "f = os.memfd_create('m'); os.write(f, open('/usr/bin/true', 'rb').read()); "
        "subprocess.run([f'/proc/self/fd/{f}'], pass_fds=[f], check=True)"
    )
    guard.hold(process("/usr/bin/base64"))
    assert guard.tries(fileless) == "OK"

    guard.hold(process("/usr/**", Verdict.ALLOW), postures=Postures(file=Posture.BLOCK))
    guard.events(0)
    assert guard.tries(fileless) == REFUSED
    assert guard.events()[0].operation == "exec"


def test_pipes_sockets_and_memory_files_are_no_files_of_a_rule(guard: Guard) -> None:
    guard.hold(file("/srv/elsewhere"))

    assert guard.vm.run("sh", "-c", "echo piped | cat /proc/self/fd/0").stdout == "piped\n"
    assert guard.vm.run("bash", "-c", "ln -sfT /proc/self/fd /dev/fd; cat <(echo substituted)").stdout == "substituted\n"
    assert guard.tries("f = os.memfd_create('m'); open(f'/proc/self/fd/{f}')") == "OK"
    assert guard.tries("f = os.open('/tmp', os.O_TMPFILE | os.O_RDWR); open(f'/proc/self/fd/{f}')") == "OK"
