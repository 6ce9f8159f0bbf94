"""Rules say what the kernel will say, and changes of links are noticed."""

from __future__ import annotations

import threading

import pytest

from garrison.common.policy.glob import glob_matches
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Rule, RuleSet, Source, Verdict
from garrison.minion.enforcers.resolve import Reresolver, look, resolve

LINKS = {"/bin": "/usr/bin", "/sbin": "/usr/sbin", "/odd": "/usr/o*d"}


def realpath(path: str) -> str:
    top, rest = "/" + path.split("/")[1], path.split("/")[2:]
    return "/".join([LINKS.get(top, top), *rest]).rstrip("/") or "/"


def resolved(how: PathKind, value: str, **fields) -> Rule:
    target = PathTarget(how=how, value=value, recursive=fields.pop("recursive", False))
    rule = Rule(id="p/1", policy="p", entity=Entity.PROCESS, verdict=Verdict.BLOCK, target=target, **fields)
    return resolve(RuleSet(rules=(rule,)), realpath).rules.rules[0]


@pytest.mark.parametrize(
    ("how", "value", "becomes"),
    [
        (PathKind.EXACT, "/bin/ls", "/usr/bin/ls"),
        (PathKind.EXACT, "/usr/bin/ls", "/usr/bin/ls"),
        (PathKind.DIRECTORY, "/bin/", "/usr/bin/"),
        (PathKind.DIRECTORY, "/", "/"),
        (PathKind.GLOB, "/bin/*sh", "/usr/bin/*sh"),
        (PathKind.GLOB, "/*/ls", "/*/ls"),
        (PathKind.GLOB, "**/ls", "**/ls"),
        (PathKind.NAME, "bin", "bin"),
    ],
)
def test_targets_become_what_they_lead_to(how, value, becomes):
    assert resolved(how, value).target.value == becomes


def test_every_alternative_of_a_glob_is_resolved():
    pattern = resolved(PathKind.GLOB, "{/bin,/sbin,/etc/a,b}/x*").target.value

    for path in ("/usr/bin/x1", "/usr/sbin/x", "/etc/a/x"):
        assert glob_matches(pattern, path), pattern
    assert not glob_matches(pattern, "/bin/x1")


def test_glob_characters_in_a_resolved_directory_are_literal():
    pattern = resolved(PathKind.GLOB, "/odd/?").target.value

    assert glob_matches(pattern, "/usr/o*d/x")
    assert not glob_matches(pattern, "/usr/ood/x")


def test_sources_are_resolved_and_ids_kept():
    rule = resolved(
        PathKind.EXACT, "/etc/x", sources=(Source(value="/bin/sh"), Source(value="/usr/bin/sh"), Source(value="/bin/"))
    )

    assert rule.sources == (Source(value="/usr/bin/sh"), Source(value="/usr/bin/"))
    assert rule.id == "p/1"


def test_change_of_a_link_is_noticed_and_no_change_is_not(tmp_path):
    link = tmp_path / "link"
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    link.symlink_to("one")
    noticed = threading.Event()
    snapshot = look([str(link)])
    assert look([str(link)]) == snapshot
    watching = Reresolver(lambda: noticed.set() or True, every_s=0.01)

    watching.watch(snapshot)
    link.unlink()
    link.symlink_to("two")

    assert noticed.wait(10)
    watching.close()


def test_file_that_appears_or_is_replaced_counts_as_a_change(tmp_path):
    file = tmp_path / "file"
    nothing = look([str(file)])

    file.touch()
    first = look([str(file)])
    (tmp_path / "other").touch()
    (tmp_path / "other").rename(file)
    second = look([str(file)])

    assert len({str(s.places) for s in (nothing, first, second)}) == 3
