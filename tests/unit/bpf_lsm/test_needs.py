"""What rules need is attached: held to what the kernel's own tables tell the programs to do."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.common.policy.models import PRESETS
from garrison.common.policy.rules import (
    Entity,
    Other,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Protocol,
    Rule,
    RuleSet,
    Source,
    Target,
    Verdict,
    WorkloadScope,
)
from garrison.minion.enforcers.bpf_lsm.layout import lay_out
from garrison.minion.enforcers.bpf_lsm.needs import LASTING, OPTIONAL, needed
from garrison.minion.enforcers.bpf_lsm.objects import attachable_names
from garrison.minion.enforcers.bpf_lsm.program import compile_program

HASHER = PathHasher(bytes(range(KEY_BYTES)))
SOURCES = Path(__file__).parents[3] / "bpf"
TRACE_SET = 0xFFFF_FFFF - 16
WEB = WorkloadScope(labels=("app=web",))

NETWORK = {"guard_socket", "guard_connect", "guard_sendmsg", "guard_bind", "guard_listen", "guard_accept"}
DNS = {"guard_dns_send", "guard_dns_connect", "guard_dns_subflow", "egress_query"}
TRACE = {"guard_takeover", "guard_traced_exec"}
PROC = {"guard_preset_open", "guard_preset_follow", "guard_preset_readlink"}
CODE = {"guard_preset_mmap", "guard_preset_mprotect"}
BY_PRESET = {
    "filelessExec": {"guard_preset_exec"} | CODE,
    "anonymousMapExec": CODE,
    "protectEnv": PROC,
    "protectProc": PROC,
    "exec": {"watch_attach", "watch_fork", "guard_entered"},
}
TARGETS: dict[Entity, Target] = {
    Entity.PROCESS: PathTarget(PathKind.EXACT, "/usr/bin/cat"),
    Entity.FILE: PathTarget(PathKind.EXACT, "/srv/secret"),
    Entity.NETWORK: Protocol("tcp"),
    Entity.CAPABILITY: Other("chown"),
    Entity.DNS: Other("evil.test"),
}


def rule(entity: Entity, verdict: Verdict = Verdict.BLOCK, target: Target | None = None, **more: object) -> Rule:
    return Rule(id=f"p/{entity}", policy="p", entity=entity, verdict=verdict, target=target or TARGETS[entity], **more)  # type: ignore[arg-type]


def preset(name: str) -> Rule:
    return rule(Entity.PRESET, target=Other(name))


def test_rules_on_files_and_programs_need_nothing_but_what_is_always_there() -> None:
    assert needed([]) == needed([rule(Entity.FILE), rule(Entity.PROCESS, Verdict.AUDIT)]) == frozenset()


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("scope", [None, WEB], ids=["host", "workload"])
@pytest.mark.parametrize(
    ("entity", "programs"), [(Entity.NETWORK, NETWORK), (Entity.DNS, DNS), (Entity.CAPABILITY, {"guard_capable"})]
)
def test_one_rule_of_a_kind_needs_all_programs_of_its_kind(
    entity: Entity, programs: set[str], scope: WorkloadScope | None, verdict: Verdict
) -> None:
    scoped = {} if scope is None else {"scope": scope}

    assert needed([rule(Entity.FILE), rule(entity, verdict, **scoped)]) == programs


@pytest.mark.parametrize("name", PRESETS)
def test_preset_needs_the_programs_of_its_hooks_alone(name: str) -> None:
    assert needed([preset(name)]) == BY_PRESET[name]


def test_all_presets_together_need_all_their_programs() -> None:
    assert needed(map(preset, PRESETS)) == frozenset[str]().union(*BY_PRESET.values())


@pytest.mark.parametrize("entity", list(TARGETS))
def test_program_that_is_allowed_something_needs_to_be_kept_from_being_taken_over(entity: Entity) -> None:
    source = (Source("/usr/bin/cat"),)

    assert needed([rule(entity, Verdict.ALLOW, sources=source)]) >= TRACE
    assert not needed([rule(entity, Verdict.ALLOW), rule(entity, Verdict.BLOCK, sources=source)]) & TRACE


@pytest.mark.parametrize("listed", [(), ("-n",)], ids=["none", "one"])
def test_listed_arguments_need_to_be_looked_at_and_go_on_to_be(listed: tuple[str, ...]) -> None:
    assert needed([rule(Entity.PROCESS, allowed_args=listed)]) == {"guard_arguments"} == LASTING


def test_every_optional_program_is_one_that_can_be_attached_and_the_others_are_these() -> None:
    assert attachable_names() >= OPTIONAL
    always = {name for name in attachable_names() if name not in OPTIONAL}
    by_object = {path.stem.partition(".")[0]: set(_programs(path)) & always for path in SOURCES.glob("*.bpf.c")}
    assert {name for name, programs in by_object.items() if programs} >= {
        "enforce_exec",
        "enforce_files",
        "enforce_maps",
        "watch",
        "protect",
    }
    for name in ("enforce_network", "enforce_dns", "enforce_capabilities", "enforce_presets", "enforce_entry", "enforce_trace"):
        assert by_object[name] == set(), "a new program is in none of the groups: say there when it is needed"


def _programs(path: Path) -> list[str]:
    text = path.read_text()
    return re.findall(r'SEC\("[^"]+"\)\s+int (?:BPF_PROG\()?(\w+)', text)


@st.composite
def _rules(draw: st.DrawFn) -> Rule:
    entity = draw(st.sampled_from([*TARGETS, Entity.PRESET, Entity.PRESET]))
    target = Other(draw(st.sampled_from(PRESETS))) if entity is Entity.PRESET else TARGETS[entity]
    return Rule(
        id=f"p/{draw(st.integers(0, 10**9))}",
        policy="p",
        entity=entity,
        verdict=draw(st.sampled_from(list(Verdict))),
        target=target,
        sources=draw(st.sampled_from([(), (Source("/usr/bin/a"),), (Source("/usr/"),)])),
        allowed_args=draw(st.sampled_from([None, None, (), ("-n",)])) if entity is Entity.PROCESS else None,
        exempts=draw(st.booleans()),
        **draw(st.sampled_from([{}, {"scope": WEB}])),
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(_rules(), max_size=5, unique_by=lambda r: r.id), st.sampled_from(list(Posture)), st.booleans())
def test_whatever_the_tables_ask_a_program_to_do_it_is_attached_for(rules: list[Rule], posture: Posture, is_there: bool) -> None:
    postures = Postures(file=posture, network=posture, capability=posture)
    program = compile_program(RuleSet(rules=tuple(rules), postures=postures), [frozenset({WEB})] if is_there else [])
    tables = lay_out(program, 1, hasher=HASHER, inode_of=lambda _: None)
    capabilities, _, _, network, dns, _, presets, _ = struct.unpack("=QQ6I", tables["subject_heads"][bytes(4)])
    has_args = struct.unpack_from("=10I", tables["heads"][bytes(4)])[4]
    asked = [BY_PRESET[name] for number, name in enumerate(PRESETS) if presets >> number & 1]
    asked += [programs for said, programs in ((network, NETWORK), (dns, DNS), (capabilities, {"guard_capable"})) if said]
    asked += [{"guard_arguments"}] if has_args else []
    asked += [TRACE] if any(struct.unpack("=II", key)[0] == TRACE_SET for key in tables["rows"]) else []

    assert needed(program.rules) >= frozenset[str]().union(*asked)
