"""``garrison enforcer``: what the kernel of this node enforces, without asking the agent; and how to take it away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from garrison.cli.console import err_console, out_console, print_json_line
from garrison.cli.init import DEFAULT_KEYS

__all__ = ["command"]

_EXIT_REFUSED: Final = 3


@click.group(
    "enforcer",
    epilog="""\b
Examples:
  garrison enforcer status              what the kernel enforces now, also when the agent is gone; what is on trial
  garrison enforcer status --json
  garrison enforcer release --yes       take it away; the agent enforces again at its next start
  garrison enforcer order edge-1 --keys KEYS --hours 2 > order     on the author's machine, for:
  garrison enforcer release --order order                          where tamper = "block"

\b
To have nothing enforced for a while, also over restarts: touch /etc/garrison/break-glass
Exit codes: 0 done, 1 failed, 3 refused.""",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="The minion's settings file  [default: /etc/garrison/minion.toml]"
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="The minion's data  [default: /var/lib/garrison/minion]"
)
@click.option("--runtime-dir", type=click.Path(path_type=Path), help="The minion's sockets and status  [default: /run/garrison]")
@click.pass_context
def command(ctx: click.Context, /, config: Path | None, **flags: Any) -> None:
    """Show or release what the kernel of this node enforces. Works without the agent and without a master."""
    from garrison.common.settings import load_settings
    from garrison.minion.config import DEFAULT_CONFIG, MinionSettings

    ctx.obj = load_settings(MinionSettings, file=config, default_file=DEFAULT_CONFIG, flags=flags)


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object")
@click.pass_obj
def status_command(settings: Any, *, as_json: bool) -> None:
    """Show which of our programs are attached, by which rules, our firewall table, counters, and what policy is on trial.

    Reads the kernel's pins, the table and what the deadman left; needs root.
    """
    import msgspec

    from garrison.minion.arming import read_record
    from garrison.minion.break_glass import look_for_glass
    from garrison.minion.enforcers.usb.holdings import Holdings, HoldingsFile
    from garrison.minion.kernel_state import read_firewall_state, read_kernel_state

    _need_root("the pins are root's")
    states, firewall, glass = read_kernel_state(), read_firewall_state(), look_for_glass()
    usb = HoldingsFile(settings.runtime_dir).read()
    confirmed, trial = _confirmed(settings), read_record(settings.runtime_dir)
    if as_json:
        document = {
            "enforcing": any(state.programs and state.generation for state in states) or bool(firewall and firewall.chains),
            "versions": msgspec.to_builtins(states),
            "firewall": msgspec.to_builtins(firewall),
            "usb": {"shut": bool(usb.defaults), "refused": sorted(name for name, _ in usb.refused)},
            "break_glass": {"broken": glass.broken, "why": glass.why},
            "confirmed_generation": confirmed,
            "trial": None if trial is None else {**msgspec.to_builtins(trial), "left_s": trial.left_s},
        }
        print_json_line(msgspec.json.encode(document).decode())
        return
    console = out_console()
    if glass.why:
        console.print(f"break-glass  {'BROKEN' if glass.broken else 'whole'}: {glass.why}", markup=False, soft_wrap=True)
    console.print(f"confirmed   {f'generation {confirmed}' if confirmed else 'none yet'}")
    console.print(f"trial       {_trial(trial)}", markup=False, soft_wrap=True)
    if not states and firewall is None:
        console.print("the kernel enforces nothing of garrison's without the agent: nothing is pinned, and there is no table")
    for state in states:
        _print_state(state)
    if usb != Holdings():
        refused = ", ".join(sorted(name for name, _ in usb.refused)) or "none"
        console.print(f"usb         new devices {'wait for the agent' if usb.defaults else 'are let in'}; refused: {refused}")
    if firewall is not None:
        figures = ", ".join(f"{name} {count}" for name, count in firewall.counters.items())
        held = f"{', '.join(firewall.chains)}; {figures}" if firewall.chains else "on no hook: nothing is enforced"
        console.print(f"firewall    table {firewall.table}: {held}", markup=False, soft_wrap=True)


def _confirmed(settings: Any) -> int:
    from garrison.minion.bundles.disk import BundleDisk

    folder = settings.directory / "bundles"
    state = BundleDisk(folder).read_state() if folder.is_dir() else None
    return state.held[0].generation if state is not None and state.held else 0


def _trial(record: Any) -> str:
    if record is None:
        return "none since the boot"
    what = f"generation {record.generation} ({record.digest[:12]})"
    if record.state == "armed":
        return f"{what} armed: taken back in {record.left_s:.0f} s unless it is confirmed; to confirm it here: garrison confirm"
    words = {
        "disarmed": "was confirmed",
        "stood down": "was taken back by the agent",
        "reverted": "was taken back by the deadman",
    }
    return "; ".join(filter(None, (f"{what} {words.get(record.state, record.state)}", record.why, *record.errors)))


def _print_state(state: Any) -> None:
    console = out_console()
    console.print(f"pins        {state.pins}", markup=False)
    console.print(f"programs    {len(state.programs)} attached" if state.programs else "programs    none: nothing is enforced")
    if state.unreadable:
        console.print(f"generation  unknown: {state.unreadable}", markup=False, soft_wrap=True)
        return
    console.print(f"generation  {state.generation or 'none yet'}")
    console.print(f"tamper      {state.tamper or 'not said yet'}")
    console.print("counters    " + ", ".join(f"{name} {count}" for name, count in state.counters.items()))


@command.command("release")
@click.option("--yes", is_flag=True, help="Do not ask")
@click.option("--force", is_flag=True, help="Also while the agent runs; it tells the master and enforces nothing until restarted")
@click.option("--order", type=click.Path(path_type=Path), help="Order signed by the policy's authors, for tamper = block")
@click.pass_obj
@click.pass_context
def release_command(ctx: click.Context, settings: Any, *, yes: bool, force: bool, order: Path | None) -> None:
    """Take away what the kernel enforces without the agent. Recorded: the next start of the agent tells it as tampering.

    The agent enforces again when it starts, and so does the next boot. To keep it from that: touch /etc/garrison/break-glass
    """
    from garrison.common.errors import KernelError
    from garrison.minion import release_note
    from garrison.minion.enforcers.bpf_lsm.enforcer import PINS, BpfLsmEnforcer
    from garrison.minion.enforcers.nftables import NftablesEnforcer
    from garrison.minion.enforcers.usb import UsbEnforcer
    from garrison.minion.enforcers.usb.holdings import Holdings, HoldingsFile
    from garrison.minion.identity import is_held
    from garrison.minion.kernel_state import read_firewall_state, read_kernel_state

    _need_root("enforcement is root's to take away")
    states, devices = read_kernel_state(), HoldingsFile(settings.runtime_dir)
    if not states and read_firewall_state() is None and devices.read() == Holdings():
        err_console().print(
            "nothing to release: nothing is pinned in the kernel, there is no firewall table, and no USB device is kept out"
        )
        return
    agent_runs = is_held(settings.directory)
    if agent_runs and not force:
        err_console().print(
            "[bold red]refused:[/] the agent runs and would go on as if it enforced\n"
            "[cyan]hint:[/] stop it first: systemctl stop garrison-minion; or touch /etc/garrison/break-glass; or --force",
        )
        ctx.exit(_EXIT_REFUSED)
    if order is None and (settings.tamper == "block" or any(state.tamper == "block" for state in states)):
        err_console().print(
            "[bold red]refused:[/] this node protects its enforcement (tamper: block)\n"
            "[cyan]hint:[/] have an author sign: garrison enforcer order NODE; then: garrison enforcer release --order FILE",
        )
        ctx.exit(_EXIT_REFUSED)
    if order is not None and not _is_ordered(settings.directory, order):
        ctx.exit(_EXIT_REFUSED)
    if not yes and click.prompt("type 'release' to have this node enforce nothing", default="", show_default=False) != "release":
        err_console().print("nothing done")
        ctx.exit(_EXIT_REFUSED)
    if settings.directory.is_dir():
        release_note.leave(settings.directory, ordered=order is not None)  # first: what is not recorded is not done
    try:
        BpfLsmEnforcer(lambda _: None).release()
    except OSError as err:
        raise KernelError(err.errno or 0, f"release {PINS}") from err
    NftablesEnforcer(lambda _: None).release()
    UsbEnforcer(lambda _: None, runtime_dir=settings.runtime_dir).release()
    # An agent that runs puts its table back, then finds the note, and takes the table away itself.
    left = [*read_kernel_state(), *filter(None, [None if agent_runs else read_firewall_state()])]
    err_console().print("released: the kernel enforces nothing of garrison's" if not left else f"[red]still there:[/] {left}")
    ctx.exit(1 if left else 0)


def _is_ordered(directory: Path, file: Path) -> bool:
    """Tell whether the file is an order for this node; says why not."""
    from garrison.cli.console import print_error
    from garrison.common import limits
    from garrison.common.errors import BundleError, ConfigError, SignatureError
    from garrison.minion.bundles import BundleStore
    from garrison.minion.identity import Identity

    try:
        with file.open("rb") as opened:
            data = opened.read(limits.METADATA_MAX_BYTES + 1)
    except OSError as err:
        raise ConfigError(f"the order {file} cannot be read: {err.strerror}") from err
    node = Identity.peek(directory)
    if node.join is None:
        raise ConfigError(f"{directory} is of no node that joined a master, so nobody can order it anything")
    try:
        BundleStore(directory / "bundles", node.join, node.name, node.fingerprint).check_release(data)
    except (BundleError, SignatureError) as err:
        print_error(err)
        return False
    return True


@command.command("order")
@click.argument("node")
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    default=DEFAULT_KEYS,
    show_default=True,
    envvar="GARRISON_KEYS",
    help="Author's keys",
)
@click.option("--hours", type=click.IntRange(1, 720), default=24, show_default=True, help="How long the node may use it")
def order_command(node: str, *, keys: Path, hours: int) -> None:
    """Sign an order that lets NODE release its enforcement, where it is protected. Written to standard output."""
    from datetime import UTC, datetime, timedelta

    from garrison.common.names import node_name
    from garrison.common.trust.keyset import AuthorKeys
    from garrison.common.trust.order import build_release_order

    author = AuthorKeys.load(keys)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)
    order = build_release_order(tenant=author.tenant, node=node_name(node), expires=expires, signers=author.signers)
    print_json_line(order.decode())


def _need_root(why: str) -> None:
    from garrison.common.errors import ConfigError

    if os.geteuid() != 0:
        raise ConfigError(f"this needs root: {why}", hint="sudo garrison enforcer …")
