"""Rules on trial in the kernel: workloads that come meanwhile have the right ones, however it ends; the way back is free."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from garrison.common.policy.rules import Posture, Postures, Rule, Verdict, WorkloadScope
from garrison.minion.workloads.model import Workload, WorkloadKind
from vm.lab import K61, K612, Lab
from vm.lsm import file
from vm.test_lsm_workloads import WEB, Site, workload

pytestmark = pytest.mark.long

DB = WorkloadScope(labels=("app=db",))
FILES = ("/srv/t/old-web", "/srv/t/old-db", "/srv/t/new-web", "/srv/t/new-db")
BEFORE = (file(FILES[0], scope=WEB), file(FILES[1], scope=DB))
TRIED = (file(FILES[2], scope=WEB), file(FILES[3], scope=DB))


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guest(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab.boot("trials", request.param))


@pytest.fixture
def site(guest: Site) -> Iterator[Site]:
    guest.files(*FILES)
    yield guest
    guest.kill()
    guest.tamper = "AUDIT"


def refused(site: Site, cgroup: str) -> set[str]:
    """The files that cannot be read there."""
    return {each.rpartition("/")[2] for each in FILES if not site.inside(cgroup, "cat", each)}


def keep(site: Site) -> None:
    site.ask("keep")


def go_back(site: Site) -> None:
    site.ask("go back")


def die(site: Site) -> None:
    site.kill()
    site.vm.until(lambda: json.loads(site.vm.get("/run/deadman.json"))["state"] == "reverted", "the deadman went back")


@pytest.mark.parametrize(("end", "stays"), [(keep, "new"), (go_back, "old"), (die, "old")])
def test_workloads_that_come_during_a_trial_have_the_rules_that_select_them_and_no_others(
    site: Site, end: Callable[[Site], None], stays: str
) -> None:
    site.tell()
    site.hold(*BEFORE)
    site.try_(*TRIED)
    web, db, both, unit = (site.cgroup() for _ in range(4))
    came = (
        workload(web, "app=web"),
        workload(db, "app=db", kind=WorkloadKind.USER),
        workload(both, "app=web", "app=db"),
        workload(unit, "app=db", kind=WorkloadKind.UNIT),
    )
    for number in range(len(came)):
        site.tell(*came[: number + 1])

    def held() -> dict[str, set[str]]:
        return {cgroup: refused(site, cgroup) for cgroup in (web, db, both, unit, "")}

    def meant(age: str) -> dict[str, set[str]]:
        of_web, of_db = {f"{age}-web"}, {f"{age}-db"}
        return {web: of_web, db: of_db, both: of_web | of_db, unit: of_db, "": set()}

    assert held() == meant("new")
    assert refused(site, site.cgroup(web, "inner")) == {"new-web"}

    end(site)

    assert held() == meant(stays)
    site.hold(*(TRIED if stays == "new" else BEFORE))
    assert held() == meant(stays)


def test_allow_list_on_trial_holds_in_the_workload_that_comes_and_nowhere_else(site: Site) -> None:
    def listed(where: str) -> Rule:
        return file(where, Verdict.ALLOW, scope=WEB)

    site.tell()
    site.hold(*BEFORE)
    system = (listed(f"/{name}/**") for name in ("usr", "lib", "etc", "proc", "dev", "sys"))
    site.try_(listed("/srv/t/new-web"), *system, postures=Postures(file=Posture.BLOCK))
    web, db = site.cgroup(), site.cgroup()
    assert refused(site, web) == set()

    site.tell(workload(web, "app=web"), workload(db, "app=db"))

    assert refused(site, web) == {"old-web", "old-db", "new-db"}
    assert refused(site, db) == refused(site, "") == set()
    go_back(site)
    assert (refused(site, web), refused(site, db)) == ({"old-web"}, {"old-db"})


def test_workload_that_goes_and_another_that_comes_in_its_place_during_a_trial_are_told_apart(site: Site) -> None:
    site.tell()
    site.hold(*BEFORE)
    site.try_(*TRIED)
    cgroup = site.cgroup()

    def is_now(*labels: str) -> set[str]:
        site.tell(*([Workload(kind=WorkloadKind.UNIT, name="u", labels=frozenset(labels), cgroup=cgroup)] if labels else []))
        return refused(site, cgroup)

    assert is_now("app=web") == {"new-web"}
    assert is_now("app=db") == {"new-db"}
    assert is_now() == set()
    assert is_now("app=web", "app=db") == {"new-web", "new-db"}
    go_back(site)
    assert refused(site, cgroup) == {"old-web", "old-db"}


def test_deadman_goes_back_and_ends_the_agent_although_nobody_may_touch_either(site: Site) -> None:
    site.tamper = "BLOCK"
    site.hold(file(FILES[0]))
    site.try_(file(FILES[2]), timeout_s=20)
    assert site.vm.run("kill", "-KILL", str(site.pid)).returncode != 0, "who is not the deadman may not end the agent"
    assert site.vm.run("mv", "/sys/fs/bpf/garrison", "/sys/fs/bpf/other").returncode != 0
    assert refused(site, "") == {"new-web"}

    site.forget()  # waits until the agent has ended

    record = json.loads(site.vm.get("/run/deadman.json"))
    assert (record["state"], record["errors"]) == ("reverted", [])
    assert refused(site, "") == {"old-web"}
    site.hold(file(FILES[1]))  # the next agent takes over
    assert refused(site, "") == {"old-db"}
    site.ask("release")
