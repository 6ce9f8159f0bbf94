"""The tables say what the rules mean: compared with the one function that defines it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common.policy.match import Operation, decide
from garrison.common.policy.rules import Entity, Mode, PathKind, PathTarget, Posture, Postures, Rule, RuleSet, Source, Verdict
from garrison.minion.enforcers.bpf_lsm.program import compile_program

PATHS = st.sampled_from(["/", "/a", "/b", "/a/a", "/a/b", "/b/a", "/a/b/a", "/a/b/b", "/a/b/a/b", "/b/b/b/b/b"])
FILES = PATHS.filter(lambda p: p != "/")
DIRECTORIES = PATHS.map(lambda p: p if p == "/" else f"{p}/")


@st.composite
def targets(draw: st.DrawFn, entity: Entity) -> PathTarget:
    kinds = [PathKind.EXACT, PathKind.DIRECTORY, PathKind.GLOB] + ([PathKind.NAME] if entity is Entity.PROCESS else [])
    match draw(st.sampled_from(kinds)):
        case PathKind.EXACT:
            return PathTarget(PathKind.EXACT, draw(FILES))
        case PathKind.DIRECTORY:
            return PathTarget(PathKind.DIRECTORY, draw(DIRECTORIES), recursive=draw(st.booleans()))
        case PathKind.GLOB:
            return PathTarget(PathKind.GLOB, draw(st.sampled_from(["/a/*", "/**/b", "/*", "/a/**", "/?/a", "/a/b/[ab]"])))
        case _:
            return PathTarget(PathKind.NAME, draw(st.sampled_from(["a", "b"])))


@st.composite
def sources(draw: st.DrawFn) -> Source:
    if draw(st.booleans()):
        return Source(draw(FILES))
    return Source(draw(DIRECTORIES), recursive=draw(st.booleans()))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    entity = draw(st.sampled_from([Entity.PROCESS, Entity.FILE]))
    policy = draw(st.sampled_from(["p", "q"]))
    return Rule(
        id=f"{policy}/{draw(st.integers(0, 10**9))}",
        policy=policy,
        entity=entity,
        verdict=draw(st.sampled_from(list(Verdict))),
        target=draw(targets(entity)),
        sources=tuple(draw(st.lists(sources(), max_size=2, unique=True))),
        owner_only=draw(st.booleans()),
        read_only=entity is Entity.FILE and draw(st.booleans()),
        no_tty=draw(st.booleans()),
        allowed_args=("-m",) if entity is Entity.PROCESS and draw(st.integers(0, 4)) == 0 else None,
        mode=draw(st.sampled_from(list(Mode))),
        exempts=draw(st.booleans()),
    )


POSTURES = st.builds(Postures, file=st.sampled_from(list(Posture)))
RULESETS = st.builds(RuleSet, rules=st.lists(rules(), max_size=8, unique_by=lambda r: r.id).map(tuple), postures=POSTURES)
OPERATIONS = st.builds(
    Operation,
    entity=st.sampled_from([Entity.PROCESS, Entity.FILE]),
    path=st.one_of(FILES, st.just("")),
    write=st.booleans(),
    source=st.one_of(FILES, st.just("")),
    is_owner=st.booleans(),
    tty=st.booleans(),
    args=st.sampled_from([(), ("-m",), ("-m", "x"), None]),
)


@settings(max_examples=600, deadline=None)
@given(drawn=RULESETS, operations=st.lists(OPERATIONS, min_size=1, max_size=20))
def test_tables_decide_as_the_rules_mean(drawn, operations):
    program = compile_program(drawn)

    for operation in operations:
        assert program.decide(operation) == decide(drawn, operation), operation


def test_ten_thousand_rules_give_tables_in_proportion():
    many = RuleSet(
        rules=tuple(
            Rule(
                id=f"p/{n}",
                policy="p",
                entity=Entity.FILE,
                verdict=Verdict.BLOCK,
                target=PathTarget(
                    PathKind.DIRECTORY if n % 3 else PathKind.EXACT, f"/srv/app{n}/data" + "/" * (n % 3 > 0), n % 2 == 0
                ),
                sources=(Source(f"/usr/bin/tool{n}"),) if n % 5 == 0 else (),
            )
            for n in range(10_000)
        )
    )

    program = compile_program(many)

    assert len(program.children) <= 32_001
    assert len(program.records) <= 30_000
    assert decide(many, Operation(entity=Entity.FILE, path="/srv/app4/data/x")) == program.decide(
        Operation(entity=Entity.FILE, path="/srv/app4/data/x")
    )
