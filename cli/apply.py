"""``garrison apply``: check the states, show what would change, sign, assign, and wait until nodes enforce it.

Exit codes: 0 all applied, or nothing to do; 1 some node failed, or did not confirm in time; 2 the states or the command are
wrong; 3 the author's key is not one that the master knows; 4 a host named with --limit is no accepted node; 6 some nodes are off
line: the assignment waits for them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from garrison.cli.console import err_console, out_console, print_error, print_json_line
from garrison.cli.init import DEFAULT_KEYS

if TYPE_CHECKING:
    from garrison.cli._apply_plan import Plan, Progress
    from garrison.cli.client import Api
    from garrison.common.names import NodeName
    from garrison.common.top import States
    from garrison.common.trust.keyset import AuthorKeys
    from garrison.master.desk import Current

__all__ = ["command"]

EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
_PATH: Final = click.Path(path_type=Path)
_POLL_S: Final = 0.25
_NOTE_MAX: Final = 5  # names in a note; `garrison inventory list` and `garrison nodes` have them all
_WIDTH_MAX: Final = 20  # nodes shown one by one; more are counted


@click.command(
    "apply",
    epilog="""\b
Examples:
  garrison apply --check --diff            what would change, and nothing else
  garrison apply --wait 60                 sign, assign, wait until every node that is on line enforces it
  garrison apply edge --limit edge-1       only one host of a group
  garrison apply --states ./states --keys /media/usb/keys --json

\b
Exit codes: 0 applied or nothing to do, 1 some node failed, 2 wrong states or usage, 3 the master does not know the author's key,
4 a host named with --limit is no accepted node, 6 some nodes are off line and get it when they come back.""",
)
@click.argument("pattern", default="all")
@click.option("--states", type=_PATH, default=Path("states"), show_default=True, help="Folder with top.yml")
@click.option("--keys", type=_PATH, default=DEFAULT_KEYS, show_default=True, envvar="GARRISON_KEYS", help="Author's keys")
@click.option("--inventory", type=_PATH, envvar="GARRISON_INVENTORY", help="Inventory in Ansible's format")
@click.option("--socket", type=_PATH, envvar="GARRISON_SOCKET", help="Socket of the master's API")
@click.option("--limit", help="Host pattern that narrows PATTERN")
@click.option("--check", is_flag=True, help="Show what would change and stop")
@click.option("--diff", is_flag=True, help="Show how policy texts differ from what is assigned")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait so long for nodes to confirm")
@click.option("--valid-days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Stale after so many days")
@click.option("--yes", is_flag=True, help="Do not ask")
@click.option("--json", "as_json", is_flag=True, help="One JSON object")
@click.pass_context
def command(
    ctx: click.Context,
    pattern: str,
    *,
    states: Path,
    keys: Path,
    inventory: Path | None,
    socket: Path | None,
    limit: str | None,
    check: bool,
    diff: bool,
    wait: float | None,
    valid_days: int,
    yes: bool,
    as_json: bool,
) -> None:
    """Sign the states and assign them to the hosts that PATTERN means, all of them by default."""
    from garrison.cli._apply_plan import make_plan
    from garrison.cli.client import open_api
    from garrison.common.errors import SignatureError

    resolved, selected = _resolve(ctx, states, inventory, pattern, limit)
    api = open_api(socket)
    current, before = _current(api), _rows(api)
    plan = make_plan(resolved, selected, current, before)
    _show(plan, resolved, api if diff else None, quiet=as_json)
    if check:
        _finish(ctx, plan, None, as_json=as_json, code=0)
    wanted: dict[NodeName, int] = {
        p.node: current.nodes[p.node].generation for p in plan.nodes if p.empty and current.nodes[p.node].generation
    }
    if plan.changed:
        author = _author(ctx, keys, current)
        _confirm(plan, yes=yes or as_json)
        try:
            wanted |= _send(api, author, resolved, plan, held=current.version, valid=timedelta(days=valid_days))
        except SignatureError as err:
            print_error(err)
            ctx.exit(EXIT_REFUSED)
    found = _wait(api, wanted, before, wait)
    _finish(ctx, plan, found, as_json=as_json, code=_code(plan, found, limit, waited=wait is not None))


def _some(names: Sequence[str]) -> str:
    """Return the first few of ``names`` and how many more there are."""
    more = len(names) - _NOTE_MAX
    return ", ".join(names[:_NOTE_MAX]) + (f" and {more} more" if more > 0 else "")


# ---- before ------------------------------------------------------------------------------------------------------------
def _resolve(
    ctx: click.Context, folder: Path, inventory: Path | None, pattern: str, limit: str | None
) -> tuple[States, Iterable[NodeName]]:
    from garrison.common.top import read_states
    from garrison.master.inventory import read_inventory

    hosts = read_inventory(inventory)
    states, errors = read_states(folder, hosts.select("all"), select=hosts.select, labels=hosts.labels)
    for error in errors:
        print_error(error)
    if errors:
        ctx.exit(EXIT_USAGE)
    for note in states.notes:
        err_console().print(note, markup=False, soft_wrap=True)
    return states, hosts.select(pattern, limit=limit)


def _current(api: Api) -> Current:
    import msgspec

    from garrison.master.desk import Current

    return msgspec.convert(api.get("/v1/bundle"), Current, strict=False)


def _rows(api: Api) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in api.get("/v1/nodes")["nodes"]}


def _author(ctx: click.Context, keys: Path, current: Current) -> AuthorKeys:
    from garrison.common.errors import SignatureError
    from garrison.common.trust.keyset import AuthorKeys

    author = AuthorKeys.load(keys.expanduser())
    known = {signer.public_key.keyid for signer in author.signers} & set(current.authors)
    if author.tenant != current.tenant or len(known) < current.threshold:
        # The master and every node would refuse it too; saying so here spares a version number.
        why = f"signs for tenant {author.tenant}" if author.tenant != current.tenant else "is not one that the master knows"
        hint = f"name the keys directory that `garrison init` made for tenant {current.tenant} with --keys"
        print_error(SignatureError(f"the author's key in {keys} {why}; nothing was assigned", hint=hint))
        ctx.exit(EXIT_REFUSED)
    return author


def _confirm(plan: Plan, *, yes: bool) -> None:
    if not yes and sys.stdin.isatty():
        click.confirm(f"Assign this to {len(plan.changed)} nodes?", abort=True, err=True)


# ---- doing it ----------------------------------------------------------------------------------------------------------
def _send(api: Api, author: AuthorKeys, states: States, plan: Plan, *, held: int, valid: timedelta) -> dict[NodeName, int]:
    import msgspec

    from garrison.common.trust.bundle import build_bundle
    from garrison.master.desk import Accepted, BundleRequest

    bundle = build_bundle(
        states.files,
        states.nodes,
        tenant=author.tenant,
        version=author.claim_version(held),
        expires=datetime.now(UTC) + valid,
        signers=author.signers,
    )
    request = BundleRequest(
        metadata=bundle.metadata,
        files=bundle.files,
        limit=[p.node for p in plan.changed],
        again=[p.node for p in plan.changed if p.again],
    )
    accepted = msgspec.convert(api.post("/v1/bundles", msgspec.msgpack.encode(request)), Accepted)
    return {node: outcome.generation for node, outcome in accepted.nodes.items() if outcome.generation}


def _wait(api: Api, wanted: Mapping[NodeName, int], before: Mapping[str, Mapping[str, Any]], wait_s: float | None) -> Progress:
    from garrison.cli._apply_plan import progress

    deadline = time.monotonic() + (wait_s or 0)
    while True:
        found = progress(wanted, _rows(api), before)
        if not found.waiting or time.monotonic() >= deadline:
            return found
        time.sleep(_POLL_S)


def _code(plan: Plan, found: Progress, limit: str | None, *, waited: bool) -> int:
    from garrison.cli._apply_plan import exit_code

    named = set((limit or "").replace(",", ":").split(":"))
    return exit_code(found, waited=waited, absent_named=[node for node in plan.absent if node in named])


# ---- showing it --------------------------------------------------------------------------------------------------------
def _show(plan: Plan, states: States, api: Api | None, *, quiet: bool) -> None:
    from garrison.cli._apply_plan import diffs

    console = err_console() if quiet else out_console()
    for node in plan.changed[:_WIDTH_MAX]:
        console.print(node.node, markup=False)
        for line in (*(change.text for change in node.changes), *node.others):
            console.print(f"  {line}", markup=False, soft_wrap=True)
    rest = len(plan.changed) - _WIDTH_MAX
    if rest > 0:
        console.print(f"and {rest} more nodes", markup=False)
    unchanged = len(plan.nodes) - len(plan.changed)
    console.print(f"to change: {len(plan.changed)}, to stay as they are: {unchanged}", markup=False)
    if plan.absent:
        err_console().print(f"note: not accepted yet, so left out: {_some(plan.absent)}", markup=False, soft_wrap=True)
    if plan.strangers:
        err_console().print(
            f"note: not in the inventory, so left as they are: {_some(plan.strangers)}", markup=False, soft_wrap=True
        )
    if api is not None:
        for line in diffs(plan, states, lambda digest: str(api.get(f"/v1/blobs/{digest}")["text"])):
            style = {"+": "green", "-": "red", "@": "cyan", "#": "bold"}.get(line[:1], "")
            console.print(line, markup=False, style=style, soft_wrap=True)


def _finish(ctx: click.Context, plan: Plan, found: Progress | None, *, as_json: bool, code: int) -> None:
    if as_json:
        print_json_line(json.dumps(_document(plan, found, code), ensure_ascii=False))
    elif found is not None:
        console = err_console()
        for node, why in found.failed.items():
            console.print(f"{node} {why}", markup=False, style="red", soft_wrap=True)
        for names, text, style in (
            (found.waiting, "assigned, not confirmed yet", "yellow"),
            (found.offline, "off line: assigned, gets it when it comes back", "yellow"),
        ):
            for node in names[:_WIDTH_MAX]:
                console.print(f"{node} {text}", markup=False, style=style)
        counts = {"applied": found.applied, "failed": found.failed, "waiting": found.waiting, "off line": found.offline}
        out_console().print(", ".join(f"{len(nodes)} {word}" for word, nodes in counts.items()), markup=False)
    ctx.exit(code)


def _document(plan: Plan, found: Progress | None, code: int) -> dict[str, Any]:
    lists = {} if found is None else {"applied": found.applied, "waiting": found.waiting, "offline": found.offline}
    return {
        "changed": {p.node: [*(change.text for change in p.changes), *p.others] for p in plan.changed},
        "unchanged": [p.node for p in plan.nodes if p.empty],
        "not_accepted": list(plan.absent),
        "not_in_inventory": list(plan.strangers),
        **lists,
        "failed": {} if found is None else found.failed,
        "exit_code": code,
    }
