"""``garrison relay``: run the relay of a site, or look at the one that runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from garrison.cli.console import out_console, print_json_line

__all__ = ["command"]


@click.group(
    "relay",
    invoke_without_command=True,
    epilog="""\b
Examples:
  garrison relay key                                    what `garrison nodes accept NAME --relay --key` takes on the master
  garrison relay --join /etc/garrison/join.json         first start: join that master
  garrison relay                                        every later start (systemd does this)
  garrison relay join --advertise tcp://10.1.0.1:4515   the join file for the site's nodes
  garrison relay status --json

\b
Settings come from flags, then GARRISON_RELAY_<NAME> in the environment, then /etc/garrison/relay.toml, then defaults.
A site whose uplink is gone goes on: events wait here, assignments and bundles that were here before are served.""",
)
@click.option("--config", type=click.Path(path_type=Path), help="Settings file  [default: /etc/garrison/relay.toml]")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Key, spool, cache  [default: /var/lib/garrison/relay]")
@click.option("--runtime-dir", type=click.Path(path_type=Path), help="Status  [default: /run/garrison-relay]")
@click.option("--join", type=click.Path(path_type=Path), help="Join file from the master; needed once")
@click.option("--name", help="Name of this relay, pinned at the first start  [default: the hostname]")
@click.option("--listen", help="Where nodes connect  [default: tcp://*:4515]")
@click.option("--log-level", help="debug, info, warning or error  [default: info]")
@click.pass_context
def command(ctx: click.Context, /, config: Path | None, **flags: Any) -> None:
    """Run the relay until it is told to stop; without a command, in the foreground."""
    from garrison.common.settings import load_settings
    from garrison.relay.config import DEFAULT_CONFIG, RelaySettings

    settings = load_settings(RelaySettings, file=config, default_file=DEFAULT_CONFIG, flags=flags)
    ctx.obj = settings
    if ctx.invoked_subcommand is not None:
        return
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=settings.log_level.upper(), format=form)
    from garrison.relay.app import run_relay

    run_relay(settings)


@command.command("key")
@click.option("--json", "as_json", is_flag=True, help="One JSON object")
@click.pass_obj
def key_command(settings: Any, *, as_json: bool) -> None:
    """Show this relay's name, public key and fingerprint; makes the key when there is none."""
    from garrison.cli._keys import show_key

    show_key("relay", settings.directory, settings.wanted_name, as_json=as_json)


@command.command("join")
@click.option("--advertise", "addresses", multiple=True, required=True, help="Where nodes reach this relay; repeat for more")
@click.pass_obj
def join_command(settings: Any, addresses: tuple[str, ...]) -> None:
    """Print the join file for the nodes of this site: this relay's address and key, the master's key and roots."""
    import msgspec

    from garrison.common.trust.curve import ensure_curve_key
    from garrison.common.trust.join import load_join

    pinned = settings.directory / "join.json"
    held = load_join(pinned if pinned.exists() or settings.join is None else settings.join)
    public, _ = ensure_curve_key(settings.directory / "curve.key")
    made = msgspec.structs.replace(held, masters=addresses, server_key=public.decode(), master_key=held.master)
    made.check()
    print_json_line(msgspec.json.encode(made).decode())


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; fields are those of garrison.relay.status.RelayStatus")
@click.pass_context
def status_command(ctx: click.Context, *, as_json: bool) -> None:
    """Show this relay's uplink, its nodes, and what waits to go up.

    Exits with 1 when the relay is not running or its disk refuses.
    """
    import msgspec

    from garrison.relay.status import read_status

    status, running = read_status(ctx.obj.runtime_dir)
    if as_json:
        print_json_line(msgspec.json.encode({**msgspec.to_builtins(status), "running": running}).decode())
    else:
        _print_status(status, running=running)
    ctx.exit(0 if running and not status.spool.disk_error else 1)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _print_status(status: Any, *, running: bool) -> None:
    from rich.markup import escape

    console, spool = out_console(), status.spool
    waiting = ", ".join(f"{lane} {count}" for lane, count in spool.pending.items() if count) or "nothing"
    away = [name for name in status.nodes if name not in status.connected]
    rows = {
        "relay": f"{status.name}   {status.fingerprint}",
        "process": "[green]running[/]" if running else "[red]not running: this is its last word[/]",
        "uplink": escape(status.uplink),
        "listens on": escape(status.listen),
        "nodes": f"{len(status.connected)} of {len(status.nodes)} connected" + (f"; away: {', '.join(away)}" if away else ""),
        "to send": f"{waiting} (batches)   the oldest for {_age(spool.oldest_age_s)}   "
        f"{sum(spool.bytes.values()) >> 20} of {spool.cap_bytes >> 20} MiB",
        "lost": f"{spool.dropped} events in {spool.gaps} gaps" if spool.gaps else "nothing",
        "disk": f"[red]{escape(spool.disk_error)}[/]" if spool.disk_error else "ok",
        "refused": f"{status.refused} messages with a wrong signature" if status.refused else "nothing",
        "content": f"{status.fetched_blobs} blobs fetched, {status.served_chunks} pieces served",
    }
    for title, text in rows.items():
        console.print(f"{title:11} {text}", soft_wrap=True)
