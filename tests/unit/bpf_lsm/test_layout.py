"""Tables as bytes: what is known by inode, what stands above it, and sizes that the C side agrees with."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.common.errors import FrameError
from garrison.common.policy.rules import Entity, Mode, PathKind, PathTarget, Rule, RuleSet, RuleStatus, Source, Verdict
from garrison.minion.enforcers.bpf_lsm.events import TAMPER_BYTES, alert, decode_decision, decode_tamper, tamper_event
from garrison.minion.enforcers.bpf_lsm.layout import TABLES, lay_out
from garrison.minion.enforcers.bpf_lsm.program import compile_program
from garrison.minion.enforcers.bpf_lsm.report import report_rules
from garrison.minion.enforcers.bpf_lsm.residents import CGROUP_RECORD_BYTES

HASHER = PathHasher(bytes(range(KEY_BYTES)))
HEADERS = Path(__file__).parents[3] / "bpf" / "include"
EVENT_NAMES = 1024 + 256


def rule(target: PathTarget, entity: Entity = Entity.FILE, verdict: Verdict = Verdict.BLOCK, **more: object) -> Rule:
    return Rule(id=f"p/{entity}{target.value}", policy="p", entity=entity, verdict=verdict, target=target, **more)  # type: ignore[arg-type]


def tables(*rules: Rule, there: dict[str, tuple[int, int]] | None = None) -> dict[str, dict[bytes, bytes]]:
    program = compile_program(RuleSet(rules=rules))
    return lay_out(program, 1, hasher=HASHER, inode_of=(there or {}).get)  # type: ignore[return-value]


EXACT = PathTarget(PathKind.EXACT, "/srv/a/secret")


def test_file_that_exists_is_known_by_its_inode_with_the_sets_of_its_path() -> None:
    found = tables(rule(EXACT), there={"/srv/a/secret": (7, 42)})

    assert list(found["inodes"]) == [struct.pack("=QI4x", 42, 7)]
    process, file, class_ = struct.unpack("=III", *found["inodes"].values())
    assert (process, file > 0, class_) == (0, True, 0)


def test_program_of_a_source_is_known_by_its_inode_with_its_class() -> None:
    found = tables(rule(EXACT, sources=(Source("/usr/bin/cat"),)), there={"/usr/bin/cat": (7, 9)})

    assert struct.unpack("=III", found["inodes"][struct.pack("=QI4x", 9, 7)])[2] > 1


@pytest.mark.parametrize(
    ("there", "anchor"), [(["/srv/a/", "/srv/"], "/srv/a"), (["/srv/", "/"], "/srv"), (["/"], "/")], ids=["own", "above", "root"]
)
def test_anchor_is_the_deepest_directory_that_exists_on_the_way(there: list[str], anchor: str) -> None:
    found = tables(rule(EXACT), there={path: (7, number) for number, path in enumerate(there, 100)})

    assert found["anchors"] == {struct.pack("=QI4x", 100, 7): struct.pack("=Q", HASHER.path(anchor))}


def test_directories_above_a_refusal_know_of_it_so_that_they_are_not_moved_away() -> None:
    program = compile_program(
        RuleSet(
            rules=(
                rule(EXACT),
                rule(PathTarget(PathKind.GLOB, "/opt/x/*/y")),
                rule(PathTarget(PathKind.EXACT, "/e"), verdict=Verdict.ALLOW),
            )
        )
    )
    below = {part: program.nodes[number].below > 0 for (_, part), number in program.children.items()}

    assert below == {b"srv": True, b"a": True, b"secret": True, b"opt": True, b"x": True, b"e": False}


def test_listed_arguments_are_kept_by_set_and_hash() -> None:
    found = tables(rule(EXACT, Entity.PROCESS, allowed_args=("-l", "x")))

    assert {(length, hash_) for _, length, hash_ in (struct.unpack("=IIQ", key) for key in found["args"])} == {
        (2, HASHER.argument(b"-l")),
        (1, HASHER.argument(b"x")),
    }


def test_table_sizes_are_those_that_the_headers_assert() -> None:
    asserted = dict(re.findall(r"_Static_assert\(sizeof\(struct (\w+)\) == (\d+)", (HEADERS / "rule_tables.h").read_text()))

    asserted |= re.findall(r"_Static_assert\(sizeof\(struct (\w+)\) == (\d+)", (HEADERS / "workloads.h").read_text())

    assert TABLES["cgroups"].value_bytes == int(asserted["placement"])
    assert int(asserted["cgroup_made"]) == CGROUP_RECORD_BYTES
    assert TABLES["heads"].value_bytes == int(asserted["head"])
    assert TABLES["nodes"].value_bytes == int(asserted["node"])
    assert TABLES["records"].value_bytes == int(asserted["record"])


# ---- records --------------------------------------------------------------------------------------------------------------
ACTOR = struct.pack("=QQIIIIIxxxx16s32s", 5, 6, 0, 0, 1, 2, 3, b"comm", b"pts3")


def decision(operation: int = 1, verdict: int = 3) -> bytes:
    names = b"secret\0a\0srv\0".ljust(EVENT_NAMES, b"\0")
    exe = b"cat\0bin\0usr\0".ljust(EVENT_NAMES, b"\0")
    return ACTOR + struct.pack("=IIBBxxIIii4xQQI4x", 1, operation, verdict, 0, 1, 0, 12, 13, 42, 0, 7) + exe + names


def test_decision_is_told_with_actor_path_and_rule() -> None:
    event = alert(decode_decision(decision()), rule(EXACT), "")

    assert (event.operation, event.object, event.verdict, event.result) == ("open", "/srv/a/secret", "block", "EPERM")
    assert event.actor
    assert (event.actor.exe, event.actor.tty, event.actor.uid) == ("/usr/bin/cat", "pts/3", 1)


def test_program_that_was_ended_is_told_as_killed() -> None:
    event = alert(decode_decision(decision(operation=11)), rule(EXACT), "")

    assert (event.operation, event.result) == ("exec", "SIGKILL")


@pytest.mark.parametrize("raw", [b"", decision()[:-1], decision(operation=99), decision(verdict=4)])
def test_record_that_no_program_writes_is_an_error(raw: bytes) -> None:
    with pytest.raises(FrameError):
        decode_decision(raw)


def test_attempt_is_told_with_what_it_was_aimed_at() -> None:
    raw = ACTOR + struct.pack("=IIIiQ", 5, 1, 9, 12, 0) + b"cat\0bin\0usr\0".ljust(EVENT_NAMES, b"\0")
    event = tamper_event(decode_tamper(raw), "")

    assert len(raw) == TAMPER_BYTES
    assert (event.kind, event.operation, event.object, event.result) == ("tamper", "signal 9", "agent", "EPERM")
    with pytest.raises(FrameError):
        decode_tamper(ACTOR + struct.pack("=IIIiQ", 6, 1, 9, 0, 0) + bytes(EVENT_NAMES))


# ---- report ---------------------------------------------------------------------------------------------------------------
def test_report_says_what_becomes_of_each_rule() -> None:
    found = report_rules(
        RuleSet(
            rules=(
                rule(EXACT),
                rule(PathTarget(PathKind.EXACT, "/audit"), verdict=Verdict.AUDIT),
                rule(PathTarget(PathKind.EXACT, "/mode"), mode=Mode.AUDIT),
                rule(PathTarget(PathKind.EXACT, "/args"), Entity.PROCESS, allowed_args=("x",)),
            )
        )
    )

    assert [report.status for report in found] == [
        RuleStatus.ENFORCED,
        RuleStatus.AUDITED,
        RuleStatus.AUDITED,
        RuleStatus.DEGRADED,
    ]
