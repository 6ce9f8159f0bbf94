"""``garrison nodes``: who is there, who wants in, who goes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import click

from garrison.cli._text import harmless
from garrison.cli.client import open_api, segment
from garrison.cli.console import err_console, out_console, print_json_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]

_WORST_FIRST: Final = ("offline", "late", "online", "retired")
_STATE_STYLE: Final = {"online": "green", "late": "yellow", "offline": "red", "retired": "dim"}
_APPLY_STYLE: Final = {
    "applied": "green",
    "pending": "yellow",
    "refused": "red",
    "failed": "red",
    "reverted": "red",
    "quarantined": "red",
}
_TRIALS: Final = {
    "applied": "confirmed",
    "pending": "enforced on trial, waits to be confirmed",
    "reverted": "tried and taken back; quarantined: it is not tried again, the next apply is",
    "quarantined": "offered again after it was taken back, and not tried",
    "failed": "never enforced",
    "refused": "never enforced",
}
_RULE_WORST_FIRST: Final = ("impossible", "degraded", "inert", "audited", "enforced")
_RULE_STYLE: Final = {"enforced": "green", "audited": "cyan", "degraded": "yellow", "impossible": "red", "inert": "dim"}

_json_option = click.option("--json", "as_json", is_flag=True, help="The API's answer as one JSON object (docs/master.md)")


@click.group(
    "nodes",
    invoke_without_command=True,
    epilog="""\b
Examples:
  garrison nodes                                   all nodes, the worst first
  garrison nodes pending                           keys that knock
  garrison nodes accept edge-1 --key SHA256:…      let a node in, by the fingerprint that the node itself shows
  garrison nodes show edge-1                       one node with its compile report
  garrison nodes retire edge-1                     cut a node off

\b
Exit codes: 0 done, 1 the master does not answer, 2 no such node or key.""",
)
@_json_option
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """List nodes, or accept, show and retire one."""
    if ctx.invoked_subcommand is not None:
        return
    answer = open_api().get("/v1/nodes")
    if as_json:
        print_json_line(json.dumps(answer))
        return
    _print_nodes(answer["nodes"])


@command.command("pending", epilog="\b\nExample:\n  garrison nodes pending")
@_json_option
def pending_command(*, as_json: bool) -> None:
    """List keys that knocked and wait for a decision.

    Compare the fingerprint with what `garrison minion key` shows on the node.
    """
    answer = open_api().get("/v1/pending")
    if as_json:
        print_json_line(json.dumps(answer))
        return
    table = _table("fingerprint", "address", "via", "attempts", "last seen")
    for key in answer["pending"]:
        table.add_row(key["fingerprint"], key["address"], key["via"] or "-", str(key["attempts"]), _ago(key["last_seen"]))
    if not answer["pending"]:
        err_console().print("no key is pending")
        return
    out_console().print(table)


@command.command(
    "accept",
    epilog="""\b
Examples:
  garrison nodes accept edge-1 --key SHA256:1a2b-…
  garrison nodes accept site-1 --relay --key SHA256:3c4d-…
  garrison nodes accept edge-2 --via site-1 --key SHA256:5e6f-…""",
)
@click.argument("name")
@click.option("--key", required=True, help="Fingerprint as the node shows it, or its whole Z85 key")
@click.option("--relay", is_flag=True, help="NAME is a relay: it carries for the nodes that are accepted for it")
@click.option("--via", default="", help="A relay that may carry for NAME  [default: the one that the key knocked at]")
def accept_command(name: str, key: str, *, relay: bool, via: str) -> None:
    """Accept a key as the key of node NAME, or let one more relay carry for it."""
    answer = open_api().post(f"/v1/nodes/{segment(name)}/accept", {"key": key, "relay": relay, "via": via})
    err_console().print(f"{name} [green]accepted[/]" if answer["changed"] else f"{name} already accepted")


@command.command("reject", epilog="\b\nExample:\n  garrison nodes reject --key SHA256:1a2b-…")
@click.option("--key", required=True, help="Fingerprint as `garrison nodes pending` shows it")
def reject_command(key: str) -> None:
    """Never show a pending key again. It can still be accepted later."""
    answer = open_api().post("/v1/pending/reject", {"key": key})
    err_console().print(f"{answer['fingerprint']} rejected")


@command.command("retire", epilog="\b\nExample:\n  garrison nodes retire edge-1")
@click.argument("name")
def retire_command(name: str) -> None:
    """Cut node NAME off within 5 seconds and never let its key in again.

    Its events stay. It goes on enforcing what it has: removing the agent is up to whoever has the machine.
    """
    answer = open_api().post(f"/v1/nodes/{segment(name)}/retire")
    err_console().print(f"{name} retired" if answer["changed"] else f"{name} already retired")


@command.command("show", epilog="\b\nExample:\n  garrison nodes show edge-1 --json")
@click.argument("name")
@_json_option
def show_command(name: str, *, as_json: bool) -> None:
    """Show node NAME with what became of each rule on it."""
    node = open_api().get(f"/v1/nodes/{segment(name)}")
    if as_json:
        print_json_line(json.dumps(node))
        return
    _print_node(out_console(), node)


def _print_nodes(nodes: list[dict[str, Any]]) -> None:
    if not nodes:
        err_console().print("no node was accepted yet; see `garrison nodes pending`")
        return
    table = _table("node", "state", "seen", "generation", "apply", "to send", "version", "address", "note")
    rank = {state: number for number, state in enumerate(_WORST_FIRST)}
    for node in sorted(nodes, key=lambda n: (rank.get(n["state"], 0), n["name"])):
        waiting = sum(node["unacked"].values())
        table.add_row(
            node["name"],
            _styled(node["state"], _STATE_STYLE),
            _ago(node["last_seen"]),
            _generation(node),
            _apply_state(node),
            str(waiting) if waiting else "-",
            _safe(node["version"]) or "-",
            _where(node),
            _safe(_note(node)) or "-",
        )
    out_console().print(table)


def _print_node(console: Console, node: dict[str, Any]) -> None:
    rows = {
        "node": f"{node['name']}   {node['fingerprint']}",
        "state": f"{_styled(node['state'], _STATE_STYLE)}   seen {_ago(node['last_seen'])}   from {_where(node)}",
        "generation": f"{_generation(node)}   {_apply_state(node)}",
        "trial": _trial(node),
        "bundle": node["bundle"] or "-",
        "version": _safe(node["version"]) or "-",
        "to send": ", ".join(f"{lane} {count}" for lane, count in node["unacked"].items() if count) or "nothing",
        "note": _safe(_note(node)) or "-",
    }
    for title, text in rows.items():
        console.print(f"{title:11} {text}", soft_wrap=True)
    for title in ("backends", "grains"):
        for key, text in sorted(node[title].items()):
            console.print(f"{title[:-1]:11} {_safe(key)}: {_safe(text)}", soft_wrap=True)
    _print_rules(console, node["report"]["rules"])


def _print_rules(console: Console, rules: list[dict[str, str]]) -> None:
    if not rules:
        return
    table = _table("rule", "status", "backend", "reason")
    rank = {status: number for number, status in enumerate(_RULE_WORST_FIRST)}
    for rule in sorted(rules, key=lambda r: (rank.get(r["status"], 0), r["rule"])):
        table.add_row(
            _safe(rule["rule"]),
            _styled(rule["status"], _RULE_STYLE),
            _safe(rule.get("backend", "")) or "-",
            _safe(rule.get("reason", "")) or "-",
        )
    console.print(table)


def _table(*titles: str) -> Any:
    from rich.table import Table

    return Table(*titles, box=None)


def _styled(text: str, styles: dict[str, str]) -> str:
    style = styles.get(text)
    return f"[{style}]{_safe(text)}[/]" if style else _safe(text)


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(harmless(text))


def _generation(node: dict[str, Any]) -> str:
    applied, assigned = node["generation"], node["assigned_generation"]
    return f"{applied or '-'}" if applied == assigned else f"{applied or '-'} of {assigned or '-'}"


def _apply_state(node: dict[str, Any]) -> str:
    return _styled(node["apply_state"], _APPLY_STYLE) or "-"


def _trial(node: dict[str, Any]) -> str:
    about = f"generation {node['apply_generation']}: " if node["apply_generation"] else ""
    return about + _TRIALS[node["apply_state"]] if node["apply_state"] in _TRIALS else "-"


def _where(node: dict[str, Any]) -> str:
    address = node["address"] or "-"
    if node["via"]:
        return f"{address} via {_safe(node['via'])}"
    # Not connected: the relay through which it would be is where to look.
    return f"{address} via {_safe(', '.join(node['relays']))}" if node["relays"] and node["state"] != "online" else address


def _note(node: dict[str, Any]) -> str:
    notes = ["relay"] if node["relay"] else []
    if node["refused"]:
        notes.append(f"{node['refused']} batches refused that it carried: forged, altered, or of nodes that are not its own")
    notes += [node["apply_error"]] if node["apply_error"] else []
    obstacle = node["grains"].get("enforcement", "")
    if obstacle and obstacle not in node["apply_error"]:
        notes.append(obstacle)
    if node["generation"] > node["assigned_generation"]:
        notes.append("enforces a generation that this master did not assign: was the master restored from a backup?")
    if node["clones"]:
        notes.append(f"clone: another agent with its key came from {node['clones'][-1]['address']}")
    if node["bad_frames"]:
        notes.append(f"{node['bad_frames']} broken messages")
    if node["quarantined"]:
        notes.append(f"{node['quarantined']} events that cannot be read")
    return "; ".join(notes)


def _ago(at_ns: int) -> str:
    if not at_ns:
        return "never"
    seconds = max(0, int(time.time() - at_ns / 1e9))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
