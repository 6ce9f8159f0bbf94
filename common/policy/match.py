"""What rules mean: one pure function from a RuleSet and an operation to a decision. Every backend is held to it by tests.

Rules of this file (reasons in ``docs/adr/0003-policy-language.md``):
- A block or audit rule *fires* when target, source and scope match, and its condition is breached where it has one.
- An allow rule *grants* when target, source and scope match and its condition is kept.
- Block beats audit beats allow, whatever file it came from. One exception: an allow rule with ``sources`` exempts its source
  from source-less block and audit rules of the same policy.
- Nothing fired, nothing granted, and an allow rule of that entity applies to the subject: the default posture decides. Only
  processes, files, networks, domains and capabilities have allow-lists, and an allow rule that is there to exempt makes none.
- What is unknown (a path that could not be resolved, arguments that could not be read) counts against the operation.
Owns: meaning. Does not own: how paths are resolved, which socket answers to which name (``protocols``), what a kernel can see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from garrison.common.policy.glob import glob_matches
from garrison.common.policy.rules import (
    Entity,
    HostScope,
    Mode,
    Other,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Protocol,
    Rule,
    RuleSet,
    Scope,
    Source,
    SyscallPath,
    Verdict,
)

__all__ = [
    "LISTED",
    "Decision",
    "Operation",
    "decide",
    "makes_list",
    "path_matches",
    "posture_of",
    "scope_matches",
    "source_matches",
    "weigh",
    "weigh_posture",
]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What a process wants to do.

    Attributes:
        entity: Kind of operation.
        path: Resolved absolute path of the program or file; empty when it cannot be resolved: block rules then fire.
        write: File: opened for writing.
        protocols: Network: every name of KubeArmor's that the socket answers to (``protocols.socket_names``).
        name: Capability, system call, domain or preset; of a domain empty when the query cannot be read: block rules then fire.
        source: Resolved path of the acting program; for an exec the program that calls it, before it is replaced.
        is_owner: The acting user owns the target.
        tty: The process has a controlling terminal.
        args: Arguments after the program's name; ``None`` when unknown. Unknown or none counts as an argument not listed.
        labels: ``key=value`` of the workload it runs in; ``None`` for a process of the host itself.
        namespace: Namespace of that workload.
    """

    entity: Entity
    path: str = ""
    write: bool = False
    protocols: frozenset[str] = frozenset()
    name: str = ""
    source: str = ""
    is_owner: bool = False
    tty: bool = False
    args: tuple[str, ...] | None = ()
    labels: frozenset[str] | None = None
    namespace: str = ""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an operation.

    Attributes:
        verdict: ``allow`` lets it pass unseen, ``audit`` lets it pass with an event, ``block`` refuses it with one.
        rule: The rule that decided; for a posture the allow rule that made the list; ``None`` when no rule spoke.
        by_posture: The default posture decided.
    """

    verdict: Verdict
    rule: Rule | None = None
    by_posture: bool = False


_PASS: Final = Decision(verdict=Verdict.ALLOW)
LISTED: Final = frozenset({Entity.PROCESS, Entity.FILE, Entity.NETWORK, Entity.DNS, Entity.CAPABILITY})  # may have allow-lists


def decide(rules: RuleSet, operation: Operation) -> Decision:
    """Return the decision for ``operation``; of several rules with the same say, the one with the smallest id is named."""
    subject = [r for r in rules.rules if r.entity is operation.entity and _applies(r, operation)]
    decision = weigh([r for r in subject if _target_matches(r, operation)], operation)
    return decision or weigh_posture(rules.postures, [r for r in subject if makes_list(r)], operation.entity)


def weigh(named: Sequence[Rule], operation: Operation) -> Decision | None:
    """Return what rules say whose target, source and scope match; ``None`` when none of them fires or grants.

    Only the conditions of ``operation`` are looked at: owner, write, tty, arguments. Compilers call this ahead of time.
    """
    kept = [r for r in named if r.verdict is Verdict.ALLOW and _kept(r, operation)]
    exempt = {r.policy for r in kept if r.sources}
    fired = [
        r for r in named if r.verdict is not Verdict.ALLOW and _fires(r, operation) and (r.sources or r.policy not in exempt)
    ]
    if block := _first(r for r in fired if r.verdict is Verdict.BLOCK and r.mode is Mode.ENFORCE):
        return Decision(verdict=Verdict.BLOCK, rule=block)
    if audit := _first(fired):
        return Decision(verdict=Verdict.AUDIT, rule=audit)
    granted = _first(kept)
    return Decision(verdict=Verdict.ALLOW, rule=granted) if granted else None


def makes_list(rule: Rule) -> bool:
    """Return whether ``rule`` makes an allow-list for those it applies to."""
    return rule.verdict is Verdict.ALLOW and rule.entity in LISTED and not rule.exempts


def weigh_posture(postures: Postures, lists: Sequence[Rule], entity: Entity) -> Decision:
    """Return what happens to an operation that no rule named, given the rules that make an allow-list for its subject."""
    if not lists:
        return _PASS
    enforced = [r for r in lists if r.mode is Mode.ENFORCE]
    if posture_of(postures, entity) is Posture.BLOCK and enforced:
        return Decision(verdict=Verdict.BLOCK, rule=_first(enforced), by_posture=True)
    return Decision(verdict=Verdict.AUDIT, rule=_first(lists), by_posture=True)


def posture_of(postures: Postures, entity: Entity) -> Posture:
    """Return the posture of an entity; processes use the file posture, as in KubeArmor."""
    if entity in {Entity.NETWORK, Entity.DNS, Entity.FIREWALL}:
        return postures.network
    if entity is Entity.DEVICE:
        return postures.device
    return postures.capability if entity is Entity.CAPABILITY else postures.file


def path_matches(target: PathTarget, path: str) -> bool:
    """Return whether the resolved ``path`` is what ``target`` names. A directory names what is in it, not itself."""
    match target.how:
        case PathKind.EXACT:
            return path == target.value
        case PathKind.DIRECTORY:
            return _in_directory(target.value, path, recursive=target.recursive)
        case PathKind.GLOB:
            return glob_matches(target.value, path)
        case PathKind.NAME:
            return path.rpartition("/")[2] == target.value


def source_matches(sources: tuple[Source, ...], program: str) -> bool:
    """Return whether ``program`` is one of ``sources``; no sources means any program."""
    return not sources or any(
        _in_directory(s.value, program, recursive=s.recursive) if s.is_directory else program == s.value for s in sources
    )


def scope_matches(scope: Scope, labels: frozenset[str] | None, namespace: str) -> bool:
    """Return whether a process is in ``scope``. Host scope holds for every process, also those of workloads."""
    if isinstance(scope, HostScope):
        return True
    if labels is None:
        return False
    return (
        (not scope.namespace or scope.namespace == namespace)
        and (not scope.namespaces or namespace in scope.namespaces)
        and namespace not in scope.not_namespaces
        and labels.issuperset(scope.labels)
        and all(not labels.isdisjoint(choice) for choice in scope.any_of)
        and labels.isdisjoint(scope.none_of)
    )


def _in_directory(directory: str, path: str, *, recursive: bool) -> bool:
    return path.startswith(directory) and len(path) > len(directory) and (recursive or "/" not in path[len(directory) :])


def _first(rules: Iterable[Rule]) -> Rule | None:
    return min(rules, key=lambda r: r.id, default=None)


def _applies(rule: Rule, operation: Operation) -> bool:
    # A source that cannot be told counts as the source of a block rule, and never of an allow rule.
    unknown = not operation.source and bool(rule.sources)
    source = rule.verdict is not Verdict.ALLOW if unknown else source_matches(rule.sources, operation.source)
    return source and scope_matches(rule.scope, operation.labels, operation.namespace)


def _target_matches(rule: Rule, operation: Operation) -> bool:
    match rule.target:
        case PathTarget() as target:
            if not operation.path:
                return rule.verdict is Verdict.BLOCK
            return path_matches(target, operation.path)
        case Protocol(name):
            return name in operation.protocols
        case Other(value) if rule.entity is Entity.DNS:
            # A query that cannot be read is one for whatever a block rule names.
            return _domain_matches(value, operation.name) if operation.name else rule.verdict is Verdict.BLOCK
        case Other(value, spec):
            return operation.name in value.split(",") and (not spec or _spec_matches(rule.entity, spec, operation))


def _domain_matches(domain: str, name: str) -> bool:
    """Whether ``name`` is ``domain`` or below it; ``*.domain`` means below it only."""
    wanted, asked = domain.removeprefix("*."), name.rstrip(".").lower()
    return asked.endswith(f".{wanted}") or (asked == wanted and not domain.startswith("*."))


def _spec_matches(entity: Entity, spec: str, operation: Operation) -> bool:
    """Whether a system call's path is the one named; a path that is not known counts as named."""
    if entity is not Entity.SYSCALL:
        return True
    wanted = msgspec.json.decode(spec, type=SyscallPath)
    if not operation.path or operation.path == wanted.path:
        return True
    return wanted.path.endswith("/") and _in_directory(wanted.path, operation.path, recursive=wanted.recursive)


def _breached(rule: Rule, operation: Operation) -> bool:
    """Whether a condition that the rule has is not met; ``False`` for a rule without conditions."""
    return (rule.owner_only and not operation.is_owner) or (rule.read_only and operation.write)


def _args_listed(rule: Rule, operation: Operation) -> bool:
    # No argument at all is not listed either: a bare interpreter is what such a rule means to keep out.
    return bool(operation.args) and all(argument in (rule.allowed_args or ()) for argument in operation.args or ())


def _fires(rule: Rule, operation: Operation) -> bool:
    if (rule.owner_only or rule.read_only) and not _breached(rule, operation):
        return False
    if rule.no_tty and not operation.tty:
        return False
    return rule.allowed_args is None or not _args_listed(rule, operation)


def _kept(rule: Rule, operation: Operation) -> bool:
    if _breached(rule, operation) or (rule.no_tty and operation.tty):
        return False
    return rule.allowed_args is None or _args_listed(rule, operation)
