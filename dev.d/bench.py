"""`./dev bench NAME [--json]`: runs tests/bench/NAME.py and prints its figures. Without a name: lists what there is.

A bench module has ``run() -> dict[str, float | int | str]``: figures by name, units in the names, and a first docstring line.
Ratios inside one run are what counts; the absolute figures are this machine's, now.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHES = ROOT / "tests" / "bench"


def available() -> dict[str, str]:
    """Return name → first line of the docstring."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        for path in sorted(BENCHES.glob("[a-z]*.py"))
    }


def load(name: str) -> dict[str, float | int | str]:
    """Run one bench and return its figures."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "dev.d")]
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.run()


def main() -> int:
    """Parse arguments, run, print."""
    names = available()
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        epilog="\n".join(["benches:", *(f"  {name:12} {line}" for name, line in names.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=sorted(names), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    if arguments.name is None:
        parser.print_help()
        return 0
    figures = {"kernel": platform.release(), **load(arguments.name)}
    if arguments.json:
        print(json.dumps(figures))
        return 0
    width = max(len(key) for key in figures)
    for key, value in figures.items():
        print(f"{key:{width}}  {value:,.3f}" if isinstance(value, float) else f"{key:{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
