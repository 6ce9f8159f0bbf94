"""The last look before rules reach the kernel: would they take from this node what it needs to be recovered?

Rules of this file:
- The list of ``garrison policy lint`` and the same way out of it (``garrison/i-mean-it``), asked again on the node: a bundle may
  have been signed by a tool that does not ask.
- Plus what only the node knows: its own interpreter, data directory and first process, its units' and users' labels, and
  allow-lists with their posture.
- Only what would refuse counts: policies in audit mode, or that select other nodes, are no danger.
Owns: the question. Does not own: the list (``common/policy/never_deny.py``), what a refusal leads to (``duty``).
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from garrison.common.errors import CompileError
from garrison.common.policy.expand import expand
from garrison.common.policy.firewall import Packet, decide_packet
from garrison.common.policy.flows import IP_PROTOCOLS, Direction
from garrison.common.policy.load import Document, Policy
from garrison.common.policy.match import Decision, Operation, decide, makes_list, scope_matches
from garrison.common.policy.models import I_MEAN_IT
from garrison.common.policy.never_deny import NEVER_DENY, Need, blocked_needs
from garrison.common.policy.normalise import NodeFacts, why_matchless, why_not_selected
from garrison.common.policy.rules import (
    Entity,
    Mode,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Rule,
    RuleSet,
    Verdict,
    WorkloadScope,
)
from garrison.common.policy.seats import USUAL, Around, Seat, Seats, rules_around
from garrison.minion.enforcers.resolve import resolve
from garrison.minion.workloads.model import Workload, WorkloadKind
from garrison.minion.workloads.units import template_of

__all__ = ["local_needs", "local_seats", "lockouts", "refuse_lockouts"]

_SHOWN = 3
_SSHD = frozenset({"ssh.service", "sshd.service", "ssh@.service", "sshd@.service"})
_CONSOLES = frozenset({"getty@.service", "serial-getty@.service", "container-getty@.service", "console-getty.service"})
_MAY_BECOME_ROOT = frozenset({"garrison/group=sudo", "garrison/group=wheel", "garrison/group=admin"})


def refuse_lockouts(
    documents: Iterable[tuple[Document, Mode]],
    facts: NodeFacts,
    postures: Postures,
    needs: Sequence[Need],
    workloads: Iterable[Workload] = (),
) -> None:
    """Raise when ``documents`` would take away what the node needs.

    Args:
        documents: This node's policies, each with its mode.
        facts: Who this node is.
        postures: What allow-lists do with the rest here.
        needs: What it needs beyond ``NEVER_DENY``; see ``local_needs``.
        workloads: Those that it has, running or not.

    Raises:
        CompileError: They would; names policies, rules and what they would take.
    """
    found = lockouts(documents, facts, postures, needs, local_seats(workloads, _own_cgroup()))
    if not found:
        return
    texts = [f"{rule} blocks: {hit[0]}" + (f" (and {len(hit) - 1} more)" if len(hit) > 1 else "") for rule, hit in found.items()]
    more = f"; and {len(texts) - _SHOWN} more rules" if len(texts) > _SHOWN else ""
    raise CompileError(
        f"the policy would take from this node what it needs to be recovered: {'; '.join(texts[:_SHOWN])}{more}",
        hint=f'exempt those programs with fromSource, leave those flows out, or annotate the policy {I_MEAN_IT}: "true"',
    )


def lockouts(
    documents: Iterable[tuple[Document, Mode]],
    facts: NodeFacts,
    postures: Postures,
    needs: Sequence[Need],
    seats: Seats = USUAL,
) -> Mapping[str, Sequence[str]]:
    """Return for each rule that would take something away, by id, what; rules of policies that mean it are left out."""
    rules: list[Rule] = []
    meant: set[str] = set()
    for policy, mode in documents:
        if mode is not Mode.ENFORCE or not isinstance(policy, Policy) or why_not_selected(policy, facts):
            continue
        if policy.model.metadata.annotations.get(I_MEAN_IT) == "true":
            meant.add(policy.name)
        rules += [found.rule for found in expand(policy) if not why_matchless(found.rule)]
    every = (*NEVER_DENY, *needs)
    names = {path for need in every if isinstance(need.operation, Operation) for path in _spellings(need.operation.path)}
    asked = [rule for rule in rules if rule.policy not in meant and _may_concern(rule, names)]
    return blocked_needs(asked, every, seats) | _left_out(rules, postures, meant, every, seats)


def local_seats(workloads: Iterable[Workload], own_cgroup: str) -> Seats:
    """Return where the programs run that recover this node; the usual places where none is known.

    Args:
        workloads: Those of the node, running or not.
        own_cgroup: The agent's.
    """
    found: dict[Seat, list[tuple[Around, ...]]] = {seat: [] for seat in Seat}
    others: list[Around] = []
    for workload in workloads:
        around = Around(workload.name, workload.labels, workload.namespace)
        if f"{own_cgroup}/".startswith(f"{workload.cgroup.rstrip('/')}/"):
            found[Seat.AGENT].append((around,))
        if workload.kind is WorkloadKind.UNIT and not any(label.startswith("garrison/uid=") for label in workload.labels):
            for seat, names in ((Seat.SSHD, _SSHD), (Seat.CONSOLE, _CONSOLES)):
                if workload.name in names or template_of(workload.name) in names:
                    found[seat].append((around,))
        elif workload.kind is WorkloadKind.USER and "garrison/uid=0" in workload.labels:
            found[Seat.LOGIN].append((msgspec.structs.replace(around, name="the session of root"),))
        elif workload.kind is WorkloadKind.USER and not _MAY_BECOME_ROOT.isdisjoint(workload.labels):
            others.append(msgspec.structs.replace(around, name="the sessions of all who may become root"))
    usual = {seat: groups for seat, groups in USUAL.items() if not found[seat]}
    known = {seat: [*groups, *([tuple(others)] if others and seat is Seat.LOGIN else [])] for seat, groups in found.items()}
    return {seat: [*usual.get(seat, ()), *groups] for seat, groups in known.items()}


def _own_cgroup() -> str:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no /proc: no workloads either
        return "/"
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _may_concern(rule: Rule, paths: set[str]) -> bool:
    """Whether ``rule`` is worth the whole question: of many rules on a node nearly all name paths that nobody needs."""
    target = rule.target
    if rule.verdict is not Verdict.BLOCK or not isinstance(target, PathTarget):
        return True
    match target.how:
        case PathKind.EXACT:
            return target.value in paths
        case PathKind.DIRECTORY | PathKind.GLOB:
            fixed = re.split(r"[*?\[{\\]", target.value, maxsplit=1)[0] if target.how is PathKind.GLOB else target.value
            return any(path.startswith(fixed) for path in paths)
        case PathKind.NAME:
            return True


def _spellings(path: str) -> tuple[str, ...]:
    return (path, path.removeprefix("/usr")) if path.startswith(("/usr/bin/", "/usr/sbin/", "/usr/lib")) else (path,)


def _left_out(
    rules: Sequence[Rule], postures: Postures, meant: set[str], needs: Sequence[Need], seats: Seats
) -> dict[str, list[str]]:
    """Return what allow-lists leave out of that which is on this node, by the rule that makes the list."""
    lists = [rule for rule in rules if makes_list(rule) or rule.entity is Entity.FIREWALL]
    if Posture.BLOCK not in {postures.file, postures.network, postures.capability} or not lists:
        return {}
    held = resolve(RuleSet(rules=tuple(rules), postures=postures), os.path.realpath).rules
    found: dict[str, list[str]] = {}
    for need in needs:
        if rule := _leaving_out(held, need):
            found.setdefault(rule.id, []).append(need.what)
    scopes = {rule.scope for rule in lists if isinstance(rule.scope, WorkloadScope)}
    for seat, groups in seats.items():
        for group in groups:
            if not all(any(scope_matches(scope, each.labels, each.namespace) for scope in scopes) for each in group):
                continue  # no list is made there but the node's
            there = [msgspec.structs.replace(held, rules=rules_around(held.rules, each)) for each in group]
            for need in (need for need in needs if seat in need.seats):
                leaving = [_leaving_out(rules_there, need) for rules_there in there]
                if leaving[0] is not None and None not in leaving:
                    found.setdefault(leaving[0].id, []).append(f"{need.what}, in {group[0].name}")
    return {rule: hits for rule, hits in found.items() if rule.rpartition("/")[0] not in meant}


def _leaving_out(rules: RuleSet, need: Need) -> Rule | None:
    decision = _decided(rules, need.operation)
    return decision.rule if decision.verdict is Verdict.BLOCK and decision.by_posture else None


def _decided(rules: RuleSet, operation: Operation | Packet) -> Decision:
    if isinstance(operation, Packet):
        return decide_packet(rules, operation)
    if not _is_here(operation.path) or not _is_here(operation.source):
        return Decision(verdict=Verdict.ALLOW)
    return decide(rules, msgspec.structs.replace(operation, path=_real(operation.path), source=_real(operation.source)))


def _is_here(path: str) -> bool:
    return not path or Path(path).exists()


def _real(path: str) -> str:
    return path and os.path.realpath(path)


def local_needs(directory: Path, runtime_dir: Path, masters: Iterable[str] = ()) -> tuple[Need, ...]:
    """Return what this very agent needs, where it is installed.

    Args:
        directory: Its data directory.
        runtime_dir: Its runtime directory.
        masters: Where it finds its masters: ``tcp://ADDRESS:PORT``.
    """
    return (*_local_needs(directory, runtime_dir), *map(_link_need, masters))


def _link_need(master: str) -> Need:
    """A master known by name may be anywhere: only what would cut its port off from everybody is seen here."""
    host, _, port = master.removeprefix("tcp://").rpartition(":")
    try:
        peer = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        peer = None
    packet = Packet(direction=Direction.EGRESS, protocol=IP_PROTOCOLS["tcp"], peer=peer, port=int(port))
    return Need(f"the link to the master: {master}", packet)


def _local_needs(directory: Path, runtime_dir: Path) -> Iterator[Need]:
    agent, first = os.path.realpath(sys.executable), _first_process()
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    for seat, program in ((Seat.AGENT, agent), *([(Seat.SSHD, os.path.realpath(sshd))] if sshd else [])):
        yield _need(Entity.PROCESS, f"pid 1 starts it: {first} runs {program}", seat, path=program, source=first)
        yield _need(Entity.FILE, f"pid 1 starts it: {first} opens {program}", seat, path=program, source=first)
    for folder in (directory / "bundles", directory / "spool", runtime_dir):
        yield _need(
            Entity.FILE, f"the agent: {agent} writes {folder}/x", Seat.AGENT, path=f"{folder}/x", source=agent, write=True
        )
    tcp = frozenset({"tcp", "stream", "all"})
    yield _need(Entity.NETWORK, f"the link to the master: {agent} uses tcp", Seat.AGENT, source=agent, protocols=tcp)


def _first_process() -> str:
    try:
        return os.path.realpath("/proc/1/exe")
    except OSError:  # Python looks into links of /proc that not even root may read in a container
        return "/usr/lib/systemd/systemd"


def _need(
    entity: Entity,
    what: str,
    seat: Seat,
    *,
    source: str,
    path: str = "",
    write: bool = False,
    protocols: frozenset[str] = frozenset(),
) -> Need:
    return Need(
        what,
        Operation(entity=entity, path=path, source=source, write=write, protocols=protocols, is_owner=True, tty=True),
        (seat,),
    )
