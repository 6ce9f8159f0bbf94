"""What is wrong, dangerous or useless in policy documents, with its place.

Rules of this file:
- Pure, and never stops at the first: everything that can be said about a set of files is said at once.
- ``error``: must not be assigned. ``warning``: may be, but hardly means what it says. ``note``: for the record.
- A rule that would take from a node what it needs to be recovered is an error, unless its policy carries the annotation
  ``garrison/i-mean-it: "true"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from garrison.common.errors import PolicyError
from garrison.common.policy import models
from garrison.common.policy.expand import Located, expand
from garrison.common.policy.firewall import flow_of
from garrison.common.policy.flows import Direction
from garrison.common.policy.load import Document, Foreign, KeyPath, Policy, dotted
from garrison.common.policy.match import LISTED, posture_of
from garrison.common.policy.never_deny import NEVER_DENY, RISKY, blocked_needs
from garrison.common.policy.normalise import NodeFacts, why_matchless, why_not_selected
from garrison.common.policy.rules import Entity, HostScope, PathKind, PathTarget, Postures, Rule, Verdict

__all__ = ["Finding", "finding_of", "lint"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to know about a document.

    Attributes:
        level: ``error``, ``warning`` or ``note``.
        file: Path as given.
        line: One-based; 0 for the file as a whole.
        key: Key path in the document, empty for all of it.
        text: What is so.
        hint: What to do about it.
    """

    level: Literal["error", "warning", "note"]
    file: str
    line: int
    key: str
    text: str
    hint: str = ""


def finding_of(error: PolicyError) -> Finding:
    """Return a loading error as a finding."""
    return Finding(level="error", file=error.file, line=error.line, key=error.key, text=error.reason, hint=error.hint)


def lint(documents: Sequence[Document]) -> tuple[Finding, ...]:
    """Return what is to be said about documents that load, in the order of files and lines.

    Policies of one name are judged together, since they hold together.
    """
    findings: list[Finding] = []
    by_name: dict[str, list[Policy]] = {}
    for document in documents:
        if isinstance(document, Foreign):
            text = f"{document.kind} {document.name!r} is not enforced by garrison: skipped"
            findings.append(Finding(level="note", file=document.file, line=document.line, key="", text=text))
        else:
            by_name.setdefault(document.name, []).append(document)
    for policies in by_name.values():
        expanded = [(policy, expand(policy)) for policy in policies]
        for policy, located in expanded:
            findings.extend(_selects_nothing(policy, located))
            findings.extend(_misread(policy, located))
            findings.extend(_whole_node_lists(policy, located))
        findings.extend(_namesakes(policies))
        findings.extend(_lockouts(expanded))
    return tuple(sorted(findings, key=lambda found: (found.file, found.line, found.key, found.text)))


def _at(policy: Policy, level: Literal["error", "warning", "note"], key: KeyPath, text: str, hint: str = "") -> Finding:
    return Finding(level=level, file=policy.file, line=policy.line_of(key), key=dotted(key), text=text, hint=hint)


def _selects_nothing(policy: Policy, located: Sequence[Located]) -> Iterator[Finding]:
    selector = getattr(policy.model.spec, "nodeSelector", None)
    if selector is not None and not selector.matchLabels and (reason := why_not_selected(policy, NodeFacts("any"))):
        yield _at(policy, "warning", ("spec", "nodeSelector"), reason)
    if not located:
        yield _at(policy, "warning", ("spec",), "holds no rules")
    for item in located:
        if reason := why_matchless(item.rule):
            yield _at(policy, "warning", item.key, reason)


def _misread(policy: Policy, located: Sequence[Located]) -> Iterator[Finding]:
    for item in located:
        target = item.rule.target
        if not isinstance(target, PathTarget):
            continue
        if target.how is not PathKind.GLOB and any(char in target.value for char in "*?"):
            text = f"{target.value} is taken literally"
            yield _at(policy, "warning", item.key, text, "globs belong under matchPatterns")
        if target.how is PathKind.GLOB and " " in target.value:
            text = f"{target.value} is matched against paths, which hold no arguments"
            yield _at(policy, "warning", item.key, text, "use allowedArgs under process.matchPaths")


def _whole_node_lists(policy: Policy, located: Sequence[Located]) -> Iterator[Finding]:
    told = set[Entity | Direction]()
    for item in located:
        rule = item.rule
        if (
            rule.entity is Entity.FIREWALL
            and rule.verdict is Verdict.ALLOW
            and (direction := flow_of(rule).direction) not in told
        ):
            told.add(direction)
            text = f"makes an allow-list: all else in {direction.value} gets the posture, {Postures().network} by default"
            yield _at(policy, "warning", item.key, text)
        if rule.entity is Entity.DEVICE and rule.verdict is Verdict.ALLOW and rule.entity not in told:
            told.add(rule.entity)
            text = f"makes an allow-list: all other USB devices get the posture, {Postures().device} by default"
            yield _at(policy, "warning", item.key, text)
        if rule.entity in told or not _lists_whole_node(rule) or any(_grants_everything(rule, other.rule) for other in located):
            continue
        told.add(rule.entity)
        posture = posture_of(Postures(), rule.entity)
        text = f"makes an allow-list of the whole node: all else in {rule.entity} gets the posture, {posture} by default"
        yield _at(policy, "warning", item.key, text, "name the programs it is for with fromSource")


def _lists_whole_node(rule: Rule) -> bool:
    on_host = isinstance(rule.scope, HostScope)
    return rule.verdict is Verdict.ALLOW and on_host and not rule.sources and rule.entity in LISTED


def _grants_everything(rule: Rule, other: Rule) -> bool:
    everything = PathTarget(PathKind.DIRECTORY, "/", recursive=True)
    return other.entity is rule.entity and _lists_whole_node(other) and other.target == everything


def _namesakes(policies: Sequence[Policy]) -> Iterator[Finding]:
    first = policies[0]
    for policy in policies[1:]:
        text = f"is also the name of the policy at {first.file}:{first.line}; both hold, neither replaces the other"
        yield _at(policy, "warning", ("metadata", "name"), text)


_MEAN_IT: Final = f'or annotate the policy {models.I_MEAN_IT}: "true"'
_FLOW_HINT: Final = f"leave it out by ports, or name the networks that it is to be kept from, {_MEAN_IT}"
_GATE_HINT: Final = f"exempt those programs with an Allow rule and fromSource in the same policy, {_MEAN_IT}"


def _lockouts(expanded: Sequence[tuple[Policy, Sequence[Located]]]) -> Iterator[Finding]:
    rules = [item.rule for _, located in expanded for item in located]
    refused, risky = blocked_needs(rules, NEVER_DENY), blocked_needs(rules, RISKY)
    for policy, located in expanded:
        meant = policy.model.metadata.annotations.get(models.I_MEAN_IT) == "true"
        for item in _once(located):
            if hit := refused.get(item.rule.id):
                text = f"takes from the node what it needs to be recovered: {_some(hit)}"
                hint = _FLOW_HINT if item.rule.entity is Entity.FIREWALL else _GATE_HINT
                yield _at(policy, "warning" if meant else "error", item.key, text, "" if meant else hint)
            elif hit := risky.get(item.rule.id):
                text = f"may end logins on the node: {_some(hit)}"
                yield _at(policy, "warning", item.key, text, "exempt those programs with fromSource")


def _once(located: Iterable[Located]) -> Iterator[Located]:
    seen = set()
    for item in located:
        if item.rule.id not in seen:
            seen.add(item.rule.id)
            yield item


def _some(texts: Sequence[str]) -> str:
    return f"{texts[0]} (and {len(texts) - 1} more)" if len(texts) > 1 else texts[0]
