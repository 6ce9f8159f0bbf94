"""Printing: data on stdout, everything else on stderr, understandable without colour or width."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["err_console", "out_console", "print_error", "print_json_line"]


def out_console() -> Console:
    """Return the console for data (stdout); honours NO_COLOR and a pipe."""
    from rich.console import Console

    return Console(highlight=False)


def err_console() -> Console:
    """Return the console for everything that is not data (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json_line(text: str) -> None:
    """Write one line of JSON to stdout and flush it, so that a pipe sees it at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_error(error: BaseException) -> None:
    """Write ``error`` and its causes to stderr: condition first, then why, then the remedy."""
    console = err_console()
    console.print(f"[bold red]error:[/] {_plain(error)}", soft_wrap=True)
    cause = error.__cause__
    while cause is not None:
        console.print(f"  [dim]because[/] {_plain(cause)}", soft_wrap=True)
        cause = cause.__cause__
    hint = getattr(error, "hint", "")
    if hint:
        console.print(f"[cyan]hint:[/] {_plain(hint)}", soft_wrap=True)


def _plain(value: object) -> str:
    from rich.markup import escape

    return escape(str(value))
