"""``garrison init``: make the keys of a tenant, its trust roots, and the join file for its nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from garrison.cli.console import out_console

__all__ = ["DEFAULT_DIR", "DEFAULT_KEYS", "command"]

DEFAULT_DIR: Final = Path("/var/lib/garrison/master")
DEFAULT_KEYS: Final = Path("~/.config/garrison/keys")
_PATH: Final = click.Path(path_type=Path)


@click.command(
    "init",
    epilog="""\b
Examples:
  garrison init --advertise tcp://master.example:4515
  garrison init --dir /srv/garrison --keys /media/usb/keys --advertise tcp://192.0.2.1:4515 --tenant plant-7

\b
Makes one key for each role. Keep the keys directory off the master: whoever holds it writes policy for all nodes.
Refuses (exit 2) where keys exist already: nodes trust those.""",
)
@click.option("--dir", "directory", type=_PATH, default=DEFAULT_DIR, show_default=True, help="Master's directory")
@click.option(
    "--keys",
    type=_PATH,
    default=DEFAULT_KEYS,
    show_default=True,
    envvar="GARRISON_KEYS",
    help="Author's directory",
)
@click.option(
    "--advertise", "masters", multiple=True, required=True, help="Where nodes reach the master; repeat for more addresses"
)
@click.option("--tenant", default="default", show_default=True, help="Whose nodes these are; signed into every bundle")
def command(directory: Path, keys: Path, masters: tuple[str, ...], tenant: str) -> None:
    """Make keys, trust roots and the join file of a new master."""
    from rich.markup import escape

    from garrison.common.names import fingerprint
    from garrison.common.trust.keyset import make_keyset

    keys = keys.expanduser()
    join = make_keyset(directory, keys, tenant=tenant, masters=masters)
    console = out_console()
    for line in (
        f"master      {directory}   key {fingerprint(join.server_key.encode())}",
        f"keys        {keys}   author's key and both root keys",
        f"join file   {directory / 'join.json'}",
        "",
        f"Keep {keys} off the master, and a copy of it in a safe place: it signs policy, and it alone can replace keys.",
        "Next:",
        f"  garrison master --dir {directory}",
        f"  copy {directory / 'join.json'} to each node, then there: garrison minion --join join.json",
        "  garrison nodes pending",
    ):
        console.print(escape(line), soft_wrap=True)
