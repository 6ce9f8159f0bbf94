"""`./dev bench NAME [--json] [--write PAGE] [SETTING=NUMBER ...]`: runs tests/bench/NAME.py, prints its figures; lists benches.

A bench module has ``run() -> dict[str, float | int | str]``: figures by name, units in the names, and a first docstring line.
Modules that begin with ``_`` are parts of benches.
Settings are parameters of ``run`` with a default: sizes, for a machine that is smaller or a look that is quicker.
If it has ``table(figures) -> str``, that is what ``--write`` puts into a page, between the comments ``bench NAME`` and
``end of bench NAME``. Ratios inside one run are what counts; the absolute figures are this machine's, now.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import json
import platform
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
BENCHES = ROOT / "tests" / "bench"


def available() -> dict[str, str]:
    """Return name → first line of the docstring."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        for path in sorted(BENCHES.glob("[a-z]*.py"))
    }


def load(name: str) -> ModuleType:
    """Return one bench's module."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "dev.d"), str(BENCHES)]
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write(page: Path, name: str, table: str) -> None:
    """Put a bench's table into a page, instead of the one that is there."""
    block = re.compile(rf"(<!-- bench {name}\b[^>]*-->\n).*?(<!-- end of bench {name} -->)", re.DOTALL)
    text, found = block.subn(lambda match: f"{match[1]}{table.rstrip()}\n{match[2]}", page.read_text())
    if found != 1:
        raise SystemExit(f"error: {page} has no block of bench {name}")
    page.write_text(text)


def main() -> int:
    """Parse arguments, run, print."""
    names = available()
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        epilog="\n".join(["benches:", *(f"  {name:12} {line}" for name, line in names.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=sorted(names), metavar="NAME")
    parser.add_argument("settings", nargs="*", metavar="SETTING=NUMBER", help="a parameter of the bench")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the figures into a page of the documentation")
    arguments = parser.parse_args()
    if arguments.name is None:
        parser.print_help()
        return 0
    module = load(arguments.name)
    if arguments.write and not hasattr(module, "table"):
        parser.error(f"bench {arguments.name} makes no table")
    known = inspect.signature(module.run).parameters
    settings = dict(text.partition("=")[::2] for text in arguments.settings)
    if not settings.keys() <= known.keys() or not all(value.isdecimal() for value in settings.values()):
        parser.error(f"settings of bench {arguments.name}: {', '.join(f'{name}=NUMBER' for name in known) or 'none'}")
    figures = {"kernel": platform.release(), **module.run(**{name: int(value) for name, value in settings.items()})}
    if arguments.write:
        write(arguments.write, arguments.name, module.table(figures))
    if arguments.json:
        print(json.dumps(figures))
        return 0
    width = max(len(key) for key in figures)
    for key, value in figures.items():
        print(f"{key:{width}}  {value:,.3f}" if isinstance(value, float) else f"{key:{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
