"""Every kind of rule goes to one backend, and all apply or none does."""

from __future__ import annotations

import pytest

from garrison.common.errors import KernelError
from garrison.common.frames import RuleReport
from garrison.common.policy.normalise import Normalised
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Protocol, Rule, RuleSet, Verdict
from garrison.minion.enforcers.stack import EnforcerStack
from garrison.minion.workloads.model import Workload, WorkloadKind
from unit.enforcers.backends import ListBackend


def rule(rule_id: str, entity: Entity) -> Rule:
    target = Protocol("tcp") if entity is Entity.NETWORK else PathTarget(how=PathKind.EXACT, value="/nowhere/x")
    return Rule(id=rule_id, policy="p", entity=entity, verdict=Verdict.BLOCK, target=target)


PROCESS, FILE, NETWORK = (rule(f"p/{e}", e) for e in (Entity.PROCESS, Entity.FILE, Entity.NETWORK))


def normalised(*rules: Rule, inert=()) -> Normalised:
    return Normalised(rules=RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id))), inert=tuple(inert))


@pytest.fixture
def make_stack():
    stacks = []

    def make(*backends: ListBackend) -> EnforcerStack:
        stacks.append(EnforcerStack(backends))
        return stacks[-1]

    yield make
    for stack in stacks:
        stack.close()


def held(backend: ListBackend) -> set[str]:
    return {r.id for r in backend.held.rules}


def test_each_entity_goes_to_the_backend_that_does_most_for_it(make_stack):
    weak = ListBackend("weak", {Entity.PROCESS: "audited", Entity.NETWORK: "enforced"})
    strong = ListBackend("strong", {Entity.PROCESS: "enforced", Entity.FILE: "degraded"})

    report = make_stack(weak, strong).apply(normalised(PROCESS, FILE, NETWORK))

    assert held(weak) == {NETWORK.id}
    assert held(strong) == {PROCESS.id, FILE.id}
    assert {(line.rule, line.status, line.backend) for line in report} == {
        (PROCESS.id, "enforced", "strong"),
        (FILE.id, "degraded", "strong"),
        (NETWORK.id, "enforced", "weak"),
    }


def test_backend_whose_probe_failed_gets_nothing_and_another_takes_over(make_stack):
    broken = ListBackend("broken", {Entity.PROCESS: "enforced"}, works=False)
    watching = ListBackend("watching", {Entity.PROCESS: "audited"})
    stack = make_stack(broken, watching)

    report = stack.apply(normalised(PROCESS))

    assert broken.applied == 0
    assert [(line.status, line.backend) for line in report] == [("audited", "watching")]
    assert stack.probe()["broken"].reason == "not here"
    assert [s.backend for s in stack.status()] == ["watching"]


def test_rule_that_no_backend_knows_is_impossible_and_inert_lines_are_kept(make_stack):
    stack = make_stack(ListBackend("one", {Entity.PROCESS: "enforced"}))

    report = stack.apply(normalised(NETWORK, inert=[RuleReport(rule="q/-", status="inert", reason="selects nothing")]))

    assert [(line.rule, line.status) for line in report] == [(NETWORK.id, "impossible"), ("q/-", "inert")]


def test_failure_of_one_backend_takes_all_back_to_the_previous_rules(make_stack):
    first = ListBackend("first", {Entity.PROCESS: "enforced"})
    second = ListBackend("second", {Entity.NETWORK: "enforced"})
    stack = make_stack(first, second)
    stack.apply(normalised(PROCESS, NETWORK))
    second.fails = 1

    with pytest.raises(KernelError, match="apply by second"):
        stack.apply(normalised(rule("p/new", Entity.PROCESS), rule("p/newer", Entity.NETWORK)))

    assert held(first) == {PROCESS.id}
    assert held(second) == {NETWORK.id}
    assert all(s.healthy for s in stack.status())


def test_backend_that_cannot_go_back_is_reported(make_stack):
    first = ListBackend("first", {Entity.PROCESS: "enforced"})
    second = ListBackend("second", {Entity.NETWORK: "enforced"})
    stack = make_stack(first, second)
    second.fails = 1
    original = first.apply
    first.apply = lambda rules: original(rules) if rules.rules else first.__class__.apply(failing, rules)
    failing = ListBackend("first", {})
    failing.fails = 1

    with pytest.raises(KernelError, match="apply by second"):
        stack.apply(normalised(PROCESS, NETWORK))

    assert "could not go back" in stack.status()[0].detail


def test_rules_that_are_gone_are_taken_from_their_backend_and_idle_backends_are_not_started(make_stack):
    used, idle = ListBackend("used", {Entity.PROCESS: "enforced"}), ListBackend("idle", {Entity.NETWORK: "enforced"})
    stack = make_stack(used, idle)
    stack.apply(normalised(PROCESS))

    stack.apply(normalised())

    assert held(used) == set()
    assert used.applied == 2


def test_backend_that_cannot_take_workloads_is_unhealthy_until_it_can_and_the_others_have_them(make_stack):
    stuck, fine, broken = ListBackend("a", {}), ListBackend("b", {}), ListBackend("c", {}, works=False)
    stuck.takes_workloads = False
    stack = make_stack(stuck, fine, broken)
    web = Workload(kind=WorkloadKind.UNIT, name="web", labels=frozenset(), cgroup="/web.service")

    stack.set_workloads([web])
    assert fine.workloads == (web,)
    assert broken.workloads == ()
    assert {status.healthy for status in stack.status()} == {False}
    assert "rules for workloads" in stack.status()[0].detail

    stuck.takes_workloads = True
    stack.set_workloads([web])
    assert {status.healthy for status in stack.status()} == {True}


def test_compile_changes_nothing(make_stack):
    backend = ListBackend("one", {Entity.PROCESS: "enforced"})

    report = make_stack(backend).compile(normalised(PROCESS))

    assert [line.status for line in report] == ["enforced"]
    assert backend.applied == 0


def test_backends_see_resolved_paths_and_the_report_keeps_the_ids(make_stack, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    written = rule("p/1", Entity.PROCESS)
    written = Rule(
        id="p/1",
        policy="p",
        entity=Entity.PROCESS,
        verdict=Verdict.BLOCK,
        target=PathTarget(how=PathKind.EXACT, value=f"{tmp_path}/link/x"),
    )
    backend = ListBackend("one", {Entity.PROCESS: "enforced"})

    report = make_stack(backend).apply(normalised(written))

    assert backend.held.rules[0].target.value == f"{tmp_path.resolve()}/real/x"
    assert report[0].rule == "p/1"
