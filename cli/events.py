"""``garrison events``: what nodes saw, stored or as it comes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import click

from garrison.cli._text import harmless
from garrison.cli.client import open_api
from garrison.cli.console import out_console, print_json_line

__all__ = ["command"]

_TABLE_LIMIT: Final = 100
_FOLLOW_LIMIT: Final = 10
_STYLE: Final = {"block": "bold red", "audit": "yellow", "allow": "green"}


@click.command(
    "events",
    epilog="""\b
Examples:
  garrison events                                   the newest 100
  garrison events --follow --kind alert             alerts as they come
  garrison events --node edge-1 --since 2h --json   one JSON object a line
  garrison events --exe /usr/bin/curl --since 3d     what one program did
  garrison events --verdict block --policy no-tmp-exec --since 2026-01-31T12:00

\b
Options that can be repeated mean any of them. Times are 10m, 2h, 3d ago, ISO 8601 (UTC without a zone), or nanoseconds,
and are compared with the node's clock. Events are in order of arrival.""",
)
@click.option("--follow", "-f", is_flag=True, help="Go on with new events until interrupted")
@click.option("--kind", multiple=True, help="alert, tamper, exec, exit, error, metric, apply, agent, gap, retention; repeatable")
@click.option("--node", multiple=True, help="Node name; repeatable")
@click.option("--lane", multiple=True, help="alert, shell, error, state, metric; repeatable")
@click.option("--since", help="Not before this time")
@click.option("--until", help="Before this time")
@click.option("--policy", multiple=True, help="Policy that decided; repeatable")
@click.option("--verdict", multiple=True, help="allow, audit, block; repeatable")
@click.option("--exe", multiple=True, help="Path of the program that acted, such as /usr/bin/curl; repeatable")
@click.option(
    "--limit",
    type=click.IntRange(0, 100_000),
    help="The newest so many  [default: 100; 10 before --follow; all with --json]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (docs/master.md)")
def command(*, follow: bool, limit: int | None, as_json: bool, **filters: Any) -> None:
    """Show what nodes saw."""
    if limit is None:
        limit = _FOLLOW_LIMIT if follow else None if as_json else _TABLE_LIMIT
    params = {key: list(value) if isinstance(value, tuple) else value for key, value in filters.items()}
    lines = open_api().lines("/v1/events", **params, limit=limit, follow=1 if follow else None)
    if as_json:
        for line in lines:
            print_json_line(line.decode().rstrip("\n"))
        return
    _print(lines)


def _print(lines: Iterable[bytes]) -> None:
    from rich.markup import escape

    from garrison.common.events import event_from_json

    console = out_console()
    for line in lines:
        e = event_from_json(line)
        when = datetime.fromtimestamp(e.ts / 1e9).astimezone().strftime("%m-%d %H:%M:%S")
        verdict = f" [{_STYLE.get(e.verdict, '')}]{e.verdict}[/]" if e.verdict in _STYLE else ""
        text = harmless(" ".join(part for part in (e.operation, _what(e), f"rule {e.rule}" if e.rule else "") if part))
        console.print(f"{when} {e.node:14} {escape(harmless(e.kind)):7}{verdict} {escape(text)}", soft_wrap=True)


def _what(event: Any) -> str:
    actor = event.actor
    if event.kind in {"exec", "exit"} and actor is not None:
        return " ".join(actor.args) or actor.exe
    if event.object:
        return f"{event.object} by {actor.exe}" if actor is not None and actor.exe else str(event.object)
    return " ".join(f"{key}={value}" for key, value in list(event.data.items())[:6])
