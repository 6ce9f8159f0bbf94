"""``garrison store``: what the master's store holds, a copy of it while the master runs, what it need not keep any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from garrison.cli.client import as_error, open_api
from garrison.cli.console import err_console, out_console, print_json_line

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["command"]

_json_option = click.option("--json", "as_json", is_flag=True, help="The API's answer as one JSON object (docs/master.md)")
_STEP: Final = 1024


@click.group(
    "store",
    epilog="""\b
Examples:
  garrison store info                    days, events, space, what goes next
  garrison store backup /backup/today    a copy of everything, while the master runs
  garrison store prune --check           what retention would drop now

\b
Restore a backup: stop the master, put the copy's store.db and events/ in place of its own, start it (docs/master.md).""",
)
def command() -> None:
    """Look at, back up and prune the master's store."""


@command.command("info", epilog="\b\nExample:\n  garrison store info --json")
@_json_option
def info_command(*, as_json: bool) -> None:
    """Show what the store holds by lane, and what retention drops next."""
    answer = open_api().get("/v1/store")
    if as_json:
        print_json_line(json.dumps(answer))
        return
    _print_info(answer)


@command.command("backup", epilog="\b\nExample:\n  garrison store backup /backup/2026-01-31")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@_json_option
def backup_command(directory: Path, *, as_json: bool) -> None:
    """Copy the whole store into DIR on the master's machine, while the master runs.

    The copy is one moment of the store, checked and synced. DIR must be empty, or not there yet. Without a store.db in it, the
    copy is not whole. Keys and trust are not in it.
    """
    lines = open_api().post_lines("/v1/store/backup", {"directory": str(directory.absolute())})
    done = _follow(lines)
    if as_json:
        print_json_line(json.dumps(done))
        return
    events, size, took = f"{done['events']:,}", _size(done["bytes"]), f"{done['seconds']:.1f}"
    err_console().print(f"{events} events, {done['files']} files, {size} in {done['directory']}, {took} s", soft_wrap=True)


@command.command("prune", epilog="\b\nExample:\n  garrison store prune --check")
@click.option("--check", is_flag=True, help="Drop nothing, only show what would go")
@_json_option
def prune_command(*, check: bool, as_json: bool) -> None:
    """Drop now what retention_days and events_max_bytes do not keep; the master does it by itself after midnight UTC."""
    answer = open_api().post("/v1/store/prune", {"check": check})
    if as_json:
        print_json_line(json.dumps(answer))
        return
    console = err_console()
    for one in answer["dropped"]:
        verb = "would drop" if check else "dropped"
        text = f"{verb} {one['lane']} of {one['day']}: {one['events']:,} events, {_size(one['bytes'])}: {one['reason']}"
        console.print(text, markup=False, soft_wrap=True)
    if not answer["dropped"]:
        console.print("nothing has to go")


def _follow(lines: Iterable[bytes]) -> dict[str, Any]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = err_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("backup", total=None)
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            if said["type"] == "progress":
                bar.update(task, completed=said["done_bytes"], total=said["total_bytes"])
            elif said["type"] == "error":
                raise as_error(503, line)
            elif said["type"] == "end":
                return said
    raise as_error(503, b"")


def _print_info(info: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("lane", "events", "size", "days", "oldest", "newest", "kept", box=None)
    for lane in info["lanes"]:
        kept = f"{lane['retention_days']} days" if lane["retention_days"] else "for ever"
        figures = f"{lane['events']:,}", _size(lane["bytes"]), str(lane["days"] or "-")
        table.add_row(lane["lane"], *figures, lane["oldest"] or "-", lane["newest"] or "-", kept)
    console = out_console()
    console.print(table)
    cap = f" of at most {_size(info['max_bytes'])}" if info["max_bytes"] else ""
    console.print(
        f"{info['events']:,} events in {_size(info['bytes'])}{cap}; everything else {_size(info['other_bytes'])}; "
        f"in {escape(info['directory'])}",
        soft_wrap=True,
    )
    if (first := info["next"]) is not None:
        when = f"on {first['on']}" if first["on"] > info["today"] else "now" if first["on"] else "now, for its size"
        console.print(f"goes next: {first['lane']} of {first['day']}, {first['events']:,} events, {when}", soft_wrap=True)
    for name in info["damaged"]:
        console.print(f"[bold red]damaged, set aside:[/] {escape(name)}", soft_wrap=True)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _STEP:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} TiB"
