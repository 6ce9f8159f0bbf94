"""Rules for workloads in tables: what holds in a workload is what the rules mean for its labels, and nothing else changes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.policy.match import Operation, decide, scope_matches
from garrison.common.policy.models import CAPABILITIES
from garrison.common.policy.rules import (
    Entity,
    HostScope,
    Other,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Protocol,
    Rule,
    RuleSet,
    Source,
    Verdict,
    WorkloadScope,
)
from garrison.minion.enforcers.bpf_lsm.program import compile_program
from garrison.minion.enforcers.bpf_lsm.subjects import capability_bits
from garrison.minion.enforcers.profiles import (
    HOST_PROFILE,
    UNKNOWN_PROFILE,
    Placement,
    Profiles,
    fallbacks,
    needed_profiles,
    place_workloads,
    subject_of,
    workload_scopes,
)
from garrison.minion.workloads.model import Workload, WorkloadKind

LABELS = ["a=1", "a=2", "b=1", "c=1"]
NAMESPACES = st.sampled_from(["", "n", "m"])
SOME = st.lists(st.sampled_from(LABELS), max_size=2, unique=True).map(tuple)
SCOPES = st.builds(
    WorkloadScope,
    namespace=NAMESPACES,
    labels=SOME,
    any_of=st.lists(st.lists(st.sampled_from(LABELS), min_size=1, max_size=2, unique=True).map(tuple), max_size=1).map(tuple),
    none_of=SOME,
    namespaces=st.sampled_from([(), ("n",), ("n", "m")]),
    not_namespaces=st.sampled_from([(), ("m",)]),
)
WORKLOADS = st.builds(
    Workload,
    kind=st.sampled_from(list(WorkloadKind)),
    name=st.just("w"),
    namespace=NAMESPACES,
    labels=st.lists(st.sampled_from(LABELS), max_size=3).map(frozenset),
    cgroup=st.sampled_from(["/x", "/x/y", "/x/y/z", "/x/yy", "/v/w/"]),
)
PATHS = st.sampled_from(["/a", "/b", "/a/a", "/a/b", "/b/a", "/a/b/a"])
TARGETS = {
    Entity.PROCESS: st.one_of(PATHS.map(lambda p: PathTarget(PathKind.EXACT, p)), st.just(PathTarget(PathKind.NAME, "a"))),
    Entity.FILE: st.one_of(
        PATHS.map(lambda p: PathTarget(PathKind.EXACT, p)),
        PATHS.map(lambda p: PathTarget(PathKind.DIRECTORY, f"{p}/", recursive=True)),
        st.sampled_from(["/a/*", "/**/a"]).map(lambda p: PathTarget(PathKind.GLOB, p)),
    ),
    Entity.NETWORK: st.sampled_from(["tcp", "raw", "all"]).map(Protocol),
    Entity.CAPABILITY: st.sampled_from(["chown", "net_raw"]).map(Other),
}


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    entity = draw(st.sampled_from(list(TARGETS)))
    policy = draw(st.sampled_from(["p", "q"]))
    return Rule(
        id=f"{policy}/{draw(st.integers(0, 10**9))}",
        policy=policy,
        entity=entity,
        verdict=draw(st.sampled_from(list(Verdict))),
        target=draw(TARGETS[entity]),
        sources=tuple(Source(p) for p in draw(st.lists(st.sampled_from(["/a", "/b", "/a/b"]), max_size=1))),
        scope=draw(st.one_of(st.just(HostScope()), SCOPES, SCOPES)),
        owner_only=entity in {Entity.FILE, Entity.PROCESS} and draw(st.booleans()),
        allowed_args=("-m",) if entity is Entity.PROCESS and draw(st.booleans()) else None,
        exempts=draw(st.booleans()),
    )


RULESETS = st.builds(
    RuleSet,
    rules=st.lists(rules(), max_size=8, unique_by=lambda r: r.id).map(tuple),
    postures=st.builds(Postures, **{name: st.sampled_from(list(Posture)) for name in ("file", "network", "capability")}),
)
ACTS = {"source": st.one_of(PATHS, st.just("")), "tty": st.booleans(), "is_owner": st.booleans()}
OPERATIONS = st.one_of(
    st.builds(
        Operation,
        entity=st.sampled_from([Entity.PROCESS, Entity.FILE]),
        path=st.one_of(PATHS, st.just("")),
        write=st.booleans(),
        args=st.sampled_from([(), ("-m",), ("-x",)]),
        **ACTS,
    ),
    st.builds(
        Operation,
        entity=st.just(Entity.NETWORK),
        protocols=st.sampled_from([frozenset({"tcp", "stream", "all"}), frozenset({"udp", "dgram", "all"})]),
        **ACTS,
    ),
    st.builds(Operation, entity=st.just(Entity.CAPABILITY), name=st.sampled_from(["chown", "net_raw", "kill"]), **ACTS),
)


def compiled(drawn: RuleSet, placed):
    return compile_program(drawn, needed_profiles(placed))


@settings(max_examples=300, deadline=None)
@given(drawn=RULESETS, workload=WORKLOADS, operations=st.lists(OPERATIONS, min_size=1, max_size=12))
def test_tables_decide_in_a_workload_as_the_rules_mean_for_its_labels(drawn, workload, operations):
    placed = place_workloads(workload_scopes(drawn.rules), [workload])
    program = compiled(drawn, placed)
    there = placed.get(workload.cgroup.rstrip("/"), Placement(frozenset()))
    profile = program.profiles.number(there.profile)

    for operation in operations:
        inside = msgspec.structs.replace(operation, labels=workload.labels, namespace=workload.namespace)
        assert program.decide(operation, profile) == decide(drawn, inside), operation
        assert program.decide(operation) == decide(drawn, operation), "the host is as if there were no workload rules"


@settings(max_examples=150, deadline=None)
@given(drawn=RULESETS, workloads=st.lists(WORKLOADS, max_size=5), operation=OPERATIONS)
def test_nested_workload_has_the_rules_of_all_that_it_is_in(drawn, workloads, operation):
    placed = place_workloads(workload_scopes(drawn.rules), workloads)
    program = compiled(drawn, placed)

    for workload in workloads:
        at = workload.cgroup.rstrip("/")
        around = [w for w in workloads if f"{at}/".startswith(f"{w.cgroup.rstrip('/')}/")]
        scopes = {scope for scope in workload_scopes(drawn.rules) for w in around if scope_matches(scope, w.labels, w.namespace)}
        assert placed.get(at, Placement(frozenset())).profile == scopes
        held = tuple(
            msgspec.structs.replace(rule, scope=HostScope())
            for rule in drawn.rules
            if isinstance(rule.scope, HostScope) or any(scope_matches(rule.scope, w.labels, w.namespace) for w in around)
        )
        meant = decide(msgspec.structs.replace(drawn, rules=held), operation)
        said = program.decide(operation, program.profiles.number(placed.get(at, Placement(frozenset())).profile))
        assert (said.verdict, said.by_posture, said.rule and said.rule.id) == (
            meant.verdict,
            meant.by_posture,
            meant.rule and meant.rule.id,
        )


@settings(max_examples=150, deadline=None)
@given(drawn=RULESETS, operation=OPERATIONS)
def test_what_cannot_be_placed_is_refused_all_that_any_workload_is_and_allowed_no_more_than_the_host(drawn, operation):
    program = compile_program(drawn)
    anywhere = tuple(
        msgspec.structs.replace(rule, scope=HostScope())
        for rule in drawn.rules
        if isinstance(rule.scope, HostScope) or rule.verdict is not Verdict.ALLOW
    )

    said = program.decide(operation, UNKNOWN_PROFILE)

    meant = decide(msgspec.structs.replace(drawn, rules=anywhere), operation)
    assert (said.verdict, said.by_posture) == (meant.verdict, meant.by_posture)


@settings(max_examples=150, deadline=None)
@given(drawn=RULESETS, workloads=st.lists(WORKLOADS, max_size=3), source=PATHS)
def test_capability_is_looked_at_where_a_workload_has_a_verdict_on_it(drawn, workloads, source):
    placed = place_workloads(workload_scopes(drawn.rules), workloads)
    program = compiled(drawn, placed)
    bits = capability_bits(program.records, program.postures)

    for profile in {HOST_PROFILE, *(program.profiles.number(p.profile) for p in placed.values())}:
        own = next(
            (bits.subjects[s] for s in fallbacks(subject_of(program.class_of(source), profile)) if s in bits.subjects),
            bits.anyone,
        )
        for number, name in enumerate(CAPABILITIES):
            operation = Operation(entity=Entity.CAPABILITY, name=name, source=source)
            if program.decide(operation, profile).verdict is not Verdict.ALLOW:
                assert own >> number & 1
                assert bits.all >> number & 1


def unit(number: int, *labels: str, cgroup: str = "", kind: WorkloadKind = WorkloadKind.UNIT) -> Workload:
    return Workload(kind=kind, name=f"u{number}", labels=frozenset(labels), cgroup=cgroup or f"/s/u{number}")


def block(scope: WorkloadScope, number: int = 0, **more: object) -> Rule:
    target = PathTarget(PathKind.EXACT, f"/etc/secret{number}")
    return Rule(
        **{"id": f"p/{number}", "policy": "p", "entity": Entity.FILE, "verdict": Verdict.BLOCK, "target": target, "scope": scope}
        | more
    )


def test_rules_of_one_workload_give_the_others_no_entries():
    wanted = RuleSet(rules=tuple(block(WorkloadScope(labels=(f"app={n}",)), n) for n in range(100)))
    placed = place_workloads(workload_scopes(wanted.rules), [unit(n, f"app={n}") for n in range(100)])

    program = compiled(wanted, placed)

    assert len(program.profiles.known) == 100
    # The host's, the workload's own and that of what cannot be placed, for each file; and those for all block rules at once.
    assert len(program.records) <= 100 * 3 + 3 * 102 + 2


def test_argument_lists_of_other_workloads_change_nothing_for_this_one():
    listed = {"entity": Entity.PROCESS, "target": PathTarget(PathKind.EXACT, "/bin/x")}
    wanted = RuleSet(
        rules=(
            block(WorkloadScope(labels=("app=a",)), 1, allowed_args=("-a",), **listed),
            block(WorkloadScope(labels=("app=b",)), 2, allowed_args=("-b",), **listed),
        )
    )
    placed = place_workloads(workload_scopes(wanted.rules), [unit(1, "app=a"), unit(2, "app=b")])
    program = compiled(wanted, placed)

    for at, mine, other in (("/s/u1", "-a", "-b"), ("/s/u2", "-b", "-a")):
        profile = program.profiles.number(placed[at].profile)
        starts = [Operation(entity=Entity.PROCESS, path="/bin/x", args=(arg,)) for arg in (mine, other)]
        assert [program.decide(start, profile).verdict for start in starts] == [Verdict.ALLOW, Verdict.BLOCK]


def test_container_without_rules_is_placed_so_that_who_leaves_it_is_known_later():
    workloads = [unit(1, cgroup="/c", kind=WorkloadKind.CONTAINER), unit(2, cgroup="/s/plain")]

    assert place_workloads((WorkloadScope(labels=("a=1",)),), workloads) == {"/c": Placement(frozenset(), sticky=True)}


def test_profiles_past_the_limit_count_as_unknown():
    scopes = [WorkloadScope(labels=(f"l={n}",)) for n in range(12)]
    placed = place_workloads(scopes, [unit(n, *(f"l={b}" for b in range(12) if n >> b & 1)) for n in range(1, 1500)])

    known = Profiles(needed_profiles(placed))

    assert len(known.known) == limits.LSM_PROFILES_MAX
    numbers = [known.number(p.profile) for p in placed.values()]
    assert numbers.count(UNKNOWN_PROFILE) == 1499 - limits.LSM_PROFILES_MAX
    assert HOST_PROFILE not in numbers


def test_workloads_past_the_limit_leave_nothing_unguarded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "LSM_WORKLOADS_MAX", 10)
    scope = WorkloadScope(labels=("a=1",))

    placed = place_workloads([scope], [unit(n, "a=1") for n in range(11)])

    assert len(placed) == 10
    assert Profiles(needed_profiles(placed)).number(placed["/"].profile) == UNKNOWN_PROFILE


def test_program_is_held_against_takeover_only_in_workloads_whose_rules_allow_it_something() -> None:
    scope = WorkloadScope(labels=("a=1",))
    shell, guard = Source("/bin/sh"), Source("/bin/guard")
    rules = tuple(
        Rule(id=id_, policy="p", entity=Entity.FILE, verdict=Verdict.ALLOW, target=PathTarget(PathKind.EXACT, "/a"), **more)
        for id_, more in (("in", {"sources": (shell,), "scope": scope}), ("everywhere", {"sources": (guard,)}))
    )
    program = compile_program(RuleSet(rules=rules), [frozenset({scope})])
    inside = program.profiles.number(frozenset({scope}))
    held = {
        (name, number): next(
            (d.rule.id for s in fallbacks(subject_of(program.class_of(name), number)) if (d := program.traces.get(s)) and d.rule),
            None,
        )
        for name in ("/bin/sh", "/bin/guard", "/bin/other")
        for number in (HOST_PROFILE, UNKNOWN_PROFILE, inside)
    }
    assert held == {
        ("/bin/sh", HOST_PROFILE): None,
        ("/bin/sh", UNKNOWN_PROFILE): None,
        ("/bin/sh", inside): "in",
        **{("/bin/guard", number): "everywhere" for number in (HOST_PROFILE, UNKNOWN_PROFILE, inside)},
        **{("/bin/other", number): None for number in (HOST_PROFILE, UNKNOWN_PROFILE, inside)},
    }
