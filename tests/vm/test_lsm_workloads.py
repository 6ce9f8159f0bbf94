"""Rules for workloads, held by the kernel: in the workload and nowhere else, from its first moment on, wherever it goes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from garrison.common.policy.rules import (
    Entity,
    Other,
    Posture,
    Postures,
    Protocol,
    Rule,
    Scope,
    Verdict,
    WorkloadScope,
)
from garrison.minion.workloads.model import Workload, WorkloadKind
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process

_ROOT = "/sys/fs/cgroup"
WEB = WorkloadScope(labels=("app=web",))
_names = itertools.count()

# Waits for lines that name an action each; says what came of it.
_RESIDENT = r"""
import os, sys, threading
for line in sys.stdin:
    word, _, where = line.strip().partition(" ")
    try:
        if word == "read":
            open(where).read()
        elif word == "enter":
            open(where + "/cgroup.procs", "w").write("0")
        elif word == "fork":
            if (child := os.fork()) == 0:
                try:
                    open(where).read()
                    os._exit(0)
                except OSError:
                    os._exit(1)
            if os.waitpid(child, 0)[1]:
                raise PermissionError
        elif word == "thread":
            said = []
            def read():
                try:
                    open(where).read()
                    said.append(True)
                except OSError:
                    said.append(False)
            t = threading.Thread(target=read)
            t.start()
            t.join()
            if not said[0]:
                raise PermissionError
        print("ok", flush=True)
    except OSError:
        print("refused", flush=True)
"""


class Site(Guard):
    """An enforcer, and cgroups to run things in."""

    def cgroup(self, *parts: str) -> str:
        """Make a cgroup with a name of its own, or below one, and return its path."""
        path = "/".join(parts) if parts else f"/w{next(_names)}"
        self.vm.check("mkdir", "-p", _ROOT + path)
        return path

    def tell(self, *workloads: Workload) -> None:
        """Tell the enforcer that these are all workloads."""
        self.ask("workloads", workloads=msgspec.to_builtins(workloads))

    def inside(self, cgroup: str, *argv: str) -> bool:
        """Run a command in a cgroup, and tell whether it was not refused."""
        done = self.vm.run("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', _ROOT + cgroup, *argv)
        assert done.returncode == 0 or "permitted" in done.stderr + done.stdout, done
        return done.returncode == 0

    def resident(self, cgroup: str, *steps: str) -> list[str]:
        """Run one process in a cgroup through these steps, and return what came of each."""
        done = self.vm.run(
            "sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', _ROOT + cgroup, "python3", "-SEc", _RESIDENT,
            stdin="".join(f"{step}\n" for step in steps),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()


def workload(cgroup: str, *labels: str, kind: WorkloadKind = WorkloadKind.CONTAINER, namespace: str = "") -> Workload:
    """Return a workload in ``cgroup``."""
    return Workload(kind=kind, name=cgroup.rpartition("/")[2], labels=frozenset(labels), cgroup=cgroup, namespace=namespace)


def rule(entity: Entity, target: Any, scope: Scope = WEB, verdict: Verdict = Verdict.BLOCK) -> Rule:
    """Return a rule about something that is no path."""
    return Rule(id=f"p/{entity}", policy="p", entity=entity, verdict=verdict, target=target, scope=scope)


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """An enforcer in a VM of its own, shared by the tests of this file: each applies other rules."""
    machine: Machine = request.param
    with Lab() as lab:
        yield Site(lab.boot("workloads", machine))


def test_rules_of_every_kind_hold_in_the_workload_and_not_outside(site: Site) -> None:
    site.files("/srv/w/secret", "/srv/w/free")
    web, other = site.cgroup(), site.cgroup()
    site.tell(workload(web, "app=web", "tier=1"), workload(other, "app=db"))

    report = site.hold(
        file("/srv/w/secret", scope=WEB),
        process("/usr/bin/base64", scope=WEB),
        rule(Entity.NETWORK, Protocol("udp")),
        rule(Entity.CAPABILITY, Other("sys_time")),
    )

    assert {(line["status"], line.get("reason", "")) for line in report} == {("enforced", "")}
    udp = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    time = "import time; time.clock_settime(time.CLOCK_REALTIME, time.time())"
    tries = (
        ("cat", "/srv/w/secret"), ("base64", "/etc/hostname"), ("python3", "-SEc", udp), ("python3", "-SEc", time),
    )  # fmt: skip
    for argv in tries:
        assert not site.inside(web, *argv), argv
        assert site.inside(other, *argv), argv
        assert site.vm.run(*argv).returncode == 0, argv
    assert site.inside(web, "cat", "/srv/w/free")
    events = site.events(4)
    assert {event.operation for event in events} == {"open", "exec", "connect", "capable"}
    assert {event.result for event in events} == {REFUSED}


def test_rule_of_a_workload_comes_on_top_of_those_of_the_host(site: Site) -> None:
    site.files("/srv/top/a", "/srv/top/b")
    web = site.cgroup()
    site.tell(workload(web, "app=web"))

    site.hold(file("/srv/top/a"), file("/srv/top/**", scope=WEB, by="/usr/bin/cat"))

    assert not site.inside(web, "cat", "/srv/top/a")
    assert not site.inside(web, "head", "/srv/top/a")
    assert not site.inside(web, "cat", "/srv/top/b")
    assert site.inside(web, "head", "/srv/top/b")
    assert not site.opens("/srv/top/a")
    assert site.opens("/srv/top/b")


def test_workload_that_appears_is_held_from_its_next_operation_on_and_let_go_when_it_is_one_no_more(site: Site) -> None:
    site.files("/srv/late/secret")
    late = site.cgroup()
    site.tell()
    report = site.hold(file("/srv/late/secret", scope=WEB))
    assert "no workload" in report[0]["reason"]
    assert report[0]["status"] == "enforced"
    assert site.inside(late, "cat", "/srv/late/secret")

    site.tell(workload(late, "app=web", kind=WorkloadKind.UNIT))
    assert not site.inside(late, "cat", "/srv/late/secret")

    before = site.counters()["workloads"]
    site.tell(workload(late, "app=web", kind=WorkloadKind.UNIT), workload(site.cgroup(), "app=web"))
    assert site.counters()["workloads"] == before + 1
    site.tell(workload(late, "app=db", kind=WorkloadKind.UNIT))
    assert site.inside(late, "cat", "/srv/late/secret")


def test_unit_is_held_from_its_first_moment_by_its_name_whether_the_agent_lives_or_not(site: Site) -> None:
    site.files("/srv/unit/secret")
    site.tell(workload("/system.slice/shop.service", "app=web", kind=WorkloadKind.UNIT))
    site.hold(file("/srv/unit/secret", scope=WEB))
    site.vm.check("sh", "-c", f"mkdir -p {_ROOT}/system.slice/shop.service {_ROOT}/system.slice/shops.service")
    assert not site.inside("/system.slice/shop.service", "cat", "/srv/unit/secret")
    assert site.inside("/system.slice/shops.service", "cat", "/srv/unit/secret")
    inner = site.cgroup("/system.slice/shop.service/inner/deep")
    assert not site.inside(inner, "cat", "/srv/unit/secret")

    site.kill()
    site.vm.check(
        "sh",
        "-c",
        f"cd {_ROOT}/system.slice && rmdir shop.service/inner/deep shop.service/inner shop.service && mkdir shop.service",
    )
    assert not site.inside("/system.slice/shop.service", "cat", "/srv/unit/secret")

    site.hold(file("/srv/unit/secret", scope=WEB))  # the next agent has not been told of any workload yet
    assert not site.inside("/system.slice/shop.service", "cat", "/srv/unit/secret")


def test_container_cannot_be_left(site: Site) -> None:
    site.files("/srv/stay/secret")
    web, deeper, outside = site.cgroup(), "", site.cgroup()
    deeper = site.cgroup(web, "deeper")
    site.tell(workload(web, "app=web"))
    site.hold(file("/srv/stay/secret", scope=WEB))
    read = "read /srv/stay/secret"

    steps = [read, f"enter {_ROOT}{outside}", read, "fork /srv/stay/secret", "thread /srv/stay/secret"]
    assert site.resident(web, *steps) == ["refused", "ok", "refused", "refused", "refused"]
    assert site.resident(deeper, f"enter {_ROOT}", read) == ["ok", "refused"]
    # Another program, started by who has left.
    away = f"echo 0 >{_ROOT}{outside}/cgroup.procs; exec setsid --wait cat /srv/stay/secret"
    assert not site.inside(web, "sh", "-c", away)
    assert site.inside(outside, "cat", "/srv/stay/secret")


def test_container_is_not_left_over_a_new_generation_nor_when_it_is_forgotten(site: Site) -> None:
    site.files("/srv/gone/secret", "/srv/gone/free")
    web, outside = site.cgroup(), site.cgroup()
    site.tell(workload(web, "app=web"))
    held = file("/srv/gone/secret", scope=WEB)
    site.hold(held)
    stay = 'echo 0 >"$0/cgroup.procs"; while [ ! -e /run/go ]; do sleep 0.1; done; exec cat /srv/gone/secret'
    enter = f'echo 0 >{_ROOT}{web}/cgroup.procs && exec sh -c "$1" "$0"'
    waiting = site.vm.start("sh", "-c", enter, _ROOT + outside, stay, log="/tmp/gone.log")
    site.vm.until(lambda: str(waiting.pid) in site.vm.check("cat", f"{_ROOT}{outside}/cgroup.procs").split(), "it left")

    site.hold(held, file("/srv/gone/more", scope=WorkloadScope(labels=("app=db",))))
    site.tell(workload(outside, "app=db"))  # and so a generation with other numbers
    site.vm.check("touch", "/run/go")
    waiting.wait()
    site.vm.check("rm", "/run/go")

    assert "not permitted" in waiting.output()


def test_unit_is_left_when_its_process_goes_to_another(site: Site) -> None:
    site.files("/srv/login/secret")
    unit, session = site.cgroup(), site.cgroup()
    site.tell(workload(unit, "app=web", kind=WorkloadKind.UNIT), workload(session, "user=x", kind=WorkloadKind.USER))
    site.hold(file("/srv/login/secret", scope=WEB))
    read = "read /srv/login/secret"

    assert site.resident(unit, read, f"enter {_ROOT}{session}", read) == ["refused", "ok", "ok"]


def test_both_count_for_who_left_one_container_for_another(site: Site) -> None:
    site.files("/srv/two/a", "/srv/two/b")
    one, other = site.cgroup(), site.cgroup()
    site.tell(workload(one, "app=web"), workload(other, "app=db"))
    site.hold(file("/srv/two/a", scope=WEB), file("/srv/two/b", scope=WorkloadScope(labels=("app=db",))))

    steps = ["read /srv/two/a", "read /srv/two/b", f"enter {_ROOT}{other}", "read /srv/two/a", "read /srv/two/b"]
    assert site.resident(one, *steps) == ["refused", "ok", "ok", "refused", "refused"]


def test_new_namespaces_of_users_and_cgroups_change_nothing(site: Site) -> None:
    site.files("/srv/ns/secret")
    web = site.cgroup()
    site.tell(workload(web, "app=web"))
    site.hold(file("/srv/ns/secret", scope=WEB))

    assert not site.inside(web, "unshare", "-r", "cat", "/srv/ns/secret")
    assert not site.inside(web, "unshare", "-rmC", "--fork", "cat", "/srv/ns/secret")
    assert not site.inside(
        web, "unshare", "-rmpC", "--fork", "--mount-proc", "setpriv", "--clear-groups", "cat", "/srv/ns/secret"
    )


def test_allow_list_of_one_workload_is_nobody_elses(site: Site) -> None:
    site.files("/srv/list/mine", "/srv/list/other")
    web, db = site.cgroup(), site.cgroup()
    site.tell(workload(web, "app=web"), workload(db, "app=db"))
    everything = [
        file(where, Verdict.ALLOW, scope=WEB) for where in ("/usr/**", "/lib/**", "/etc/**", "/proc/**", "/dev/**", "/sys/**")
    ]

    site.hold(file("/srv/list/mine", Verdict.ALLOW, scope=WEB), *everything, postures=Postures(file=Posture.BLOCK))

    assert site.inside(web, "cat", "/srv/list/mine")
    assert not site.inside(web, "cat", "/srv/list/other")
    assert site.inside(db, "cat", "/srv/list/other")
    assert site.opens("/srv/list/other")


def test_expressions_and_namespaces_select_as_written(site: Site) -> None:
    names = ["in", "notin", "namespace", "cluster"]
    site.files(*(f"/srv/sel/{name}" for name in names))
    a, b, c = (site.cgroup() for _ in range(3))
    site.tell(
        workload(a, "app=web", namespace="prod"), workload(b, "app=db", namespace="prod"), workload(c, "app=web", "x=y"),
    )  # fmt: skip
    site.hold(
        file("/srv/sel/in", scope=WorkloadScope(any_of=(("app=db", "x=y"),))),
        file("/srv/sel/notin", scope=WorkloadScope(none_of=("app=db",))),
        file("/srv/sel/namespace", scope=WorkloadScope(namespace="prod", labels=("app=web",))),
        file("/srv/sel/cluster", scope=WorkloadScope(not_namespaces=("prod",))),
    )

    held = {cg: {n for n in names if not site.inside(cg, "cat", f"/srv/sel/{n}")} for cg in (a, b, c)}

    assert held == {a: {"notin", "namespace"}, b: {"in"}, c: {"in", "notin", "cluster"}}
    assert all(site.opens(f"/srv/sel/{name}") for name in names), "the host is no workload"


def test_nested_workload_has_the_rules_of_both(site: Site) -> None:
    site.files("/srv/nest/outer", "/srv/nest/inner")
    user = site.cgroup()
    box = site.cgroup(user, "libpod-1.scope")
    site.tell(workload(user, "user=ann", kind=WorkloadKind.USER), workload(box, "app=web"))
    site.hold(file("/srv/nest/outer", scope=WorkloadScope(labels=("user=ann",))), file("/srv/nest/inner", scope=WEB))

    assert not site.inside(box, "cat", "/srv/nest/outer")
    assert not site.inside(box, "cat", "/srv/nest/inner")
    assert not site.inside(user, "cat", "/srv/nest/outer")
    assert site.inside(user, "cat", "/srv/nest/inner")


def test_arguments_that_one_workload_lists_are_its_own(site: Site) -> None:
    web, db = site.cgroup(), site.cgroup()
    site.tell(workload(web, "app=web"), workload(db, "app=db"))
    lists = {"web": "/etc/hostname", "db": "/etc/passwd"}
    site.hold(
        *(
            process("/usr/bin/base64", allowed_args=(arg,), scope=WorkloadScope(labels=(f"app={app}",)), name=app)
            for app, arg in lists.items()
        )
    )

    def starts(cgroup: str, arg: str) -> bool:
        return site.vm.run("sh", "-c", f"echo 0 >{_ROOT}{cgroup}/cgroup.procs; exec base64 {arg}").returncode == 0

    assert [starts(web, arg) for arg in lists.values()] == [True, False]
    assert [starts(db, arg) for arg in lists.values()] == [False, True]
    assert site.vm.run("base64", "/etc/shadow").returncode == 0


def test_running_process_obeys_while_generations_change_and_the_agent_dies(site: Site) -> None:
    site.files("/srv/run/secret", "/srv/run/x")
    web = site.cgroup()
    site.tell(workload(web, "app=web"))
    held = file("/srv/run/secret", scope=WEB)
    site.hold(held)
    loop = 'n=0; while [ ! -e /run/go ]; do cat /srv/run/secret 2>/dev/null && echo read; n=$((n+1)); done; echo "$n times"'
    running = site.vm.start(
        "sh", "-c", f'echo 0 >{_ROOT}{web}/cgroup.procs; exec nice -n 19 sh -c "$0"', loop, log="/tmp/run.log"
    )
    site.vm.until(lambda: str(running.pid) in site.vm.check("cat", f"{_ROOT}{web}/cgroup.procs").split(), "it runs there")

    for turn in range(2):
        for n in range(6):
            site.tell(workload(web, "app=web", f"n={n % 2}"), workload(f"/other{n}", f"n={n}"))
            site.hold(held, file("/srv/run/x", scope=WorkloadScope(labels=(f"n={n}",))), file(f"/srv/run/{turn}"))
        site.kill()
    site.vm.check("touch", "/run/go")
    running.wait()
    site.vm.check("rm", "/run/go")

    (times,) = running.output().splitlines()
    assert times.endswith("times")
    assert int(times.split()[0]) > 3
    site.hold(held)


def test_other_version_of_the_programs_has_the_workloads_of_the_one_before(site: Site) -> None:
    site.files("/srv/next/secret")
    web = site.cgroup()
    site.tell(workload(web, "app=web"))
    held = file("/srv/next/secret", scope=WEB)
    site.hold(held)
    site.kill()

    site.version = "" if site.version else "another"
    site.hold(held)  # before anybody has looked for workloads again

    assert not site.inside(web, "cat", "/srv/next/secret")
    assert site.opens("/srv/next/secret")


def test_depth_is_no_way_out(site: Site) -> None:
    site.files("/srv/far/secret")
    web = site.cgroup()
    site.tell(workload(web, "app=web"))
    site.hold(file("/srv/far/secret", scope=WEB))
    dig = f"""
import os
os.chdir("{_ROOT}{web}")
for _ in range(200):
    os.mkdir("d")
    os.chdir("d")
open("cgroup.procs", "w").write("0")
open("/srv/far/secret").read()
"""

    done = site.vm.run("python3", "-SEc", dig, timeout_s=240)

    assert "PermissionError" in done.stderr.splitlines()[-1]
    assert "/srv/far/secret" in done.stderr.splitlines()[-1]
    assert site.opens("/srv/far/secret")


def test_cgroups_are_told_as_they_are_made(site: Site) -> None:
    site.hold(file("/srv/told", scope=WEB))
    site.ask("cgroups")

    made = site.cgroup("/told.slice/box-1.scope")

    def arrived() -> list[dict[str, Any]]:
        return [each for each in site.ask("cgroups") if each["path"] == made]

    (told,) = site.vm.until(arrived, "the cgroup to be told")
    assert told["cgroup_id"] == int(site.vm.check("stat", "-c", "%i", _ROOT + made))


def test_unit_and_session_of_systemd_are_held_from_their_first_instruction(lab: Lab) -> None:
    site = Site(lab.boot("units", Machine("6.1")))
    site.files("/srv/sd/secret")
    shop = workload("/system.slice/shop.service", "app=web", kind=WorkloadKind.UNIT)
    site.tell(shop, workload("/user.slice/user-1000.slice", "user=ann", kind=WorkloadKind.USER))
    site.hold(file("/srv/sd/secret", scope=WEB), process("/usr/bin/base64", scope=WorkloadScope(labels=("user=ann",))))

    def run(*options: str, argv: tuple[str, ...] = ("cat", "/srv/sd/secret")) -> bool:
        return site.vm.run("systemd-run", "--wait", "--collect", "-q", *options, "--", *argv).returncode == 0

    assert not run("--unit=shop")
    assert run("--unit=other")
    site.kill()
    assert not run("--unit=shop"), "no agent runs, and the unit is new"
    session = ("--scope", "--slice=user-1000.slice", "-q", "--")
    assert site.vm.run("systemd-run", *session, "cat", "/etc/hostname").returncode == 0
    assert site.vm.run("systemd-run", *session, "base64", "/etc/hostname").returncode != 0
