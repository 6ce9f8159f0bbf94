"""Profiles that come while a generation is on trial: they get what the rules mean for them, and nobody else notices."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.common import limits
from garrison.common.policy.match import decide
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Posture, Postures, Rule, RuleSet, Verdict, WorkloadScope
from garrison.minion.enforcers.bpf_lsm.extension import extended, missing_profiles
from garrison.minion.enforcers.bpf_lsm.layout import TABLES, lay_out, lay_out_extension
from garrison.minion.enforcers.bpf_lsm.program import compile_program
from garrison.minion.enforcers.profiles import Placement, Profiles, needed_profiles, place_workloads, workload_scopes
from unit.bpf_lsm.test_profiles import OPERATIONS, RULESETS, WORKLOADS

HASHER = PathHasher(bytes(range(KEY_BYTES)))
PER_PROFILE = {"records", "rows", "args", "class_capabilities"}
ZERO = bytes(4)


def grown(drawn, before, workloads):
    """The program for workloads that were there, extended for those that came."""
    program = compile_program(drawn, needed_profiles(before))
    after = place_workloads(workload_scopes(drawn.rules), workloads)
    more = missing_profiles(program, after)
    return program, extended(drawn, program, more), after


@settings(max_examples=200, deadline=None)
@given(
    drawn=RULESETS,
    there=st.lists(WORKLOADS, max_size=2),
    came=WORKLOADS,
    operations=st.lists(OPERATIONS, min_size=1, max_size=8),
)
def test_workload_that_comes_gets_what_the_rules_mean_for_its_labels_and_all_others_keep_theirs(drawn, there, came, operations):
    before = place_workloads(workload_scopes(drawn.rules), there)
    program, more, after = grown(drawn, before, [came])

    assert more is not None
    profile = more.profiles.number(after.get(came.cgroup.rstrip("/"), Placement(frozenset())).profile)
    for operation in operations:
        inside = msgspec.structs.replace(operation, labels=came.labels, namespace=came.namespace)
        assert more.decide(operation, profile) == decide(drawn, inside)
        for number in range(2 + len(program.profiles.known)):
            assert more.decide(operation, number) == program.decide(operation, number)


@settings(max_examples=200, deadline=None)
@given(drawn=RULESETS, there=st.lists(WORKLOADS, max_size=2), came=st.lists(WORKLOADS, max_size=2))
def test_tables_only_grow_so_that_a_decision_may_see_some_from_before_and_some_from_after(drawn, there, came):
    before = place_workloads(workload_scopes(drawn.rules), there)
    program, more, _ = grown(drawn, before, came)
    assert more is not None
    old = lay_out(program, 7, hasher=HASHER, inode_of=lambda path: (3, len(path)))
    whole = lay_out(more, 7, hasher=HASHER, inode_of=lambda path: (3, len(path)))

    new = lay_out_extension(more, 7, hasher=HASHER, heads=(old["heads"][ZERO], old["subject_heads"][ZERO]))

    for name in PER_PROFILE:
        assert old[name].items() <= new[name].items(), name
    assert {name: whole[name] for name in new} == new, "what a generation made anew would have"
    assert {name: whole[name] for name in TABLES if name not in new} == {name: old[name] for name in TABLES if name not in new}
    assert list(new).index("records") < list(new).index("rows"), "what rows lead to is there before them"


def test_allow_list_of_a_workload_that_comes_holds_in_it_although_no_workload_had_one():
    scope = WorkloadScope(labels=("app=web",))
    listed = Rule(
        id="p/1", policy="p", entity=Entity.FILE, verdict=Verdict.ALLOW, target=PathTarget(PathKind.EXACT, "/a"), scope=scope
    )
    rules = RuleSet(rules=(listed,), postures=Postures(file=Posture.BLOCK))
    program = compile_program(rules)
    old = lay_out(program, 7, hasher=HASHER, inode_of=lambda _: None)
    more = extended(rules, program, [frozenset({scope})])
    assert more is not None

    new = lay_out_extension(more, 7, hasher=HASHER, heads=(old["heads"][ZERO], old["subject_heads"][ZERO]))

    assert new["heads"] != old["heads"], "there are postures now"


def test_profiles_past_the_limit_stay_unknown(monkeypatch):
    monkeypatch.setattr(limits, "LSM_PROFILES_MAX", 2)
    scopes = [WorkloadScope(labels=(f"app={n}",)) for n in range(3)]
    rules = RuleSet(
        rules=tuple(
            Rule(
                id=f"p/{n}",
                policy="p",
                entity=Entity.FILE,
                verdict=Verdict.BLOCK,
                target=PathTarget(PathKind.EXACT, "/a"),
                scope=s,
            )
            for n, s in enumerate(scopes)
        )
    )
    first, *others = (frozenset({scope}) for scope in scopes)

    more = extended(rules, compile_program(rules, [first]), others)

    assert more is not None
    assert more.profiles.known == Profiles([first, others[0]]).known
