"""``garrison inventory``: the inventory as garrison reads it, so that a surprise shows before a rollout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from garrison.cli.console import err_console, out_console, print_json_line

if TYPE_CHECKING:
    from garrison.master.inventory import Inventory

__all__ = ["command"]

_inventory_option = click.option(
    "--inventory",
    "path",
    type=click.Path(path_type=Path),
    help="Inventory file or folder  [default: $GARRISON_INVENTORY, ./inventory, /etc/garrison/inventory]",
)


@click.group(
    "inventory",
    epilog="""\b
Examples:
  garrison inventory list                        all hosts with their groups and labels
  garrison inventory list 'edge:!edge-2' --json
  garrison inventory list field --limit @failed.txt
  garrison inventory graph
  garrison inventory host edge-1

\b
Patterns are Ansible's: groups, hosts, globs, ~regular expressions, [0:2], joined by `,` or `:`, with `&` and `!`.""",
)
def command() -> None:
    """Show the inventory as garrison reads it: hosts, groups, labels, and whom a pattern means."""


@command.command("list")
@click.argument("pattern", default="all")
@click.option("--limit", help="Only hosts that this pattern, or the patterns in @FILE, mean too")
@click.option("--json", "as_json", is_flag=True, help='{"source", "hosts": [{"name", "groups", "labels"}]}')
@_inventory_option
def list_command(pattern: str, limit: str | None, path: Path | None, *, as_json: bool) -> None:
    """Show the hosts that PATTERN means, all by default, with groups and labels.

    Exits with 2 when it means none.
    """
    inventory = _read(path)
    hosts = inventory.select(pattern, limit)
    _warn_unmatched(inventory, pattern)
    rows = [{"name": str(host), "groups": list(inventory.groups_of(host)), "labels": inventory.labels(host)} for host in hosts]
    if as_json:
        print_json_line(json.dumps({"source": inventory.source, "hosts": rows}))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("host", "groups", "labels", box=None, title=None)
    for row in rows:
        labels: Any = row["labels"]
        own = " ".join(f"{k}={v}" for k, v in labels.items() if not k.startswith(("group/", "kubearmor.io/")))
        table.add_row(escape(str(row["name"])), escape(" ".join(row["groups"]) or "-"), escape(own or "-"))
    out_console().print(table)


@command.command("graph")
@click.option("--json", "as_json", is_flag=True, help='{"GROUP": {"children": […], "hosts": […]}}')
@_inventory_option
def graph_command(path: Path | None, *, as_json: bool) -> None:
    """Show groups, their children and their hosts as a tree."""
    graph = _read(path).graph()
    if as_json:
        document = {name: {"children": list(children), "hosts": list(hosts)} for name, (children, hosts) in graph.items()}
        print_json_line(json.dumps(document))
        return
    console = out_console()
    for line in _tree("all", graph, ()):
        console.print(line, markup=False, soft_wrap=True)


def _tree(name: str, graph: dict[str, tuple[tuple[str, ...], tuple[str, ...]]], above: tuple[str, ...]) -> Iterator[str]:
    indent = "  " * len(above)
    yield f"{indent}@{name}:"
    children, hosts = graph.get(name, ((), ()))
    for child in children:
        if child in (*above, name):  # an inventory script may say so; Ansible refuses it in files
            yield f"{indent}  @{child}: (again)"
        else:
            yield from _tree(child, graph, (*above, name))
    yield from (f"{indent}  {host}" for host in hosts)


@command.command("host")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help='{"name", "groups", "labels", "vars"}')
@_inventory_option
def host_command(name: str, path: Path | None, *, as_json: bool) -> None:
    """Show one host's groups, labels and variables."""
    inventory = _read(path)
    document = {
        "name": name,
        "groups": list(inventory.groups_of(name)),
        "labels": inventory.labels(name),
        "vars": inventory.vars(name),
    }
    if as_json:
        print_json_line(json.dumps(document))
        return
    console = out_console()
    console.print(f"host    {name}", markup=False)
    console.print(f"groups  {' '.join(inventory.groups_of(name)) or '-'}", markup=False)
    for title, values in (("labels", inventory.labels(name)), ("vars", inventory.vars(name))):
        console.print(title)
        for key, value in sorted(values.items()):
            text = value if isinstance(value, str) else json.dumps(value)
            console.print(f"  {key}: {text}", markup=False, soft_wrap=True)


def _read(path: Path | None) -> Inventory:
    from garrison.master.inventory import read_inventory

    return read_inventory(path)


def _warn_unmatched(inventory: Inventory, pattern: str) -> None:
    from rich.markup import escape

    for term in inventory.unmatched(pattern):
        err_console().print(f"[yellow]warning:[/] {escape(repr(term))} in the pattern matches nothing", soft_wrap=True)
