"""``garrison top``: resources of the fleet, the worst node first, live or once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from garrison.cli._usage import Usage, usages
from garrison.cli.console import out_console, print_json_line
from garrison.common.errors import LinkError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["command"]

_WARN_PERCENT = 80.0
_BAD_PERCENT = 95.0
_STATE_STYLE = {"online": "green", "late": "yellow", "offline": "red"}


@click.command(
    "top",
    epilog="""\b
Examples:
  garrison top
  garrison top --once
  garrison top --once --json | jq '.nodes[] | select(.mem_percent > 90) | .name'

\b
Columns: CPU, one-minute load by CPUs, memory not available, fullest disk, pressure (the worst of CPU, memory and
I/O: share of the last ten seconds in which some task waited), traffic, time since boot, age of the sample. `-`: the
node does not say. Nodes that do not answer come first, then the node whose figure is nearest to its limit.""",
)
@click.option("--once", is_flag=True, help="Print one table and end; also what happens when output is not a terminal")
@click.option(
    "--json", "as_json", is_flag=True, help='One JSON object each time: {"nodes": [{"name", "state", "cpu_percent", …}]}'
)
@click.option("--interval", "interval_s", type=click.FloatRange(0.5, 3600), default=2.0, show_default=True, help="Seconds")
def command(interval_s: float, *, once: bool, as_json: bool) -> None:
    """Show CPU, memory, disk, pressure and traffic of every node, live."""
    console = out_console()
    if as_json:
        _print_json()
        while not once:
            time.sleep(interval_s)
            _print_json()
        return
    if once or not console.is_terminal:
        console.print(_table(_ask()))
        return
    from rich.live import Live
    from rich.markup import escape

    rows = _ask()
    with Live(_table(rows), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            caption = ""
            try:
                rows = _ask()
            except LinkError as err:  # the master restarts: the last figures stay, their age grows no more and the line says why
                caption = f"[red]{escape(str(err))}[/]"
            live.update(_table(rows, caption), refresh=True)


def _ask() -> list[Usage]:
    from garrison.cli.client import open_api

    api = open_api()
    return usages(api.get("/v1/nodes")["nodes"], api.get("/v1/resources")["events"])


def _print_json() -> None:
    import msgspec

    print_json_line(msgspec.json.encode({"nodes": _ask()}).decode())


def _table(rows: list[Usage], caption: str = "") -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", caption=caption or None, caption_justify="left")
    table.add_column("node", overflow="fold")
    table.add_column("state", no_wrap=True)
    for title in ("cpu%", "load", "mem%", "swap%", "disk%", "psi%", "rx/s", "tx/s", "up", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        style = _STATE_STYLE.get(row.state, "")
        table.add_row(
            escape(row.name),
            f"[{style}]{row.state}[/]" if style else escape(row.state or "-"),
            _coloured(row.cpu_percent),
            "-" if row.load_per_cpu is None else f"{row.load_per_cpu:.2f}",
            _coloured(row.mem_percent),
            _coloured(row.swap_percent),
            _disk(row),
            _coloured(row.pressure_percent),
            _bytes(row.rx_bytes_per_s),
            _bytes(row.tx_bytes_per_s),
            _duration(row.uptime_s),
            _duration(row.age_s),
        )
    return table


def _coloured(percent: float | None) -> str:
    if percent is None:
        return "-"
    style = "red" if percent >= _BAD_PERCENT else "yellow" if percent >= _WARN_PERCENT else ""
    return f"[{style}]{percent:.0f}[/]" if style else f"{percent:.0f}"


def _disk(row: Usage) -> str:
    # Which file system only matters once it is nearly full.
    shown = _coloured(row.disk_percent)
    return f"{_escaped(row.disk_mount)} {shown}" if (row.disk_percent or 0) >= _WARN_PERCENT else shown


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    for unit in ("B", "K", "M", "G"):
        if value < 1000:  # noqa: PLR2004 - at most three digits before the unit
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.0f}T"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
