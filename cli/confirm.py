"""``garrison confirm``: a person at the node says that the policy on trial is to stay."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from garrison.cli.console import err_console, print_json_line

if TYPE_CHECKING:
    from garrison.minion.arming import DeadmanRecord

__all__ = ["command"]

_EXIT_FAILED: Final = 1
_EXIT_REFUSED: Final = 3
_WAIT_S: Final = 15.0  # the agent looks every half second; a machine may be slow
_DIGEST_MIN_CHARS: Final = 8  # of a digest that is typed in: nobody confirms another one by chance


@click.command(
    "confirm",
    epilog="""\b
Examples:
  garrison confirm                      on the node: the policy on trial stays
  garrison confirm --digest 1a2b3c4d5e  only if it is this one, as `garrison enforcer status` shows it
  garrison confirm --json

\b
A new policy is taken back unless it is confirmed in time: by the master over a new connection, by the
node's own probes where the bundle says so, or by this. To leave safe mode: garrison minion confirm
Exit codes: 0 confirmed, or already so; 1 taken back all the same, or nothing on trial; 2 usage; 3 another on trial.""",
)
@click.option("--digest", metavar="HEX", help="Bundle to confirm, or its first 8 digits or more  [default: what is on trial]")
@click.option(
    "--config", type=click.Path(path_type=Path), help="The minion's settings file  [default: /etc/garrison/minion.toml]"
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="The minion's data  [default: /var/lib/garrison/minion]"
)
@click.option("--runtime-dir", type=click.Path(path_type=Path), help="The minion's sockets and status  [default: /run/garrison]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: confirmed, generation, digest, detail")
@click.pass_context
def command(ctx: click.Context, /, config: Path | None, digest: str | None, *, as_json: bool, **flags: Any) -> None:
    """Confirm the policy that is on trial on this node. Works without a master; the agent must run."""
    from garrison.common.errors import ConfigError
    from garrison.common.settings import load_settings
    from garrison.minion.arming import read_record
    from garrison.minion.config import DEFAULT_CONFIG, MinionSettings

    if os.geteuid() != 0:
        raise ConfigError("this needs root: a policy is root's to confirm", hint="sudo garrison confirm")
    if digest is not None and len(digest) < _DIGEST_MIN_CHARS:
        raise ConfigError(f"--digest {digest} is too short", hint=f"give at least {_DIGEST_MIN_CHARS} digits")
    settings = load_settings(MinionSettings, file=config, default_file=DEFAULT_CONFIG, flags=flags)
    record = read_record(settings.runtime_dir)
    if record is None:
        _finish(ctx, None, "nothing was on trial on this node since its boot", _EXIT_FAILED, as_json=as_json)
        return
    if digest is not None and not record.digest.startswith(digest.lower()):
        what = "on trial" if record.state == "armed" else "the last that was"
        _finish(
            ctx, record, f"{record.digest[:12]} is {what}, not {digest}: nothing is confirmed", _EXIT_REFUSED, as_json=as_json
        )
    elif record.state == "armed":
        _confirm(ctx, settings, record, as_json=as_json)
    elif record.state == "disarmed":
        _finish(ctx, record, f"generation {record.generation} was confirmed before", 0, as_json=as_json)
    else:
        why = f"generation {record.generation} is not on trial any more: {record.why}"
        _finish(ctx, record, why, _EXIT_FAILED, as_json=as_json)


def _confirm(ctx: click.Context, settings: Any, record: DeadmanRecord, *, as_json: bool) -> None:
    from garrison.minion.arming import read_record
    from garrison.minion.confirm_note import leave_confirmation

    leave_confirmation(settings.directory, record.digest)
    deadline = time.monotonic() + _WAIT_S
    now: DeadmanRecord | None = record
    while now is not None and now.digest == record.digest and now.state == "armed" and time.monotonic() < deadline:
        time.sleep(0.1)
        now = read_record(settings.runtime_dir)
    if now is not None and now.digest == record.digest and now.state == "disarmed":
        _finish(ctx, now, f"generation {now.generation} ({now.digest[:12]}) is confirmed", 0, as_json=as_json)
        return
    why = now.why if now is not None and now.why else "the agent did not take it up; see: garrison enforcer status"
    _finish(ctx, record, f"generation {record.generation} is not confirmed: {why}", _EXIT_FAILED, as_json=as_json)


def _finish(ctx: click.Context, record: DeadmanRecord | None, detail: str, code: int, *, as_json: bool) -> None:
    import json

    if as_json:
        about = {"generation": record.generation, "digest": record.digest} if record else {"generation": 0, "digest": ""}
        print_json_line(json.dumps({"confirmed": code == 0, **about, "detail": detail}))
    else:
        err_console().print(detail, markup=False, soft_wrap=True, style="" if code == 0 else "red")
    ctx.exit(code)
