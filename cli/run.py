"""``garrison run``: a command on nodes, its output as it comes."""

from __future__ import annotations

import base64
import codecs
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import click

from garrison.cli._text import harmless
from garrison.cli.client import Api, open_api, segment
from garrison.cli.console import err_console, print_json_line

__all__ = ["command", "exit_code", "outcome", "print_output"]

_EXIT_FAILED: Final = 1
_EXIT_UNREACHABLE: Final = 4
_EXIT_INTERRUPTED: Final = 130
_STDOUT: Final = 1


@click.command(
    "run",
    epilog="""\b
Examples:
  garrison run all -- uname -r
  garrison run 'edge:!edge-7' -- systemctl restart nginx
  garrison run site_a --forks 5 --timeout 300 -- apt-get -y upgrade
  garrison run edge-1 --user www-data -- sh -c 'ls ~ | head'

\b
PATTERN is a host pattern of Ansible. No shell is involved unless you name one. Every line of output carries its node's name.
Exit codes: 0 all done with exit code 0, 1 some failed, 2 the pattern matches nothing, 4 some unreachable (nothing is queued
for them), 130 interrupted (the command is cancelled).""",
)
@click.argument("pattern")
@click.argument("argv", nargs=-1, required=True, metavar="-- CMD...")
@click.option("--limit", help="Further host pattern that narrows PATTERN")
@click.option(
    "--inventory",
    "-i",
    type=click.Path(path_type=Path),
    help="Inventory  [default: $GARRISON_INVENTORY, ./inventory or /etc/garrison/inventory]",
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 86_400), default=60.0, show_default=True, help="Seconds; then it is stopped"
)
@click.option("--user", default="", help="Run as this user  [default: root]")
@click.option("--cwd", default="/", show_default=True, help="Working directory on the node")
@click.option("--forks", type=click.IntRange(0, 20_000), default=0, help="Nodes at once  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="The job's stream, one JSON object a line (docs/master.md)")
@click.pass_context
def command(ctx: click.Context, /, pattern: str, argv: tuple[str, ...], *, as_json: bool, **how: Any) -> None:
    """Run CMD on the nodes that PATTERN matches."""
    from garrison.master.inventory import read_inventory

    names = [str(name) for name in read_inventory(how["inventory"]).select(pattern, how["limit"])]
    api = open_api()
    body = {
        "nodes": names,
        "argv": list(argv),
        "timeout_s": how["timeout"],
        "user": how["user"],
        "cwd": how["cwd"],
        "forks": how["forks"],
    }
    job = api.post("/v1/jobs", body)
    try:
        results = _show_json(api, job["id"]) if as_json else _show(api, job["id"])
    except KeyboardInterrupt:
        api.post(f"/v1/jobs/{segment(job['id'])}/cancel")
        err_console().print(f"cancelled; see `garrison jobs show {job['id'][:12]}`")
        ctx.exit(_EXIT_INTERRUPTED)
    ctx.exit(exit_code(results))


def print_output(api: Api, job: str) -> None:
    """Print the output of a job, each line with its node's name."""
    printer = _Printer()
    for _ in _results(api, job, printer):
        pass
    printer.flush()


def outcome(node: dict[str, Any]) -> str:
    """Return how a job ended on a node, in words."""
    dropped = f", {node['dropped_bytes']} bytes of output dropped" if node["dropped_bytes"] else ""
    if node["status"] == "done":
        return f"exit code {node['exit_code']}{dropped}"
    return f"{node['status']}{': ' + harmless(node['error']) if node['error'] else ''}{dropped}"


def exit_code(nodes: list[dict[str, Any]]) -> int:
    """Return the exit code for what became of a job on its nodes."""
    if any(n["status"] in {"failed", "lost", "cancelled"} or (n["status"] == "done" and n["exit_code"]) for n in nodes):
        return _EXIT_FAILED
    return _EXIT_UNREACHABLE if any(n["status"] == "unreachable" for n in nodes) else 0


def _show(api: Api, job: str) -> list[dict[str, Any]]:
    printer, console, results = _Printer(), err_console(), list[dict[str, Any]]()
    for result in _results(api, job, printer):
        results.append(result)
        printer.flush(result["node"])
        if result["status"] != "done" or result["exit_code"] or result["dropped_bytes"]:
            console.print(f"{result['node']}: {outcome(result)}", style="red", markup=False, soft_wrap=True)
    return results


def _show_json(api: Api, job: str) -> list[dict[str, Any]]:
    results = []
    for line in api.lines(f"/v1/jobs/{segment(job)}/stream"):
        print_json_line(line.decode().rstrip("\n"))
        said = json.loads(line)
        if said["type"] == "result":
            results.append(said)
    return results


def _results(api: Api, job: str, printer: _Printer) -> Iterator[dict[str, Any]]:
    for line in api.lines(f"/v1/jobs/{segment(job)}/stream"):
        said = json.loads(line)
        if said["type"] == "output":
            printer.take(said["node"], said["stream"], base64.b64decode(said["data"]))
        elif said["type"] == "result":
            yield said


class _Printer:
    """Prints whole lines, each with its node's name: stdout of nodes on stdout, stderr on stderr."""

    def __init__(self) -> None:
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}
        self._open: dict[tuple[str, int], str] = {}

    def take(self, node: str, stream: int, data: bytes) -> None:
        """Take a piece of output and print the lines that are complete."""
        key = (node, stream)
        decoder = self._decoders.setdefault(key, codecs.getincrementaldecoder("utf-8")("replace"))
        *lines, rest = (self._open.get(key, "") + decoder.decode(data)).split("\n")
        self._open[key] = rest
        for line in lines:
            self._print(node, stream, line)

    def flush(self, node: str | None = None) -> None:
        """Print what has no end of line yet, of one node or of all."""
        for key, rest in list(self._open.items()):
            if node in {None, key[0]} and rest:
                self._open[key] = ""
                self._print(*key, rest)

    def _print(self, node: str, stream: int, line: str) -> None:
        target: TextIO = sys.stdout if stream == _STDOUT else sys.stderr
        shown = harmless(line.rstrip("\r"))
        target.write(f"{node}: {shown}\n")
        target.flush()
