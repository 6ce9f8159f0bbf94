"""As much as a node may have is held in the kernel; what is more is told, and refuses rather than allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from garrison.common import limits
from garrison.common.policy.rules import Rule, WorkloadScope
from garrison.minion.workloads.model import Workload, WorkloadKind
from vm.lab import K61, K612, Lab
from vm.lsm import Guard, file, process

pytestmark = pytest.mark.long

_CGROUPS = "/sys/fs/cgroup"
KERNELS = [pytest.param(replace(machine, memory_mib=1024), id=machine.kernel) for machine in (K61, K612)]


@pytest.fixture(params=KERNELS)
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM with room for an agent that has so much to compile."""
    with Lab() as lab:
        yield Guard(lab.boot("limits", request.param))


def test_as_many_rules_as_a_node_may_have_are_all_held(guard: Guard) -> None:
    rules = list(_rules(limits.RULES_MAX))
    first, last = rules[0].target.value, rules[-2].target.value  # type: ignore[union-attr]
    for path in (first, last, "/srv/free"):
        guard.vm.put(path, "hi\n")

    report = guard.hold(*rules)

    assert len(report) == limits.RULES_MAX
    assert {line["status"] for line in report} == {"enforced"}
    assert [guard.opens(path) for path in (first, last, "/srv/free")] == [False, False, True]
    assert not guard.opens("/srv/65534/etc/secret", by="head")
    assert guard.counters()["table_errors"] == 0


def test_as_many_workloads_as_a_node_may_have_each_have_their_rules(guard: Guard) -> None:
    guard.vm.put("/srv/even", "hi\n")
    guard.vm.put("/srv/odd", "hi\n")
    workloads = [_workload(n, f"turn={'odd' if n % 2 else 'even'}") for n in range(limits.WORKLOADS_MAX)]
    some = (workloads[0], workloads[1], workloads[-2], workloads[-1])
    _make(guard, *some)
    _tell(guard, workloads)

    guard.hold(*(file(f"/srv/{turn}", scope=WorkloadScope(labels=(f"turn={turn}",))) for turn in ("even", "odd")))

    found = {w.name: [_reads(guard, w, f"/srv/{turn}") for turn in ("even", "odd")] for w in some}
    assert list(found.values()) == [[False, True], [True, False]] * 2
    assert guard.opens("/srv/even")
    assert not guard.trouble()


def test_workloads_that_are_selected_in_more_ways_than_can_be_told_apart_are_refused_what_any_is(guard: Guard) -> None:
    guard.vm.put("/srv/secret", "hi\n")
    guard.vm.put("/srv/free", "hi\n")
    count = limits.LSM_PROFILES_MAX + 2
    workloads = [_workload(n, f"n={n}") for n in range(count)]
    _make(guard, *workloads)
    _tell(guard, workloads)

    guard.hold(
        *(file(f"/srv/of-{n}", scope=WorkloadScope(labels=(f"n={n}",))) for n in range(count)),
        file("/srv/secret", scope=WorkloadScope(labels=("n=none",))),
    )

    told_apart = [_reads(guard, workload, "/srv/secret") for workload in (*workloads[:2], *workloads[-3:])]
    assert told_apart.count(False) >= 2
    assert all(_reads(guard, workload, "/srv/free") for workload in workloads[-3:])
    assert guard.opens("/srv/secret")
    assert guard.trouble()


def _rules(count: int) -> Iterator[Rule]:
    for n in range(0, count, 2):
        yield file(f"/srv/{n}/etc/secret", name=f"{n:06}-file")
        yield process(f"/srv/{n}/bin/tool", by=f"/srv/bin/{n % 100}", name=f"{n:06}-process")


def _workload(number: int, label: str) -> Workload:
    name = f"w{number}"
    return Workload(kind=WorkloadKind.CONTAINER, name=name, labels=frozenset({label}), cgroup=f"/many/{name}")


def _make(guard: Guard, *workloads: Workload) -> None:
    guard.vm.check("xargs", "mkdir", "-p", stdin="\n".join(_CGROUPS + workload.cgroup for workload in workloads))


def _tell(guard: Guard, workloads: list[Workload]) -> None:
    guard.ask("workloads", workloads=msgspec.to_builtins(workloads))


def _reads(guard: Guard, workload: Workload, path: str) -> bool:
    move = 'echo 0 >"$0/cgroup.procs" && exec cat "$1"'
    done = guard.vm.run("sh", "-c", move, _CGROUPS + workload.cgroup, path)
    assert done.returncode == 0 or "permitted" in done.stderr, done
    return done.returncode == 0
