"""``garrison jobs``: what was run on nodes, and what became of it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

import click

from garrison.cli.client import Api, open_api, segment
from garrison.cli.console import err_console, out_console, print_json_line
from garrison.cli.run import exit_code, outcome, print_output

__all__ = ["command"]

_json_option = click.option("--json", "as_json", is_flag=True, help="The API's answer as one JSON object (docs/master.md)")
_SHORT_ID: Final = 12


@click.group(
    "jobs",
    invoke_without_command=True,
    epilog="""\b
Examples:
  garrison jobs                       the newest jobs
  garrison jobs show 1f0c             output and exit codes; the id may be cut short
  garrison jobs cancel 1f0c

\b
Exit codes of show: as those of `garrison run`.""",
)
@_json_option
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """List, show and cancel remote command runs."""
    if ctx.invoked_subcommand is None:
        _list(as_json=as_json)


@command.command("list", epilog="\b\nExample:\n  garrison jobs list --json")
@_json_option
def list_command(*, as_json: bool) -> None:
    """List the newest jobs."""
    _list(as_json=as_json)


@command.command("show", epilog="\b\nExample:\n  garrison jobs show 1f0c")
@click.argument("job_id", metavar="ID")
@_json_option
@click.pass_context
def show_command(ctx: click.Context, job_id: str, *, as_json: bool) -> None:
    """Show what job ID said and how it ended on each node."""
    api = open_api()
    job = api.get(f"/v1/jobs/{segment(_full_id(api, job_id))}")
    if as_json:
        print_json_line(json.dumps(job))
        return
    if job["ended"]:
        print_output(api, job["id"])
    console = err_console()
    for node in job["nodes"]:
        console.print(f"{node['node']}: {outcome(node)}", soft_wrap=True, markup=False)
    ctx.exit(exit_code(job["nodes"]) if job["ended"] else 0)


@command.command("cancel", epilog="\b\nExample:\n  garrison jobs cancel 1f0c")
@click.argument("job_id", metavar="ID")
@_json_option
def cancel_command(job_id: str, *, as_json: bool) -> None:
    """Stop job ID where it runs and begin it nowhere else."""
    api = open_api()
    before = api.get(f"/v1/jobs/{segment(_full_id(api, job_id))}")
    job = api.post(f"/v1/jobs/{segment(before['id'])}/cancel")
    if as_json:
        print_json_line(json.dumps(job))
        return
    err_console().print(f"{job['id'][:_SHORT_ID]} {'had already ended' if before['ended'] else 'cancelled'}")


def _full_id(api: Api, short: str) -> str:
    found = [job["id"] for job in api.get("/v1/jobs")["jobs"] if job["id"].startswith(short)]
    if len(found) > 1:
        raise click.UsageError(f"{short} begins the ids of {len(found)} jobs; give more of it")
    return found[0] if found else short


def _list(*, as_json: bool) -> None:
    answer = open_api().get("/v1/jobs")
    if as_json:
        print_json_line(json.dumps(answer))
        return
    if not answer["jobs"]:
        err_console().print("no job was run yet")
        return
    _print_table(answer["jobs"])


def _print_table(jobs: list[dict[str, Any]]) -> None:
    import shlex

    from rich.markup import escape
    from rich.table import Table

    table = Table("id", "begun", "nodes", "ok", "failed", "unreachable", "running", "command", box=None)
    for job in jobs:
        nodes = job["nodes"]
        ok = sum(n["status"] == "done" and n["exit_code"] == 0 for n in nodes)
        away = sum(n["status"] == "unreachable" for n in nodes)
        running = sum(n["status"] in {"waiting", "running"} for n in nodes)
        table.add_row(
            job["id"][:_SHORT_ID],
            datetime.fromtimestamp(job["created_at"] / 1e9).astimezone().strftime("%m-%d %H:%M:%S"),
            *(str(count) if count else "-" for count in (len(nodes), ok, len(nodes) - ok - away - running, away, running)),
            escape(shlex.join(job["argv"])[:80]),
        )
    out_console().print(table)
