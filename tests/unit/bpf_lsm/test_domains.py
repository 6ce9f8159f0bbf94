"""Rules on domains and presets in tables say what the rules mean; queries are told as people write names."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.common.errors import CompileError, FrameError
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.models import PRESETS
from garrison.common.policy.rules import (
    Entity,
    Mode,
    Other,
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
from garrison.minion.enforcers.bpf_lsm.domains import number_domains
from garrison.minion.enforcers.bpf_lsm.events import alert
from garrison.minion.enforcers.bpf_lsm.layout import lay_out
from garrison.minion.enforcers.bpf_lsm.program import compile_program
from garrison.minion.enforcers.bpf_lsm.query_events import QUERY_RECORD_BYTES, decode_query
from garrison.minion.enforcers.bpf_lsm.report import report_rules
from garrison.minion.enforcers.bpf_lsm.subjects import preset_bits

HASHER = PathHasher(bytes(range(KEY_BYTES)))
LABELS = ("a", "b", "ab", "test")
NAMES = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4).map(".".join)
DOMAINS = st.tuples(st.sampled_from(["", "*."]), NAMES).map("".join)
ASKED = st.one_of(NAMES, NAMES.map(str.upper), NAMES.map(lambda n: n + "."), st.just("."), st.just(""))
WEB = WorkloadScope(labels=("app=web",))
PROGRAMS = ("/a", "/b", "/b/a", "")
TARGETS = {Entity.DNS: DOMAINS, Entity.PRESET: st.sampled_from(PRESETS)}


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    entity = draw(st.sampled_from([Entity.DNS, Entity.DNS, Entity.PRESET]))
    policy = draw(st.sampled_from(["p", "q"]))
    return Rule(
        id=f"{policy}/{draw(st.integers(0, 10**9))}",
        policy=policy,
        entity=entity,
        verdict=draw(st.sampled_from(list(Verdict))),
        target=Other(draw(TARGETS[entity])),
        sources=tuple(draw(st.lists(st.sampled_from([Source("/a"), Source("/b/"), Source("/b/a")]), max_size=2, unique=True))),
        mode=draw(st.sampled_from(list(Mode))),
        exempts=draw(st.booleans()),
    )


RULESETS = st.builds(
    RuleSet,
    rules=st.lists(rules(), max_size=10, unique_by=lambda r: r.id).map(tuple),
    postures=st.builds(Postures, network=st.sampled_from(list(Posture))),
)
OPERATIONS = st.one_of(
    st.builds(Operation, entity=st.just(Entity.DNS), name=ASKED, source=st.sampled_from(PROGRAMS)),
    st.builds(Operation, entity=st.just(Entity.PRESET), name=st.sampled_from(PRESETS), source=st.sampled_from(PROGRAMS)),
)


def block(name: str, entity: Entity = Entity.DNS, **more: object) -> Rule:
    said = {"id": f"p/{name}", "policy": "p", "entity": entity, "verdict": Verdict.BLOCK, "target": Other(name)}
    return Rule(**{**said, **more})


@settings(max_examples=600, deadline=None)
@given(drawn=RULESETS, operations=st.lists(OPERATIONS, min_size=1, max_size=20))
def test_tables_decide_queries_and_presets_as_the_rules_mean(drawn: RuleSet, operations: list[Operation]) -> None:
    program = compile_program(drawn)

    for operation in operations:
        assert program.decide(operation) == decide(drawn, operation), operation


@settings(max_examples=300, deadline=None)
@given(drawn=RULESETS, name=NAMES)
def test_longest_domain_of_the_laid_out_table_has_the_sets_of_a_name(drawn: RuleSet, name: str) -> None:
    program = compile_program(drawn)
    table = lay_out(program, 1, hasher=HASHER, inode_of=lambda _: None)["domains"]

    # As the kernel does: the hash of the name, then labels are taken off its front.
    labels, sums = name.split("."), [0]
    for label in reversed(labels):
        sums.append(HASHER.below(sums[-1], label.encode()))
    found = 0
    for taken, total in enumerate(reversed(sums[1:])):
        if row := table.get(struct.pack("=Q", total)):
            found = struct.unpack("=II", row)[1 if taken else 0]
            break

    assert found == program.domains.set_of(name)


def test_query_that_cannot_be_read_is_what_every_block_rule_names_and_no_other() -> None:
    drawn = [block("a.test"), block("b.test", verdict=Verdict.AUDIT), block("c.test"), block("d.test", verdict=Verdict.ALLOW)]

    domains = number_domains(drawn)

    assert domains.members[domains.unreadable] == {0, 2}
    assert number_domains(drawn[1:2]).unreadable == 0


def test_ten_thousand_domains_take_one_entry_each() -> None:
    program = compile_program(RuleSet(rules=tuple(block(f"host{n}.test", id=f"p/{n}") for n in range(10_000))))

    assert len(program.domains.sets) == 10_000
    assert len(program.records) <= 10_002
    assert program.decide(Operation(entity=Entity.DNS, name="x.host77.test", source="/a")).rule == block("host77.test", id="p/77")


@pytest.mark.parametrize("target", [Other(""), Protocol("tcp")])
def test_rule_on_domains_that_names_none_is_refused(target: object) -> None:
    with pytest.raises(CompileError, match="p/x"):
        compile_program(RuleSet(rules=(block("x", target=target),)))


def test_preset_that_is_none_is_refused() -> None:
    with pytest.raises(CompileError, match="p/everything"):
        compile_program(RuleSet(rules=(block("everything", Entity.PRESET),)))


def test_kernel_looks_only_at_presets_that_a_rule_asks_for() -> None:
    drawn = [block("protectEnv", Entity.PRESET), block("filelessExec", Entity.PRESET, verdict=Verdict.AUDIT)]

    assert preset_bits(drawn) == 1 << PRESETS.index("protectEnv") | 1 << PRESETS.index("filelessExec")
    assert preset_bits([block("a.test")]) == 0


def test_report_says_what_becomes_of_queries_and_presets() -> None:
    drawn = RuleSet(
        rules=(
            block("a.test"),
            block("b.test", verdict=Verdict.AUDIT),
            block("protectEnv", Entity.PRESET),
            block("protectProc", Entity.PRESET, mode=Mode.AUDIT),
            block("filelessExec", Entity.PRESET, verdict=Verdict.ALLOW),
            block("exec", Entity.PRESET),
            block("exec", Entity.PRESET, scope=WEB),
        )
    )

    assert [report.status for report in report_rules(drawn, (WEB,))] == [
        RuleStatus.DEGRADED,
        RuleStatus.AUDITED,
        RuleStatus.ENFORCED,
        RuleStatus.AUDITED,
        RuleStatus.INERT,
        RuleStatus.INERT,
        RuleStatus.ENFORCED,
    ]


# ---- records --------------------------------------------------------------------------------------------------------------
ACTOR = struct.pack("=QQIIIIIxxxx16s32s", 5, 6, 0, 0, 1, 2, 3, b"dig", b"")
V4 = bytes([127, 0, 0, 53]) + bytes(12)
V6 = bytes.fromhex("20010db8" + "00" * 11 + "01")


def query(name: bytes, *, family: int = 2, protocol: int = 17, address: bytes = V4, verdict: int = 3) -> bytes:
    head = struct.pack("=IiBBxxIIHH16sI4xQ", 1, 12, verdict, 0, 1, 0, family, protocol, address, len(name), 0)
    return ACTOR + head + name.ljust(256, b"\0") + b"dig\0bin\0usr\0".ljust(1280, b"\0")


@pytest.mark.parametrize(
    ("wire", "told"),
    [
        (b"\3WWW\4evil\4test\0", "www.evil.test"),
        (b"\0", "."),
        (b"", "[...]"),
        (b"\3a.b\4test\0", r"a\.b.test"),
        (b"\2\\\n\4test\0", r"\\\010.test"),
    ],
)
def test_query_is_told_with_the_name_that_was_asked_for(wire: bytes, told: str) -> None:
    event = alert(decode_query(query(wire)), block("evil.test"), "")

    assert (event.operation, event.object, event.verdict, event.result) == ("query", told, "block", "EPERM")
    assert event.data["server"] == "udp://127.0.0.53:53"
    assert event.actor
    assert event.actor.exe == "/usr/bin/dig"


def test_server_is_told_with_its_protocol_and_family() -> None:
    assert decode_query(query(b"\0", family=10, protocol=6, address=V6)).server == "tcp://[2001:db8::1]:53"


@pytest.mark.parametrize("raw", [b"", query(b"\0")[:-1], query(b"\0", verdict=4), b"\xff" * QUERY_RECORD_BYTES])
def test_record_that_no_program_writes_is_an_error(raw: bytes) -> None:
    with pytest.raises(FrameError):
        decode_query(raw)
