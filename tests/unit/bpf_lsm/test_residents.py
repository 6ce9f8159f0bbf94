"""What runs on the node, as the kernel enforcer knows it: from the agent before, then as it is told, and in the report."""

from __future__ import annotations

import contextlib
import struct

import pytest

from garrison.common.errors import FrameError, KernelError
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Rule, RuleSet, RuleStatus, Verdict, WorkloadScope
from garrison.minion.enforcers.base import CgroupMade
from garrison.minion.enforcers.bpf_lsm.residents import CGROUP_RECORD_BYTES, Residents, decode_cgroup
from garrison.minion.enforcers.profiles import NO_WORKLOAD, Placement, Profiles, shortage
from garrison.minion.workloads.model import Workload, WorkloadKind

WEB = Workload(kind=WorkloadKind.UNIT, name="web", labels=frozenset({"app=web"}), cgroup="/web.service")
DB = Workload(kind=WorkloadKind.UNIT, name="db", labels=frozenset({"app=db"}), cgroup="/db.service")
SCOPE = WorkloadScope(labels=("app=web",))
RULES = RuleSet(
    rules=(
        Rule(
            id="p/1",
            policy="p",
            entity=Entity.FILE,
            verdict=Verdict.BLOCK,
            target=PathTarget(PathKind.EXACT, "/etc/secret"),
            scope=SCOPE,
        ),
    )
)


class Kept:
    """What the pins keep, in a list."""

    def __init__(self, *workloads: Workload) -> None:
        self.workloads = workloads

    def known_workloads(self):
        return self.workloads

    def keep_workloads(self, workloads):
        self.workloads = tuple(workloads)


def test_workloads_of_the_agent_before_count_until_this_one_is_told():
    kept = Kept(WEB)
    residents = Residents(kept)
    assert set(residents.placed(RULES)) == {"/web.service"}

    with residents.told([]) as news:
        assert news, "nothing, told, is not the same as not told"
    assert residents.placed(RULES) == {}
    residents.keep()
    assert kept.workloads == ()


def test_only_what_changed_is_news_whatever_the_order():
    residents = Residents(Kept())
    with residents.told([WEB, DB]) as news:
        assert news
    with residents.told([DB, WEB]) as news:
        assert not news


def test_what_the_kernel_did_not_take_is_news_again():
    residents = Residents(Kept())
    with contextlib.suppress(KernelError), residents.told([WEB]):
        raise KernelError(28, "update map cgroups")

    with residents.told([WEB]) as news:
        assert news


@pytest.mark.parametrize(
    ("running", "why", "status", "reason"),
    [
        ([WEB], "", RuleStatus.ENFORCED, ""),
        ([DB], "", RuleStatus.ENFORCED, NO_WORKLOAD),
        ([WEB], "too many", RuleStatus.DEGRADED, "too many"),
    ],
    ids=["matched", "matched by none", "no room"],
)
def test_report_says_whether_a_rule_means_somebody_now(running, why, status, reason):
    residents = Residents(Kept(*running))

    (line,) = residents.report(RULES, why)

    assert (line.status, line.reason) == (status, reason)


def test_rules_without_workloads_place_nobody():
    assert Residents(Kept(WEB)).placed(RuleSet()) == {}


def test_shortage_counts_who_could_not_be_told_apart():
    placed = {"/a": Placement(frozenset({SCOPE})), "/b": Placement(frozenset(), sticky=True)}

    assert shortage(placed, Profiles([frozenset({SCOPE})])) == ""
    assert shortage(placed, Profiles()).startswith("1 of")


def test_cgroup_is_told_by_number_and_path():
    raw = struct.pack("=Q1024s", 7, b"/a/b\xff\0left over")

    assert decode_cgroup(raw) == CgroupMade(7, "/a/b\udcff")
    with pytest.raises(FrameError):
        decode_cgroup(bytes(CGROUP_RECORD_BYTES - 1))
