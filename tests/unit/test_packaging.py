"""The package list, the import directions and the type-checking links hold what the layout promises."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = ("bpf", "cli", "common", "master", "minion", "relay")
ALLOWED = {
    "common": {"common"},
    "bpf": {"bpf", "common"},
    "master": {"master", "common"},
    "minion": {"minion", "common", "bpf"},
    "relay": {"relay", "common", "master", "minion"},
    "cli": {"cli", "common", "master", "minion", "relay"},
}


def _sources(top):
    return sorted((ROOT / top).rglob("*.py"))


def test_every_package_on_disk_is_in_the_wheel():
    """A package that pyproject does not list works in the editable install and is missing from the wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])

    found = {
        "garrison." + ".".join(init.parent.relative_to(ROOT).parts) for top in TOP for init in (ROOT / top).rglob("__init__.py")
    }

    assert listed == found


@pytest.mark.parametrize("top", TOP)
def test_imports_point_one_way(top):
    """`common` imports neither side; master and minion never import each other; only minion.enforcers touches bpf."""
    bad = []
    for source in _sources(top):
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                parts = name.split(".")
                if parts[0] == "garrison" and len(parts) > 1 and parts[1] not in ALLOWED[top]:
                    bad.append(f"{source.relative_to(ROOT)} imports {name}")
    assert bad == []


@pytest.mark.parametrize("top", [name for name in TOP if name != "cli"])
def test_only_the_command_line_prints(top):
    bad = []
    for source in _sources(top):
        calls = (node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call))
        bad += [f"{source}:{c.lineno}" for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert bad == []
