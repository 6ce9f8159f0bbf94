"""What the kernel would look up in the rows is what ``match.decide`` says, for every program and every socket."""

import posixpath
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.bpf.pathhash import PathHasher
from garrison.common.errors import CompileError
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.protocols import socket_names
from garrison.common.policy.rules import (
    Entity,
    Mode,
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
from garrison.minion.enforcers.cgroup_net.layout import GROUPS, SOCKET_TYPES, cell_index
from garrison.minion.enforcers.cgroup_net.plan import Plan, make_plan, report_rules
from garrison.minion.enforcers.program_row import RowKind, encode_key

HASHER = PathHasher(bytes(range(24)))
PROGRAMS = ("/usr/bin/a", "/usr/bin/b", "/usr/bin/x/a", "/usr/a", "/opt/b", "/a", "")


def rule(number: int = 0, **fields) -> Rule:
    fields = {"verdict": Verdict.BLOCK, "target": Protocol("tcp"), "policy": "p", **fields}
    return Rule(id=f"{fields['policy']}/{number}", entity=Entity.NETWORK, **fields)


def kernel_row(plan: Plan, program: str) -> list[int]:
    """The lookup of ``cgroup_net.bpf.c``, in Python."""

    def row(kind: RowKind, path: str = "") -> bytes | None:
        return plan.rows.get(encode_key(kind, HASHER.path(path)))

    found = row(RowKind.UNKNOWN) if not program else row(RowKind.PROGRAM, program)
    directory, kind = posixpath.dirname(program), RowKind.DIRECT
    while program and found is None:
        found, kind = row(kind, directory), RowKind.BELOW
        if directory == "/":
            break
        directory = posixpath.dirname(directory)
    found = found or row(RowKind.OTHER)
    assert found is not None
    return list(struct.unpack("=II64I", found)[2:])


def check_against_match(rules: RuleSet) -> None:
    plan = make_plan(rules, 1, HASHER)
    for program in PROGRAMS:
        cells = kernel_row(plan, program)
        for kind in SOCKET_TYPES:
            for group, (protocol, family) in enumerate(GROUPS):
                names = socket_names(family, kind, protocol)
                wanted = decide(rules, Operation(entity=Entity.NETWORK, protocols=names, source=program))
                cell = cells[cell_index(kind, group)]
                verdict = (Verdict.ALLOW, Verdict.AUDIT, Verdict.BLOCK)[cell >> 30]
                assert verdict is wanted.verdict, (program, names)
                if verdict is not Verdict.ALLOW:
                    assert plan.rules[cell & 0x1FFFFFFF] == wanted.rule
                    assert bool(cell & 1 << 29) == wanted.by_posture


sources = st.sampled_from([
    Source("/usr/bin/a"), Source("/usr/bin/b"), Source("/opt/b"), Source("/usr/bin/"), Source("/usr/bin/", recursive=True),
    Source("/usr/", recursive=True), Source("/usr/"), Source("/", recursive=True), Source("/"), Source("/usr/bin/x/"),
])  # fmt: skip
rules = st.builds(
    lambda **fields: fields,
    policy=st.sampled_from(["p", "q"]),
    verdict=st.sampled_from(list(Verdict)),
    target=st.sampled_from([Protocol(n) for n in ("tcp", "udp", "raw", "icmp", "sctp", "stream", "all", "packet")]),
    sources=st.lists(sources, max_size=3, unique=True).map(tuple),
    mode=st.sampled_from(list(Mode)),
)
rule_sets = st.builds(
    lambda many, posture: RuleSet(
        rules=tuple(sorted((rule(i, **fields) for i, fields in enumerate(many)), key=lambda r: r.id)),
        postures=Postures(network=posture),
    ),
    st.lists(rules, max_size=6),
    st.sampled_from(list(Posture)),
)


@settings(max_examples=150, deadline=None)
@given(rule_sets)
def test_every_program_and_socket_gets_what_match_decides(held):
    check_against_match(held)


def test_directory_inside_a_directory_keeps_the_rules_of_both():
    held = RuleSet(
        rules=(
            rule(1, verdict=Verdict.AUDIT, sources=(Source("/usr/", recursive=True),)),
            rule(2, target=Protocol("udp"), sources=(Source("/usr/bin/"),)),
        )
    )

    check_against_match(held)


def test_other_entities_and_workload_rules_make_no_rows():
    held = RuleSet(
        rules=(
            Rule(id="p/1", policy="p", entity=Entity.FILE, verdict=Verdict.BLOCK, target=PathTarget(PathKind.EXACT, "/x")),
            rule(2, scope=WorkloadScope(labels=("app=web",))),
        )
    )

    assert make_plan(held, 1, HASHER).rules == ()
    assert [(r.rule, r.status) for r in report_rules(held)] == [("p/2", "impossible")]


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({}, "enforced", ""),
        ({"mode": Mode.AUDIT}, "audited", ""),
        ({"verdict": Verdict.AUDIT}, "audited", ""),
        ({"verdict": Verdict.ALLOW}, "audited", ""),
        ({"target": Protocol("raw")}, "degraded", "packet"),
        ({"target": Protocol("all")}, "degraded", "IPv4 and IPv6"),
        ({"target": Protocol("packet")}, "impossible", "bpf-lsm"),
        ({"target": Protocol("rdm")}, "impossible", "bpf-lsm"),
        ({"scope": WorkloadScope(labels=("a=b",))}, "impossible", "label"),
        ({"sources": (Source("/d" * 500),)}, "degraded", "deeper"),
    ],
)
def test_report_says_what_this_backend_makes_of_a_rule(fields, status, says):
    (line,) = report_rules(RuleSet(rules=(rule(1, **fields),)))

    assert line.status == status
    assert says in line.reason
    assert bool(line.reason) == (status not in {"enforced", "audited"})


def test_allow_list_is_enforced_when_its_posture_blocks():
    (line,) = report_rules(RuleSet(rules=(rule(1, verdict=Verdict.ALLOW),), postures=Postures(network=Posture.BLOCK)))

    assert line.status == "enforced"


def test_rule_without_a_protocol_is_refused_before_anything_changes():
    held = RuleSet(rules=(rule(1, target=PathTarget(PathKind.EXACT, "/x")),))

    with pytest.raises(CompileError, match="must name a protocol"):
        make_plan(held, 1, HASHER)


def test_ten_thousand_sources_become_one_row_each():
    many = tuple(sorted((rule(i, sources=(Source(f"/opt/p{i}"),)) for i in range(10_000)), key=lambda r: r.id))

    plan = make_plan(RuleSet(rules=many), 1, HASHER)

    assert len(plan.rows) == 10_002
