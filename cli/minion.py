"""``garrison minion``: run the agent on this node, or ask the one that runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from garrison.cli.console import err_console, out_console, print_json_line

__all__ = ["command"]

_RULE_STYLE = {"enforced": "green", "audited": "cyan", "degraded": "yellow", "impossible": "red", "inert": "dim"}


@click.group(
    "minion",
    invoke_without_command=True,
    epilog="""\b
Examples:
  garrison minion --join /etc/garrison/join.json     first start: make a key, join that master
  garrison minion                                    every later start (systemd does this)
  garrison minion --backends audit --backends fanotify
  garrison minion key                                what `garrison nodes pending` must show for this node
  garrison minion status --json
  garrison minion workloads                          containers, units and users, and the policies that select them
  garrison minion enforce                            early in the boot: enforce the last good policy and end
  garrison minion confirm                            leave safe mode: try the newest policy again

\b
Settings come from flags, then GARRISON_MINION_<NAME> in the environment, then /etc/garrison/minion.toml, then defaults.
The agent enforces the last good policy before it looks for a master, and goes on without one.""",
)
@click.option("--config", type=click.Path(path_type=Path), help="Settings file  [default: /etc/garrison/minion.toml]")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Keys, bundles, spool  [default: /var/lib/garrison/minion]"
)
@click.option("--runtime-dir", type=click.Path(path_type=Path), help="Sockets and status  [default: /run/garrison]")
@click.option("--join", type=click.Path(path_type=Path), help="Join file from the master; needed once")
@click.option("--node", help="Name of this node, pinned at the first start  [default: the hostname]")
@click.option("--cgroup", type=click.Path(path_type=Path), help="cgroup v2 directory that obeys network rules  [default: all]")
@click.option("--backends", multiple=True, help="Enforcement backend to try; repeat for more  [default: all]")
@click.option("--log-level", help="debug, info, warning or error  [default: info]")
@click.pass_context
def command(ctx: click.Context, /, config: Path | None, **flags: Any) -> None:
    """Run the minion on this node until it is told to stop; without a command, in the foreground."""
    from garrison.common.settings import load_settings
    from garrison.minion.config import DEFAULT_CONFIG, MinionSettings

    flags["backends"] = flags["backends"] or None
    settings = load_settings(MinionSettings, file=config, default_file=DEFAULT_CONFIG, flags=flags)
    ctx.obj = settings
    if ctx.invoked_subcommand is not None:
        return
    from garrison.minion.app import run_minion

    _log_to_stderr(settings.log_level)
    run_minion(settings)


def _log_to_stderr(level: str) -> None:
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=form)


@command.command("enforce")
@click.pass_obj
def enforce_command(settings: Any) -> None:
    """Enforce the last good policy in the kernel and end, for early boot; garrison-enforce.service runs it.

    Only what holds without a process is put in place; the agent takes it over. Always exits with 0 and within a minute: a boot
    must go on. What came of it is on standard error and in the agent's events.
    """
    from garrison.minion.early import enforce_early

    _log_to_stderr(settings.log_level)
    enforce_early(settings)


@command.command("confirm")
@click.pass_obj
def confirm_command(settings: Any) -> None:
    """Leave safe mode: the newest policy of this node is enforced again, within seconds if the agent runs."""
    from garrison.common.errors import ConfigError
    from garrison.minion import boot

    if not settings.directory.is_dir():
        raise ConfigError(f"no minion has run with {settings.directory}", hint="name its directory with --dir")
    log = boot.BootLog(settings.directory)
    was = log.read()
    log.change(boot.confirmed)
    said = "left safe mode: the newest policy is tried again" if was.safe_mode else "this node is not in safe mode"
    err_console().print(said)


@command.command("key")
@click.option("--json", "as_json", is_flag=True, help="One JSON object")
@click.pass_obj
def key_command(settings: Any, *, as_json: bool) -> None:
    """Show this node's name, public key and fingerprint; makes the key when there is none."""
    from garrison.cli._keys import show_key

    show_key("node", settings.directory, settings.wanted_name, as_json=as_json)


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; fields are those of garrison.minion.status.NodeStatus")
@click.pass_context
def status_command(ctx: click.Context, *, as_json: bool) -> None:
    """Show what the agent on this node enforces, watches and still has to send.

    Exits with 1 when the agent is not running, a backend is not healthy, or the newest policy is kept from being enforced.
    """
    import msgspec

    from garrison.minion.status import read_status

    status, running = read_status(ctx.obj.runtime_dir)
    healthy = running and not status.obstacle and all(backend.healthy for backend in status.backends)
    if as_json:
        document = {**msgspec.to_builtins(status), "running": running}
        print_json_line(msgspec.json.encode(document).decode())
        ctx.exit(0 if healthy else 1)
    _print_status(status, running=running)
    ctx.exit(0 if healthy else 1)


def _print_status(status: Any, *, running: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = out_console()
    console.print(f"node        {status.node}   {status.fingerprint}")
    console.print(f"agent       {'[green]running' if running else '[red]not running: this is its last word'}[/]")
    console.print(f"link        {escape(status.link)}")
    stale = "  [yellow]stale: the bundle has expired; enforced all the same[/]" if status.stale else ""
    console.print(f"generation  {status.generation or '-'}   bundle version {status.version or '-'}{stale}")
    if status.trial:
        what = f"generation {status.trial.generation} ({status.trial.bundle[:12]})"
        console.print(f"trial       [yellow]{what} is enforced, and taken back unless it is confirmed[/]", soft_wrap=True)
    if status.obstacle:
        console.print(f"[bold red]NOT AS ASSIGNED[/]  {escape(status.obstacle)}", soft_wrap=True)
    waiting = ", ".join(f"{lane} {count}" for lane, count in status.unacked.items() if count) or "nothing"
    console.print(f"to send     {waiting}   spool {escape(status.spool)}")
    for part in [*status.backends, *status.observers]:
        state = "[green]ok[/]" if part.healthy else "[red]not ok[/]"
        console.print(f"  {part.name:12} {state} {escape(part.detail)}")
    if status.rules:
        table = Table("rule", "status", "backend", "reason", box=None)
        for rule in status.rules:
            style = _RULE_STYLE.get(rule.status, "")
            table.add_row(escape(rule.rule), f"[{style}]{rule.status}[/]", rule.backend or "-", escape(rule.reason) or "-")
        console.print(table)


@command.command(
    "workloads",
    epilog="""\b
Examples:
  garrison minion workloads
  garrison minion workloads --kind unit --all
  garrison minion workloads --json | jq '.workloads[] | select(.policies == [])'

\b
Labels come from container engines, from [X-Garrison] Labels= in unit files, and from garrison itself.""",
)
@click.option("--kind", type=click.Choice(["container", "unit", "user"]), help="Only these  [default: all]")
@click.option("--all", "show_all", is_flag=True, help="Also units that do not run and users who are not logged in")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: workloads (all of them, each with its policies), policies_without"
)
@click.pass_obj
def workloads_command(settings: Any, *, kind: str | None, show_all: bool, as_json: bool) -> None:
    """Show what runs on this node by name, namespace and labels, and which policies select it, as the agent saw it last."""
    import msgspec

    from garrison.minion.workloads.report import read_report, selecting

    report = read_report(settings.runtime_dir)
    rows = [(each, selecting(each, report.scopes)) for each in report.workloads if kind in {None, each.kind}]
    idle = sorted({line.policy for line in report.scopes} - {name for _, policies in rows for name in policies})
    if as_json:
        found = [
            {**msgspec.to_builtins(each), "labels": sorted(each.labels), "policies": list(policies)} for each, policies in rows
        ]
        print_json_line(msgspec.json.encode({"workloads": found, "policies_without": idle}).decode())
        return
    _print_workloads([row for row in rows if show_all or row[0].cgroup_id])
    for name in idle:
        err_console().print(f"note: policy {name} selects nothing here now", markup=False, soft_wrap=True)


def _print_workloads(rows: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("kind", "name", "namespace", "policies", "labels", "cgroup", box=None)
    for each, policies in sorted(rows, key=lambda row: (row[0].kind, row[0].name, row[0].cgroup)):
        said = ", ".join(label for label in sorted(each.labels) if not label.startswith(("garrison/kind=", "garrison/slice=")))
        cells = (each.kind, each.name, each.namespace or "-", ", ".join(policies) or "-", said, each.cgroup or "-")
        table.add_row(*(escape(cell) for cell in cells))
    out_console().print(table)
