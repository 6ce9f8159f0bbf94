"""Every way to change a file is a write of the path that a rule names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Verdict
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import REFUSED, Guard, file

# What is done, and the operation that the event names.
CHANGES = {
    "open('{0}', 'a')": "open",
    "os.truncate('{0}', 1)": "truncate",
    "os.unlink('{0}')": "unlink",
    "os.rename('{0}', '/srv/free/taken')": "rename",
    "os.rename('/srv/free/other', '{0}')": "rename",
    "syscall(316, -100, b'{0}', -100, b'/srv/free/other', 2)": "rename",  # renameat2, RENAME_EXCHANGE
    "syscall(316, -100, b'/srv/free/other', -100, b'{0}', 2)": "rename",
    "os.link('{0}', '/srv/free/link')": "link",
    "os.chmod('{0}', 0o600)": "setattr",
    "os.chown('{0}', 1, 1)": "setattr",
    "os.setxattr('{0}', 'user.a', b'1')": "setattr",
    "os.removexattr('{0}', 'user.b')": "setattr",
}
NEW = {
    "open('{0}', 'x')": "create",
    "os.mkdir('{0}')": "create",
    "os.mknod('{0}')": "create",
    "os.symlink('/etc/hostname', '{0}')": "create",
    "os.link('/srv/free/other', '{0}')": "link",
    "os.rename('/srv/free/other', '{0}')": "rename",
    "socket.socket(socket.AF_UNIX).bind('{0}')": "create",
}


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own; /srv/kept is read-only by rule, /srv/free has no rule."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("writes", machine))
        guard.files("/srv/free/other", "/srv/kept/file", "/srv/kept/in/file", "/srv/named/file", "/srv/seen/file")
        guard.vm.check("mkdir", "/srv/kept/empty")
        for where in ("/srv/free/other", "/srv/kept/file", "/srv/named/file", "/srv/seen/file"):
            guard.vm.check("python3", "-c", f"import os; os.setxattr('{where}', 'user.b', b'1')")
        guard.hold(
            file("/srv/kept/**", read_only=True),
            file("/srv/named/file", read_only=True),
            file("/srv/named/new", read_only=True),
            file("/srv/seen/**", Verdict.AUDIT, read_only=True),
        )
        yield guard


@pytest.fixture(autouse=True)
def _forget_events(guard: Guard) -> None:
    guard.events(0)


@pytest.mark.bypass(1, "refuses to link a file that a rule protects")
@pytest.mark.bypass(7, "refuses RENAME_EXCHANGE from both sides")
@pytest.mark.bypass(21, "refuses truncate, chmod, chown, xattr and every other change")
@pytest.mark.parametrize("where", ["/srv/kept/file", "/srv/named/file"])
def test_no_way_to_change_a_file_is_left_open(guard: Guard, where: str) -> None:
    tried = guard.tries(*(change.format(where) for change in CHANGES))

    assert dict(zip(CHANGES, tried, strict=True)) == dict.fromkeys(CHANGES, REFUSED)
    events = guard.events(len(CHANGES))
    assert [e.operation for e in events] == list(CHANGES.values())
    assert {e.object.removeprefix("[...]") for e in events} == {where}


@pytest.mark.parametrize("where", ["/srv/kept/new", "/srv/named/new"])
def test_nothing_can_be_made_where_a_rule_forbids_writing(guard: Guard, where: str) -> None:
    tried = guard.tries(*(change.format(where) for change in NEW))

    assert dict(zip(NEW, tried, strict=True)) == dict.fromkeys(NEW, REFUSED)
    assert [(e.operation, e.object) for e in guard.events(len(NEW))] == [(op, where) for op in NEW.values()]
    assert guard.vm.run("test", "-e", where).returncode == 1


def test_directories_in_a_protected_one_cannot_be_made_moved_or_removed(guard: Guard) -> None:
    tried = guard.tries(
        "os.rmdir('/srv/kept/empty')",
        "os.rename('/srv/kept/in', '/srv/free/in')",
        "os.rename('/srv/kept', '/srv/free/kept')",
        "os.rename('/srv/named', '/srv/free/named')",
        "os.rename('/srv', '/srv2')",
    )

    assert tried == [REFUSED] * 5
    assert {e.operation for e in guard.events(5)} == {"unlink", "rename"}


def test_file_without_a_rule_can_be_changed_in_all_those_ways(guard: Guard) -> None:
    guard.files("/srv/free/victim", "/srv/free/swapped")
    where, other = "/srv/free/victim", "/srv/free/swapped"

    tried = guard.tries(
        f"open('{where}', 'a').write('x')",
        f"os.setxattr('{where}', 'user.b', b'1')",
        f"os.removexattr('{where}', 'user.b')",
        f"os.truncate('{where}', 1)",
        f"os.chmod('{where}', 0o600)",
        f"os.chown('{where}', 1, 1)",
        f"os.link('{where}', '{where}-link')",
        f"syscall(316, -100, b'{where}', -100, b'{other}', 2)",
        f"os.rename('{where}', '{where}-moved')",
        f"os.unlink('{where}-moved')",
        f"os.unlink('{where}-link')",
        f"os.mkdir('{where}-d')",
        f"os.rename('{where}-d', '{where}-e')",
        f"os.rmdir('{where}-e')",
        f"os.mknod('{where}-n')",
        f"os.symlink('x', '{where}-s')",
        "open('/srv/kept/file').read()",
    )

    assert set(tried) == {"OK"}, tried


def test_audit_rule_tells_of_changes_and_lets_them_be(guard: Guard) -> None:
    tried = guard.tries("os.chmod('/srv/seen/file', 0o600)", "os.mkdir('/srv/seen/d')", "os.rename('/srv/seen/d', '/srv/seen/e')")

    assert tried == ["OK"] * 3
    assert [(e.operation, e.object, e.result) for e in guard.events(4)] == [
        ("setattr", "/srv/seen/file", "passed"),
        ("create", "/srv/seen/d", "passed"),
        ("rename", "/srv/seen/d", "passed"),
        ("rename", "/srv/seen/e", "passed"),
    ]


def test_new_file_belongs_to_who_makes_it(guard: Guard) -> None:
    guard.vm.check("sh", "-c", "mkdir -p /srv/own && chmod 777 /srv/own && echo >/srv/own/roots && chmod 666 /srv/own/roots")
    guard.hold(file("/srv/own/", owner_only=True))
    try:
        tried = guard.tries("open('/srv/own/new', 'w')", "os.unlink('/srv/own/new')", "os.unlink('/srv/own/roots')", user="alice")
    finally:
        guard.hold(file("/srv/kept/**", read_only=True))

    assert tried == ["OK", "OK", REFUSED]


@pytest.mark.bypass(12, "refuses SCM_RIGHTS of a file that the taker may not open")
@pytest.mark.bypass(14, "refuses to map a file writable that was open before")
def test_file_opened_before_the_rule_cannot_be_mapped_for_writing_or_handed_over(guard: Guard) -> None:
    guard.files("/srv/open/file", "/srv/free/file")
    guard.hold()
    holding = guard.vm.start("python3", "-SEc", HOLDS_OPEN, log="/tmp/holds-open")
    guard.vm.until(lambda: "ready" in holding.output(), "the file to be open")

    guard.hold(file("/srv/open/file"))
    guard.vm.put("/tmp/go", "")

    assert holding.wait() == 0, holding.output()
    assert holding.output().split() == ["ready", "map", REFUSED, "OK", "receive", "0", "1"]
    assert {"map_shared", "receive"} <= {e.operation for e in guard.events(2)}


# Opens a file that gets a rule and one that gets none, waits, then maps and sends both.
HOLDS_OPEN = r"""
import array, errno, mmap, os, socket, time
files = [os.open(p, os.O_RDWR) for p in ("/srv/open/file", "/srv/free/file")]
print("ready", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.05)
print("map")
for f in files:
    try:
        mmap.mmap(f, 3, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        print("OK")
    except OSError as e:
        print(errno.errorcode[e.errno])
print("receive")
for f in files:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    socket.send_fds(a, [b"x"], [f])
    print(len(socket.recv_fds(b, 1, 1)[1]))
"""
