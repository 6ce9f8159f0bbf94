"""``garrison policy``: check policies before anybody signs them, and show what a node would make of them."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from garrison.cli.console import err_console, out_console, print_json_line

if TYPE_CHECKING:
    from garrison.common.frames import RuleReport
    from garrison.common.policy.lint import Finding
    from garrison.common.policy.load import Document
    from garrison.common.policy.normalise import NodeFacts, Normalised

__all__ = ["command"]

EXIT_USAGE: Final = 2
_RULE_STYLE: Final = {"enforced": "green", "audited": "cyan", "degraded": "yellow", "impossible": "red", "inert": "dim"}
_LEVEL_STYLE: Final = {"error": "bold red", "warning": "yellow", "note": "dim"}
_FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")


@click.group(
    "policy",
    epilog="""\b
Examples:
  garrison policy lint states/policies
  garrison policy explain states/policies/demo --node edge-1

\b
FILE is a YAML file or a folder, which means every *.yaml and *.yml below it.""",
)
def command() -> None:
    """Lint and explain policies."""


@command.command(
    "lint",
    epilog="""\b
Examples:
  garrison policy lint no-compilers.yaml
  garrison policy lint states/policies --json | jq '.findings[] | select(.level == "error")'

\b
Exit codes: 0 no error (there may be warnings), 2 an error: the files must not be assigned.
A rule that takes from a node what it needs to be recovered (systemd, sshd, shells, the dynamic loader, the agent) is an
error; the annotation garrison/i-mean-it: "true" on its policy makes it a warning.""",
)
@_FILES
@click.option("--json", "as_json", is_flag=True, help="One JSON object: files, policies, rules, errors, warnings, findings")
@click.pass_context
def lint_command(ctx: click.Context, files: tuple[Path, ...], *, as_json: bool) -> None:
    """Check policies: every mistake with file, line and key path."""
    import msgspec

    from garrison.common.policy.expand import expand
    from garrison.common.policy.load import Policy

    read, documents, findings = _lint(files)
    policies = [document for document in documents if isinstance(document, Policy)]
    summary = {
        "files": read,
        "policies": len(policies),
        "rules": len({item.rule.id for policy in policies for item in expand(policy)}),
        "errors": sum(found.level == "error" for found in findings),
        "warnings": sum(found.level == "warning" for found in findings),
    }
    if as_json:
        print_json_line(msgspec.json.encode({**summary, "findings": findings}).decode())
    else:
        _print_findings(findings)
        out_console().print("  ".join(f"{name} {count}" for name, count in summary.items()), soft_wrap=True)
    ctx.exit(EXIT_USAGE if summary["errors"] else 0)


def _lint(files: Sequence[Path]) -> tuple[int, list[Document], list[Finding]]:
    """Return how many files were read, the documents that load, and everything there is to say."""
    from garrison.common.errors import PolicyError
    from garrison.common.policy.lint import finding_of, lint
    from garrison.common.policy.load import check_text, read_text, yaml_files

    documents: list[Document] = []
    findings: list[Finding] = []
    read = 0
    for name in files:
        try:
            paths = list(yaml_files([name]))
        except PolicyError as err:
            findings.append(finding_of(err))
            continue
        for path in paths:
            read += 1
            try:
                found, errors = check_text(read_text(path), str(path))
            except PolicyError as err:
                found, errors = [], [err]
            documents.extend(found)
            findings.extend(map(finding_of, errors))
    return read, documents, sorted([*findings, *lint(documents)], key=lambda found: (found.file, found.line, found.key))


def _print_findings(findings: Sequence[Finding]) -> None:
    from rich.markup import escape

    console = out_console()
    for found in findings:
        where = f"{found.file}:{found.line}" if found.line else found.file
        key = f"{found.key}: " if found.key else ""
        level = f"[{_LEVEL_STYLE[found.level]}]{found.level}:[/]"
        console.print(f"{escape(where)}: {level} {escape(key + found.text)}", soft_wrap=True)
        if found.hint:
            console.print(f"  [cyan]hint:[/] {escape(found.hint)}", soft_wrap=True)


@command.command(
    "explain",
    epilog="""\b
Examples:
  garrison policy explain states/policies/demo
  garrison policy explain states/policies --node edge-1 --inventory inventory/
  garrison policy explain states/policies --json | jq '.rules[] | select(.status == "impossible")'

\b
The labels are those of NODE in the inventory, else this machine's hostname. The backends are always those of this machine,
tried for real, so root sees more; what another node makes of a policy is told by `garrison nodes show NODE` once it is
assigned there. Nothing is applied.""",
)
@_FILES
@click.option("--node", help="Explain for this node of the inventory  [default: this machine]")
@click.option(
    "--inventory",
    type=click.Path(path_type=Path),
    envvar="GARRISON_INVENTORY",
    show_envvar=True,
    help="Ansible inventory with the node's groups and labels; needs --node",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: node, labels, rules, notes")
def explain_command(files: tuple[Path, ...], node: str | None, inventory: Path | None, *, as_json: bool) -> None:
    """Show the compile report: what becomes of each rule, and why.

    enforced: refused or granted as written. audited: recorded, refused nowhere. degraded: held with a weakness, named.
    impossible: no backend here can. inert: selects nothing on this node.
    """
    import msgspec

    from garrison.common.policy.load import load_files
    from garrison.common.policy.normalise import normalise
    from garrison.common.policy.rules import Mode

    facts = _facts(node, inventory)
    normalised = normalise(((document, Mode.ENFORCE) for document in load_files(files)), facts)
    report = _compile(normalised)
    if as_json:
        found = {"node": facts.name, "labels": dict(facts.labels), "rules": report, "notes": normalised.notes}
        print_json_line(msgspec.json.encode(found).decode())
        return
    _print_report(facts, report, normalised.notes)


def _facts(node: str | None, inventory: Path | None) -> NodeFacts:
    from garrison.common.policy.normalise import NodeFacts

    if node is None:
        if inventory is not None and click.get_current_context().get_parameter_source("inventory") == _COMMANDLINE:
            raise click.UsageError("--inventory says nothing without --node")
        return NodeFacts(socket.gethostname().split(".")[0].lower())
    if inventory is None:
        raise click.UsageError("--node needs --inventory, or GARRISON_INVENTORY in the environment")
    return NodeFacts(node, _inventory_labels(inventory, node))


_COMMANDLINE: Final = click.core.ParameterSource.COMMANDLINE


def _inventory_labels(path: Path, node: str) -> dict[str, str]:
    """Return the labels that the inventory gives ``node``."""
    from garrison.master.inventory import read_inventory

    return dict(read_inventory(path).labels(node))


def _compile(normalised: Normalised) -> tuple[RuleReport, ...]:
    """Return what this machine's backends make of the rules; they are probed, and nothing is applied."""
    from garrison.minion.config import MinionSettings
    from garrison.minion.enforcers.stack import EnforcerStack, default_backends

    names = MinionSettings.model_fields["backends"].default
    with tempfile.TemporaryDirectory(prefix="garrison-explain-") as runtime_dir:
        backends = default_backends(lambda _event: None, runtime_dir=Path(runtime_dir), cgroup=None, names=names)
        stack = EnforcerStack(backends)
        try:
            stack.probe()
            return stack.compile(normalised)
        finally:
            stack.close()


def _print_report(facts: NodeFacts, report: Sequence[RuleReport], notes: Sequence[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = out_console()
    labels = ", ".join(f"{key}={value}" for key, value in sorted(facts.labels.items()))
    console.print(f"node {escape(facts.name)}   {escape(labels)}".rstrip(), soft_wrap=True)
    table = Table("rule", "status", "backend", "reason", box=None)
    worst_first = list(reversed(_RULE_STYLE))
    for line in sorted(report, key=lambda line: (worst_first.index(line.status), line.rule)):
        style = _RULE_STYLE[line.status]
        table.add_row(escape(line.rule), f"[{style}]{line.status}[/]", line.backend or "-", escape(line.reason) or "-")
    console.print(table)
    for note in notes:
        err_console().print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
