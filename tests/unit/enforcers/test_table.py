"""The responder decides as ``match.decide`` does, and takes no damaged table."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common.errors import CompileError
from garrison.common.policy.glob import GlobError, check_glob
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.rules import (
    Entity,
    Mode,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Rule,
    RuleSet,
    Source,
    Verdict,
)
from garrison.minion.enforcers.fanotify.table import VERDICTS, build_table
from unit.enforcers.decider import Decider

NONE = 0xFFFFFFFF

# Few names, so that rules and operations meet; some that are hard: dots, non-ASCII, glob characters.
names = st.sampled_from(["a", "b", "ab", "etc", "é", ".x", "a b", "[a]", "x*"])
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
directories = st.lists(names, max_size=3).map(lambda parts: "/" + "".join(f"{p}/" for p in parts))


def _compiles(pattern: str) -> bool:
    try:
        check_glob(pattern)
    except GlobError:
        return False
    return True


glob_parts = st.sampled_from(
    ["a", "b", "ab", "é", "/", "/", "*", "**", "/**/", "?", "[ab]", "[!a]", "[^é]", "[a-c]", "{a,b/}", "\\[", "."]
)
globs = st.lists(glob_parts, max_size=7).map(lambda parts: "/" + "".join(parts)).filter(_compiles)
star_globs = st.lists(glob_parts, max_size=5).map(lambda parts: "*" + "".join(parts)).filter(_compiles)

targets = st.one_of(
    paths.map(lambda p: PathTarget(how=PathKind.EXACT, value=p)),
    st.builds(lambda d, r: PathTarget(how=PathKind.DIRECTORY, value=d, recursive=r), directories, st.booleans()),
    st.one_of(globs, star_globs).map(lambda g: PathTarget(how=PathKind.GLOB, value=g)),
    names.map(lambda n: PathTarget(how=PathKind.NAME, value=n)),
)
sources = st.lists(
    st.one_of(
        paths.map(lambda p: Source(value=p)), st.builds(lambda d, r: Source(value=d, recursive=r), directories, st.booleans())
    ),
    max_size=2,
).map(tuple)
args = st.lists(st.sampled_from(["-l", "-a", "x"]), max_size=2).map(tuple)


@st.composite
def rules(draw) -> Rule:
    policy = draw(st.sampled_from(["p", "q"]))
    return Rule(
        id=f"{policy}/{draw(st.integers(0, 999)):03}",
        policy=policy,
        entity=draw(st.sampled_from([Entity.PROCESS, Entity.FILE])),
        verdict=draw(st.sampled_from(list(Verdict))),
        target=draw(targets),
        sources=draw(sources),
        owner_only=draw(st.booleans()),
        read_only=draw(st.booleans()),
        no_tty=draw(st.booleans()),
        allowed_args=draw(st.none() | args),
        mode=draw(st.sampled_from(list(Mode))),
        exempts=draw(st.booleans()),
    )


rule_sets = st.builds(
    lambda rs, file: RuleSet(
        rules=tuple(sorted({r.id: r for r in rs}.values(), key=lambda r: r.id)), postures=Postures(file=file)
    ),
    st.lists(rules(), max_size=12),
    st.sampled_from(list(Posture)),
)
operations = st.builds(
    Operation,
    entity=st.sampled_from([Entity.PROCESS, Entity.FILE]),
    path=st.one_of(paths, directories, st.just("")),
    source=st.one_of(paths, st.just("")),
    write=st.booleans(),
    is_owner=st.booleans(),
    tty=st.booleans(),
    args=st.none() | args,
)


@pytest.fixture(scope="module")
def decider():
    decider = Decider()
    yield decider
    assert decider.close() == 0


def expected(rules: RuleSet, operation: Operation) -> tuple[int, int, bool]:
    decision = decide(rules, operation)
    number = NONE if decision.rule is None else rules.rules.index(decision.rule)
    return VERDICTS.index(decision.verdict), number, decision.by_posture


@settings(max_examples=400, deadline=None)
@given(rule_set=rule_sets, drawn=st.lists(operations, min_size=1, max_size=12))
def test_responder_decides_as_the_policy_language_says(decider, rule_set, drawn):
    assert decider.load(build_table(rule_set, generation=1)) == ""

    for operation in drawn:
        assert decider.decide(operation) == expected(rule_set, operation), operation


@settings(max_examples=400, deadline=None)
@given(
    pattern=st.one_of(globs, star_globs),
    drawn=st.lists(st.text("ab/é.[]x*", max_size=8).map(lambda t: "/" + t), min_size=1, max_size=10),
)
def test_responder_matches_globs_as_the_policy_language_says(decider, pattern, drawn):
    rule_set = RuleSet(rules=(rule("p/1", PathTarget(how=PathKind.GLOB, value=pattern)),))
    assert decider.load(build_table(rule_set, generation=1)) == ""

    for path in drawn:
        operation = Operation(entity=Entity.FILE, path=path)
        assert decider.decide(operation) == expected(rule_set, operation), (pattern, path)


def rule(rule_id: str, target: PathTarget, **fields) -> Rule:
    return Rule(
        id=rule_id,
        policy=rule_id.split("/", maxsplit=1)[0],
        target=target,
        **{"entity": Entity.FILE, "verdict": Verdict.BLOCK, **fields},
    )


def exact(path: str) -> PathTarget:
    return PathTarget(how=PathKind.EXACT, value=path)


def test_rule_on_an_existing_file_holds_under_every_name_of_it(decider):
    rule_set = RuleSet(rules=(rule("p/1", exact("/etc/secret")),))
    table = build_table(rule_set, generation=1, file_id=lambda path: (7, 42) if path == "/etc/secret" else None)

    assert decider.load(table) == ""

    assert decider.decide(Operation(entity=Entity.FILE, path="/tmp/link"), (7, 42))[0] == VERDICTS.index(Verdict.BLOCK)
    assert decider.decide(Operation(entity=Entity.FILE, path="/tmp/link"), (7, 43))[0] == VERDICTS.index(Verdict.ALLOW)
    assert decider.decide(Operation(entity=Entity.PROCESS, path="/tmp/link"), (7, 42))[0] == VERDICTS.index(Verdict.ALLOW)


def test_pattern_made_to_backtrack_is_decided(decider):
    pattern = "/" + "*a" * 40 + "/**/" + "**b" * 40 + "c"
    rule_set = RuleSet(rules=(rule("p/1", PathTarget(how=PathKind.GLOB, value=pattern)),))

    assert decider.load(build_table(rule_set, generation=1)) == ""

    assert decider.decide(Operation(entity=Entity.FILE, path="/" + "a" * 2000 + "/" + "b" * 2000))[0] == VERDICTS.index(
        Verdict.ALLOW
    )


def test_ten_thousand_rules_are_compiled_and_found(decider):
    made = tuple(rule(f"p/{i:05}", exact(f"/srv/{i % 97}/file-{i}")) for i in range(10_000))

    assert decider.load(build_table(RuleSet(rules=made), generation=1)) == ""

    assert decider.decide(Operation(entity=Entity.FILE, path="/srv/8/file-9999".replace("8", str(9999 % 97), 1)))[1] == 9999
    assert decider.decide(Operation(entity=Entity.FILE, path="/srv/1/file-9999"))[1] == NONE


def test_path_that_cannot_be_a_file_name_is_refused_when_compiling():
    for path in ("/a\0b", "/\ud800"):
        with pytest.raises(CompileError):
            build_table(RuleSet(rules=(rule("p/1", exact(path)),)), generation=1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_table_is_refused_or_harmless(decider, data):
    rule_set = RuleSet(
        rules=(
            rule("p/1", exact("/a"), allowed_args=("-l",), sources=(Source(value="/b"), Source(value="/c/", recursive=True))),
            rule("p/2", PathTarget(how=PathKind.GLOB, value="/a/**/[a-c]*")),
            rule("p/3", PathTarget(how=PathKind.DIRECTORY, value="/a/"), verdict=Verdict.ALLOW),
        )
    )
    table = bytearray(build_table(rule_set, generation=1, file_id=lambda _: (1, 2)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(table) // 4 - 1)) * 4
        struct.pack_into("<I", table, at, data.draw(st.one_of(st.integers(0, 40), st.integers(0, NONE))))
    cut = data.draw(st.one_of(st.just(len(table)), st.integers(0, len(table))))

    if decider.load(bytes(table[:cut])) == "":
        for path in ("/a", "/a/b/c", ""):
            decider.decide(Operation(entity=Entity.FILE, path=path, source="/c/x", args=("-l",)))
            decider.decide(Operation(entity=Entity.PROCESS, path=path, source="/b", args=("-l",)))
