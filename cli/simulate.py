"""``garrison simulate``: a fleet of nodes that are not there, to see what a master bears."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from garrison.cli.console import err_console, out_console, print_error, print_json_line
from garrison.common.errors import ConfigError

if TYPE_CHECKING:
    from garrison.cli.client import Api
    from garrison.minion.simulator import NodeKey
    from garrison.minion.simulator.scenario import Outcome

__all__ = ["command", "leftovers", "strangers"]

_DEFAULT_JOIN: Final = Path("/var/lib/garrison/master/join.json")
_VERSION: Final = "simulated"  # what simulated nodes call their agent
_EXIT_REFUSED: Final = 3
_GONE_S: Final = 30.0  # nodes of an earlier run are seen to be gone within this time
_LOOK_S: Final = 0.5


@click.command(
    "simulate",
    epilog="""\b
Examples:
  garrison simulate --nodes 1000
  garrison simulate --nodes 10000 --seconds 60 --storm --json
  garrison simulate --nodes 500 --rate 20 --cut 30 --away 10

\b
Run it beside the master: keys are accepted through its socket, and retired in the end. Their names and events stay.
With nodes at the master that are not simulated it refuses (exit 3) unless --yes is given: it loads that master.""",
)
@click.option("--nodes", "count", type=click.IntRange(1, 20_000), default=100, show_default=True, help="How many")
@click.option("--rate", type=click.FloatRange(0, 10_000), default=1.0, show_default=True, help="Events a second of each node")
@click.option("--event-bytes", type=click.IntRange(120, 8_000), default=200, show_default=True, help="About, of one event")
@click.option("--seconds", "run_s", type=click.FloatRange(0, 86_400), default=10.0, show_default=True, help="After all are there")
@click.option("--cut", "cut_percent", type=click.IntRange(0, 100), default=0, help="Then drop so many percent of the connections")
@click.option("--storm", is_flag=True, help="Then drop all; all nodes come back in the same instant")
@click.option(
    "--away", "away_s", type=click.FloatRange(0, 86_400), default=0.0, help="Dropped nodes come back after so many seconds"
)
@click.option(
    "--patience", "patience_s", type=click.FloatRange(1, 86_400), default=300.0, show_default=True, help="Longest wait for all"
)
@click.option("--processes", type=click.IntRange(1, 64), default=2, show_default=True, help="At least; more when files are short")
@click.option("--prefix", default="sim-", show_default=True, help="Of the nodes' names")
@click.option("--join", type=click.Path(path_type=Path), default=_DEFAULT_JOIN, show_default=True, help="The master's join file")
@click.option("--keep", is_flag=True, help="Leave the nodes accepted")
@click.option("--yes", is_flag=True, help="Also on a master that has other nodes")
@click.option("--json", "as_json", is_flag=True, help="One JSON object (docs/reliability.md)")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    count: int,
    rate: float,
    event_bytes: int,
    run_s: float,
    cut_percent: int,
    storm: bool,
    away_s: float,
    patience_s: float,
    processes: int,
    prefix: str,
    join: Path,
    keep: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Simulate nodes: real connections, keys and frames, no agents. Prints what the master made of them."""
    from garrison.cli.client import open_api
    from garrison.common.trust.join import load_join
    from garrison.minion.simulator import FleetPlan, SimulatedFleet, make_keys
    from garrison.minion.simulator.scenario import Scenario, run_scenario

    api, joined = open_api(), load_join(join)
    others = strangers(_rows(api), prefix)
    if others and not yes:
        print_error(
            ConfigError(
                f"this master has {len(others)} nodes that are not simulated, such as {others[0]}; nothing was done",
                hint="simulate against a master of its own, or say --yes: it is put under load, and keeps the events",
            )
        )
        ctx.exit(_EXIT_REFUSED)
    console = err_console()
    plan = FleetPlan(
        endpoint=joined.masters[0],
        server_key=joined.server_key.encode(),
        rate=rate,
        event_bytes=event_bytes,
        processes=processes,
    )
    scenario = Scenario(run_s=run_s, cut_share=cut_percent / 100, storm=storm, away_s=away_s, patience_s=patience_s)
    keys = make_keys(prefix, count)
    with _accepted(api, keys, prefix, keep=keep), SimulatedFleet(plan, keys) as fleet:
        outcome = run_scenario(fleet, scenario, lambda text: console.print(text, markup=False, soft_wrap=True))
    _show(outcome, as_json=as_json)


def strangers(rows: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    """Return the names of nodes that no simulation made.

    Args:
        rows: Nodes as the API shows them.
        prefix: Of simulated nodes' names. One that has it and ever ran an agent is a stranger all the same.
    """
    simulated = {row["name"] for row in rows if row["name"].startswith(prefix) and row["version"] in {"", _VERSION}}
    return [row["name"] for row in rows if row["state"] != "retired" and row["name"] not in simulated]


def leftovers(rows: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    """Return simulated nodes that an earlier run left accepted.

    Raises:
        ConfigError: They are connected: that run goes on.
    """
    strange = set(strangers(rows, prefix))
    left = [row for row in rows if row["name"].startswith(prefix) and row["name"] not in strange and row["state"] != "retired"]
    online = [row["name"] for row in left if row["state"] == "online"]
    if online:
        raise ConfigError(
            f"{len(online)} simulated nodes such as {online[0]} are connected already",
            hint="end that simulation, or choose another --prefix",
        )
    return [row["name"] for row in left]


def _rows(api: Api) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = api.get("/v1/nodes")["nodes"]
    return rows


def _left(api: Api, prefix: str) -> list[str]:
    # A master takes a while to see that a connection is gone.
    deadline = time.monotonic() + _GONE_S
    while True:
        try:
            return leftovers(_rows(api), prefix)
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)


@contextmanager
def _accepted(api: Api, keys: Sequence[NodeKey], prefix: str, *, keep: bool) -> Iterator[None]:
    old = _left(api, prefix)
    if old:
        api.post("/v1/nodes/retire", {"nodes": old})
    api.post("/v1/nodes/accept", {"nodes": {key.name: key.public.decode() for key in keys}})
    try:
        yield
    finally:
        if not keep:
            api.post("/v1/nodes/retire", {"nodes": [key.name for key in keys]})


def _show(outcome: Outcome, *, as_json: bool) -> None:
    import msgspec

    facts = msgspec.to_builtins(outcome)
    if as_json:
        print_json_line(json.dumps(facts))
        return
    console = out_console()
    for name, value in facts.items():
        shown = "-" if value is None or value == {} else f"{value:,.1f}" if isinstance(value, float) else str(value)
        console.print(f"{name:14} {shown}", markup=False, soft_wrap=True)
