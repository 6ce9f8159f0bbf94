"""``garrison master``: run the master."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["command"]


@click.command(
    "master",
    epilog="""\b
Examples:
  garrison init --advertise tcp://10.0.0.1:4515    once: keys, trust, join file
  garrison master                                  serve (systemd does this)
  garrison master --dir /srv/garrison --listen tcp://10.0.0.1:4515

\b
Settings come from flags, then GARRISON_MASTER_<NAME> in the environment, then /etc/garrison/master.toml, then defaults.
Whoever may open the socket (mode 0600) is an operator.""",
)
@click.option("--config", type=click.Path(path_type=Path), help="Settings file  [default: /etc/garrison/master.toml]")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Keys, trust, store  [default: /var/lib/garrison/master]"
)
@click.option("--listen", help="Where nodes connect  [default: tcp://*:4515]")
@click.option("--socket", type=click.Path(path_type=Path), help="Unix socket of the API  [default: DIR/api.sock]")
@click.option("--log-level", help="debug, info, warning or error  [default: info]")
def command(config: Path | None, **flags: Any) -> None:
    """Run the master until it is told to stop, in the foreground."""
    from garrison.common.settings import load_settings
    from garrison.master.config import DEFAULT_CONFIG, MasterSettings

    settings = load_settings(MasterSettings, file=config, default_file=DEFAULT_CONFIG, flags=flags)
    logging.basicConfig(
        stream=sys.stderr, level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    from garrison.master.app import run_master

    run_master(settings)
