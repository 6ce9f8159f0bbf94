"""Every command has help that a person can use and stands in the documentation; what pages link to and name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from garrison.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its words, groups included."""
    if path:
        yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


ALL = dict(commands(cli))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_command_says_what_it_does_and_explains_every_option(path):
    command = ALL[path]

    assert command.help, "what it does"
    assert not [p.name for p in command.params if isinstance(p, click.Option) and not p.help], "options without help"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_shows_examples(name):
    command = ALL[(name,)]

    assert f"garrison {name}" in f"{command.help}{command.epilog}"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_command_stands_in_the_documentation(path):
    text = "\n".join(page.read_text() for page in PAGES)

    assert f"garrison {' '.join(path)}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in t]

    assert [t for t in targets if t and not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_pages_name_exist(page):
    """Code paths in back quotes are promises: a moved file must move in the documentation too."""
    folders = "common|master|minion|relay|bpf|cli|states|inventory|tests|dev\\.d|docs|vagrant"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text())

    assert [n for n in named if not (ROOT / n).exists()] == []
