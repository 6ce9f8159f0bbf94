"""What is watched covers what rules are about, and no more than it must."""

from __future__ import annotations

import msgspec
import pytest

from garrison.common.policy.rules import Entity, PathKind, PathTarget, Rule, Verdict
from garrison.minion.enforcers.fanotify.marks import (
    FAN_OPEN_EXEC_PERM,
    FAN_OPEN_PERM,
    Mount,
    parse_mountinfo,
    plan_marks,
    why_unwatchable,
)

DIRECTORIES = {"/", "/etc", "/srv", "/srv/data", "/usr", "/usr/bin"}
FILES = {"/etc/shadow", "/usr/bin/nc"}


class FewFiles:
    """A small node: / and /srv/data are file systems of their own, /proc and /sys are interfaces."""

    def mounts(self) -> tuple[Mount, ...]:
        return tuple(Mount(*m) for m in (("/", "ext4"), ("/proc", "proc"), ("/sys", "sysfs"), ("/srv/data", "xfs")))

    def is_directory(self, path: str) -> bool | None:
        path = path.rstrip("/") or "/"
        return True if path in DIRECTORIES else False if path in FILES else None

    def file_id(self, path: str) -> None:
        return None


def rule(how: PathKind, value: str, entity=Entity.FILE, verdict=Verdict.BLOCK, *, recursive=False) -> Rule:
    target = PathTarget(how=how, value=value, recursive=recursive)
    return Rule(id=value, policy="p", entity=entity, verdict=verdict, target=target)


def planned(*rules: Rule) -> set[tuple[str, bool, int]]:
    return {(m.path, m.filesystem, m.mask) for m in plan_marks(rules, FewFiles())}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (rule(PathKind.EXACT, "/etc/shadow"), {("/etc", False), ("/etc/shadow", False)}),
        (rule(PathKind.EXACT, "/etc/later"), {("/etc", False)}),
        (rule(PathKind.EXACT, "/opt/later/file"), {("/", True)}),
        (rule(PathKind.DIRECTORY, "/etc/"), {("/etc", False)}),
        (rule(PathKind.DIRECTORY, "/srv/", recursive=True), {("/", True), ("/srv/data", True)}),
        (rule(PathKind.DIRECTORY, "/srv/data/x/", recursive=True), {("/srv/data", True)}),
        (rule(PathKind.GLOB, "/{etc,srv/data}/*.key"), {("/", True), ("/srv/data", True)}),
        (rule(PathKind.NAME, "nc"), {("/", True), ("/srv/data", True)}),
        (rule(PathKind.EXACT, "/etc/shadow", verdict=Verdict.ALLOW), {("/", True), ("/srv/data", True)}),
        (rule(PathKind.EXACT, "/proc/version"), set()),
    ],
    ids=lambda v: v.id if isinstance(v, Rule) else "",
)
def test_marks_are_as_narrow_as_the_rule_lets_them_be(made, expected):
    assert {(path, wide) for path, wide, _ in planned(made)} == expected


def test_rule_that_only_exempts_needs_no_marks_of_its_own():
    made = rule(PathKind.DIRECTORY, "/", verdict=Verdict.ALLOW, recursive=True)

    assert planned(msgspec.structs.replace(made, exempts=True)) == set()


def test_program_rules_do_not_slow_down_opens():
    assert {mask for _, _, mask in planned(rule(PathKind.EXACT, "/usr/bin/nc", Entity.PROCESS))} == {FAN_OPEN_EXEC_PERM}


def test_narrow_marks_that_a_wide_one_covers_are_left_out_but_not_other_kinds():
    marks = planned(
        rule(PathKind.DIRECTORY, "/usr/", recursive=True),
        rule(PathKind.EXACT, "/etc/shadow"),
        rule(PathKind.EXACT, "/usr/bin/nc", Entity.PROCESS),
    )

    assert marks == {
        ("/", True, FAN_OPEN_PERM),
        ("/usr/bin", False, FAN_OPEN_EXEC_PERM),
        ("/usr/bin/nc", False, FAN_OPEN_EXEC_PERM),
    }


def test_target_on_proc_is_unwatchable_with_a_reason():
    assert "proc" in why_unwatchable(rule(PathKind.EXACT, "/proc/version"), FewFiles())
    assert why_unwatchable(rule(PathKind.EXACT, "/etc/shadow"), FewFiles()) == ""


def test_mount_points_with_spaces_are_read():
    line = r"36 35 98:0 / /mnt\040two rw,noatime master:1 - ext3 /dev/root rw"

    assert parse_mountinfo(line) == (Mount("/mnt two", "ext3"),)
