"""Break-glass: works for root with a typo, for nobody else at all, and ends when it said it would."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from garrison.minion.break_glass import look_for_glass

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def look(tmp_path: Path, text: str | None = None, cmdline: str = "quiet", mode: int = 0o644):
    (tmp_path / "cmdline").write_text(cmdline + "\n")
    if text is not None:
        (tmp_path / "glass").write_text(text)
        (tmp_path / "glass").chmod(mode)
    return look_for_glass(file=tmp_path / "glass", cmdline=tmp_path / "cmdline", now=NOW)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files of whoever runs the tests count as root's."""
    fstat, mine = os.fstat, os.getuid()

    def seen(fd: int) -> os.stat_result:
        fields = list(fstat(fd))
        fields[4] = 0 if fields[4] == mine else fields[4]
        return os.stat_result(fields)

    monkeypatch.setattr("garrison.minion.break_glass.os.fstat", seen)


def test_no_file_and_no_word_is_whole_glass(tmp_path):
    assert look(tmp_path) == look_for_glass(file=tmp_path / "x", cmdline=tmp_path / "cmdline")
    assert not look(tmp_path).broken


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("root=/dev/vda garrison.enforce=0 quiet", True),
        ("garrison.enforce=1", False),
        ("garrison.enforce=00", False),
        ("x=garrison.enforce=0", False),
    ],
)
def test_word_on_the_kernels_command_line(tmp_path, line, broken):
    assert look(tmp_path, cmdline=line).broken is broken


@pytest.mark.parametrize(
    ("text", "broken", "says"),
    [
        ("", True, "until the file is removed"),
        ('reason = "ticket 4711"', True, "ticket 4711"),
        ("sshd is locked out!!", True, "sshd is locked out!!"),
        ("expires = 2026-11-25T12:00:01Z", True, "2026-11-25T12:00:01"),
        ("expires = 2026-11-25T12:00:01", True, "2026-11-25T12:00:01"),
        ("expires = 2026-11-25T13:00:01+02:00", False, "expired"),
        ("expires = 2026-11-25T12:00:00Z", False, "expired"),
        ('expires = "soon"', True, "until the file is removed"),
    ],
)
@pytest.mark.usefixtures("as_root")
def test_file_says_until_when_and_a_typo_breaks_the_glass_all_the_same(tmp_path, text, broken, says):
    glass = look(tmp_path, text)

    assert glass.broken is broken
    assert says in glass.why


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_file_that_others_may_write_does_not_count(tmp_path, mode):
    glass = look(tmp_path, "", mode=mode)

    assert not glass.broken
    assert "others than root" in glass.why


def test_file_of_somebody_else_does_not_count(tmp_path, monkeypatch):
    fstat = os.fstat
    monkeypatch.setattr(
        "garrison.minion.break_glass.os.fstat", lambda fd: os.stat_result([*list(fstat(fd))[:4], 1000, *list(fstat(fd))[5:]])
    )

    glass = look(tmp_path, "")

    assert not glass.broken
    assert "user 1000" in glass.why


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/dev/null"), os.mkfifo, Path.mkdir], ids=["link", "pipe", "folder"])
def test_what_is_no_regular_file_does_not_count(tmp_path, make):
    make(tmp_path / "glass")

    assert not look(tmp_path).broken
    assert "does not count" in look(tmp_path).why
