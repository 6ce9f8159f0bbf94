"""Which names a call's path has."""

from __future__ import annotations

import os

import pytest

from garrison.minion.enforcers.syscalls.layout import CallPath
from garrison.minion.enforcers.syscalls.paths import names_of


def plain(base: str, text: str, *, known: bool = True, **options) -> tuple[str, ...]:
    return names_of(CallPath(base, text, known), pid=7, realpath=os.path.normpath, **options)


@pytest.mark.parametrize(
    ("base", "text", "name"),
    [
        ("", "/etc/passwd", "/etc/passwd"),
        ("", "//etc//passwd", "/etc/passwd"),
        ("/home/a", "x", "/home/a/x"),
        ("/home/a", "../b/./x", "/home/b/x"),
        ("/home/a", "x/", "/home/a/x"),
        ("/", "x", "/x"),
        ("/srv/file", "", "/srv/file"),
        ("", "/proc/self/status", "/proc/7/status"),
    ],
)
def test_path_is_made_absolute_and_plain(base, text, name):
    assert plain(base, text) == (name,)


@pytest.mark.parametrize(("base", "text", "known"), [("", "x", True), ("", "", True), ("/home", "x", False)])
def test_path_that_cannot_be_told_is_unknown(base, text, known):
    assert plain(base, text, known=known) == ("",)


@pytest.mark.parametrize("text", ["/proc/self/cwd/x", "/dev/fd/3", "/proc/thread-self/root/etc"])
def test_link_of_a_process_that_is_gone_is_unknown_too(text):
    names = names_of(CallPath("", text, text_known=True), pid=4_194_305, realpath=os.path.normpath)

    assert names[0].startswith("/proc/4194305/")
    assert names[-1] == ""


def test_root_of_the_caller_comes_first():
    assert plain("", "/etc/passwd", root="/srv/jail") == ("/srv/jail/etc/passwd",)


def test_links_of_directories_are_followed_and_the_last_one_where_the_call_follows_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "to").symlink_to("real")
    (tmp_path / "real/link").symlink_to("/etc/passwd")
    path = CallPath("", f"{tmp_path}/to/link", text_known=True)

    assert names_of(path, pid=7, keeps_link=True) == (f"{tmp_path}/to/link", f"{tmp_path}/real/link")
    assert names_of(path, pid=7) == (f"{tmp_path}/to/link", f"{tmp_path}/real/link", "/etc/passwd")
