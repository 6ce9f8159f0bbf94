"""Network and capability rules in tables say what the rules mean, and the kernel's half counts names as Python does."""

from __future__ import annotations

import os
import subprocess
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.bpf.pathhash import PathHasher
from garrison.bpf.records import ACTOR_BYTES
from garrison.common.errors import CompileError, FrameError
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.models import CAPABILITIES, PROTOCOLS
from garrison.common.policy.protocols import socket_names
from garrison.common.policy.rules import (
    Entity,
    Mode,
    Other,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Protocol,
    Rule,
    RuleSet,
    RuleStatus,
    Source,
    Verdict,
    WorkloadScope,
)
from garrison.minion.enforcers.bpf_lsm.layout import lay_out
from garrison.minion.enforcers.bpf_lsm.program import compile_program
from garrison.minion.enforcers.bpf_lsm.report import report_rules
from garrison.minion.enforcers.bpf_lsm.subject_events import SUBJECT_RECORD_BYTES, decode_subject
from garrison.minion.enforcers.bpf_lsm.subjects import capability_bits, capability_set, socket_set, subject_sets

FAMILIES, TYPES, PROTOCOL_NUMBERS = range(48), range(16), (0, 1, 2, 6, 17, 33, 58, 132, 136, 255, 256, 262)
SOCKETS = sorted({socket_names(*kind) for kind in product(FAMILIES, TYPES, PROTOCOL_NUMBERS)} - {frozenset()}, key=sorted)
PROGRAMS = st.sampled_from(["/a", "/b", "/a/a", "/a/b", "/b/a/b", "/c/d/e/f", ""])
SOURCES = st.one_of(
    st.sampled_from(["/a", "/b", "/a/a", "/a/b"]).map(Source),
    st.builds(Source, st.sampled_from(["/", "/a/", "/b/", "/b/a/"]), st.booleans()),
)
USED = ("chown", "sys_time", "net_raw", "checkpoint_restore")  # first, some, last: the bitmap's ends
TARGETS = {
    Entity.NETWORK: st.sampled_from(PROTOCOLS).map(Protocol),
    Entity.CAPABILITY: st.sampled_from(USED).map(Other),
    Entity.FILE: st.sampled_from(["/a", "/b/a"]).map(lambda p: PathTarget(PathKind.EXACT, p)),
}


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    entity = draw(st.sampled_from([Entity.NETWORK, Entity.NETWORK, Entity.CAPABILITY, Entity.CAPABILITY, Entity.FILE]))
    policy = draw(st.sampled_from(["p", "q"]))
    return Rule(
        id=f"{policy}/{draw(st.integers(0, 10**9))}",
        policy=policy,
        entity=entity,
        verdict=draw(st.sampled_from(list(Verdict))),
        target=draw(TARGETS[entity]),
        sources=tuple(draw(st.lists(SOURCES, max_size=2, unique=True))),
        no_tty=draw(st.booleans()),
        mode=draw(st.sampled_from(list(Mode))),
        exempts=draw(st.booleans()),
    )


RULESETS = st.builds(
    RuleSet,
    rules=st.lists(rules(), max_size=8, unique_by=lambda r: r.id).map(tuple),
    postures=st.builds(Postures, network=st.sampled_from(list(Posture)), capability=st.sampled_from(list(Posture))),
)
ACTS = {"source": PROGRAMS, "tty": st.booleans()}
OPERATIONS = st.one_of(
    st.builds(Operation, entity=st.just(Entity.NETWORK), protocols=st.sampled_from(SOCKETS), **ACTS),
    st.builds(Operation, entity=st.just(Entity.CAPABILITY), name=st.sampled_from(CAPABILITIES), **ACTS),
    st.builds(Operation, entity=st.just(Entity.FILE), path=st.sampled_from(["/a", "/b/a", "/z"]), **ACTS),
)


def block(name: str, entity: Entity = Entity.CAPABILITY, **more: object) -> Rule:
    target = Other(name) if entity is Entity.CAPABILITY else Protocol(name)
    return Rule(**{"id": f"p/{name}", "policy": "p", "entity": entity, "verdict": Verdict.BLOCK, "target": target, **more})


@settings(max_examples=600, deadline=None)
@given(drawn=RULESETS, operations=st.lists(OPERATIONS, min_size=1, max_size=20))
def test_tables_decide_sockets_and_capabilities_as_the_rules_mean(drawn, operations):
    program = compile_program(drawn)

    for operation in operations:
        assert program.decide(operation) == decide(drawn, operation), operation


@settings(max_examples=300, deadline=None)
@given(drawn=RULESETS, programs=st.lists(PROGRAMS, min_size=1, max_size=4))
def test_capability_is_looked_at_exactly_where_some_condition_leads_to_a_verdict(drawn, programs):
    program = compile_program(drawn)
    bits = capability_bits(program.records, program.postures)

    for source, (number, name) in product(programs, enumerate(CAPABILITIES)):
        operations = [Operation(entity=Entity.CAPABILITY, name=name, source=source, tty=tty) for tty in (False, True)]
        own = bits.subjects.get(program.class_of(source), bits.anyone)
        seen = any(decide(drawn, operation).verdict is not Verdict.ALLOW for operation in operations)
        assert not seen or own >> number & 1, (source, name)
        assert not own & ~bits.all
        # A condition that capabilities do not have may set a bit more; a rule without any must not.
        if not any(rule.no_tty or rule.owner_only for rule in drawn.rules):
            assert seen == bool(own >> number & 1), (source, name)


def test_every_kind_of_socket_has_a_number_of_its_own():
    assert len({socket_set(names) for names in SOCKETS}) == len(SOCKETS)
    everything = [block("all", Entity.NETWORK)]
    assert {number for number, _ in subject_sets(everything)} == {socket_set(names) for names in SOCKETS}


def test_kernel_counts_names_as_python_does(tmp_path: Path):
    source, built = tmp_path / "names.c", tmp_path / "names"
    source.write_text(
        '#include "include/socket_names.h"\n#include <stdio.h>\n#include <stdlib.h>\n'
        'int main(void) { unsigned f, t, p; while (scanf("%u %u %u", &f, &t, &p) == 3) printf("%u\\n", socket_names(f, t, p)); }'
    )
    bpf = Path(__file__).parents[3] / "bpf"
    subprocess.run(["gcc", "-Wall", "-Werror", f"-I{bpf}", "-o", str(built), str(source)], check=True)
    kinds = list(product(FAMILIES, (*TYPES, 1 | os.O_NONBLOCK, 2 | os.O_CLOEXEC), PROTOCOL_NUMBERS))

    said = subprocess.run(
        [built], input="\n".join(f"{f} {t} {p}" for f, t, p in kinds), capture_output=True, text=True, check=True
    )

    bits = [sum(1 << PROTOCOLS.index(name) for name in socket_names(*kind)) for kind in kinds]
    assert [int(line) for line in said.stdout.split()] == bits


def test_rules_of_one_capability_leave_the_others_out_of_the_kernels_way():
    rules_ = RuleSet(rules=(block("sys_time"), block("net_raw", sources=(Source("/bin/ping"),))))
    program = compile_program(rules_)

    bits = capability_bits(program.records, program.postures)

    assert bits.anyone == 1 << CAPABILITIES.index("sys_time")
    assert bits.subjects[program.class_of("/bin/ping")] == bits.anyone | 1 << CAPABILITIES.index("net_raw")
    tables = lay_out(program, 7, hasher=PathHasher(bytes(24)), inode_of=lambda _: None)
    assert len(tables["class_capabilities"]) == 2, "the program, and programs whose path cannot be told"


def test_ten_thousand_sources_give_records_in_proportion():
    many = RuleSet(
        rules=tuple(block("tcp", Entity.NETWORK, id=f"p/{n}", sources=(Source(f"/usr/bin/tool{n}"),)) for n in range(10_000))
    )

    program = compile_program(many)

    kinds = sum("tcp" in names for names in SOCKETS)
    assert len(program.records) <= 1 + kinds * 10_002


@pytest.mark.parametrize("target", [Other("sys_tim"), Protocol("tcp"), PathTarget(PathKind.EXACT, "/a")])
def test_capability_rule_that_names_no_capability_is_refused(target):
    with pytest.raises(CompileError, match="p/x"):
        compile_program(RuleSet(rules=(block("x", target=target),)))


def test_report_has_a_line_for_every_rule():
    drawn = RuleSet(
        rules=(
            block("tcp", Entity.NETWORK),
            block("packet", Entity.NETWORK, mode=Mode.AUDIT),
            block("sys_time", verdict=Verdict.AUDIT),
            block("net_raw", scope=WorkloadScope(labels=("a=b",))),
        )
    )

    said = {report.rule: report.status for report in report_rules(drawn)}

    assert said == {
        "p/tcp": RuleStatus.ENFORCED,
        "p/packet": RuleStatus.AUDITED,
        "p/sys_time": RuleStatus.AUDITED,
        "p/net_raw": RuleStatus.ENFORCED,
    }


@pytest.mark.parametrize("raw", [b"", bytes(SUBJECT_RECORD_BYTES - 1), b"\xff" * SUBJECT_RECORD_BYTES])
def test_record_that_no_program_writes_is_an_error(raw):
    with pytest.raises(FrameError):
        decode_subject(raw)


def test_number_of_a_capability_follows_the_kernels():
    assert [capability_set(name) & 63 for name in ("chown", "net_raw", "sys_time", "checkpoint_restore")] == [0, 13, 25, 40]
    assert ACTOR_BYTES == 88
