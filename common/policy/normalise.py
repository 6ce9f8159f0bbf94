"""What one node must hold: the rules of the policies that select it, merged, and what selects nothing, said so.

Rules of this file:
- Pure, and the order of policies never matters: the same set gives the same rules.
- Nothing is "last write wins". Policies of one name both hold; two rules that mean the same become one, the stricter mode and
  the higher severity winning.
- A policy that selects nothing here, a rule that can match nothing and a document of another kind are all told, never dropped.
Owns: selection of nodes, merging. Does not own: reading documents (``load``), splitting them (``expand``), meaning (``match``),
symbolic links (the node's backends).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import CompileError
from garrison.common.frames import RuleReport
from garrison.common.policy import models
from garrison.common.policy.expand import NO_NAMESPACE, expand
from garrison.common.policy.glob import can_match
from garrison.common.policy.load import Document, Foreign, Policy
from garrison.common.policy.rules import Mode, PathKind, PathTarget, Postures, Rule, RuleSet, RuleStatus, WorkloadScope

__all__ = ["NodeFacts", "Normalised", "normalise", "why_matchless", "why_not_selected"]

_KUBERNETES_HOSTNAME: Final = "kubernetes.io/hostname"  # what published host policies often select by


class NodeFacts(msgspec.Struct, frozen=True):
    """What policies may select a node by.

    Attributes:
        name: The node's name; also its labels ``kubearmor.io/hostname`` and ``kubernetes.io/hostname``.
        labels: Signed labels from the inventory, and grains.
    """

    name: str
    labels: Mapping[str, str] = {}


class Normalised(msgspec.Struct, frozen=True):
    """What a node must hold, and what it need not.

    Attributes:
        rules: The rules.
        inert: A line for each policy that selects nothing here (rule ``policy/-``) and each rule that can match nothing.
        notes: Documents that were skipped, for people.
    """

    rules: RuleSet
    inert: tuple[RuleReport, ...] = ()
    notes: tuple[str, ...] = ()


def normalise(policies: Iterable[tuple[Document, Mode]], node: NodeFacts, postures: Postures | None = None) -> Normalised:
    """Return what ``node`` must hold of ``policies``.

    Args:
        policies: Documents, each with the mode in which it is assigned. One that is assigned in both is enforced.
        node: Whom they are for.
        postures: What allow-lists do with the rest; audit when not given.

    Raises:
        CompileError: More than ``RULES_MAX`` rules.
    """
    held: dict[str, list[Rule]] = {}
    inert: set[tuple[str, str]] = set()
    notes: set[str] = set()
    for document, mode in policies:
        if isinstance(document, Foreign):
            notes.add(f"{document.file}:{document.line}: {document.kind} {document.name!r} is not enforced by garrison: skipped")
            continue
        located = expand(document)
        if reason := why_not_selected(document, node) or ("" if located else "holds no rules"):
            inert.add((f"{document.name}/-", reason))
            continue
        for rule in (item.rule for item in located):
            if reason := why_matchless(rule):
                inert.add((rule.id, reason))
            else:
                held.setdefault(rule.id, []).append(msgspec.structs.replace(rule, mode=mode))
    if len(held) > limits.RULES_MAX:
        raise CompileError(f"{len(held)} rules for {node.name}, the limit is {limits.RULES_MAX}")
    return Normalised(
        rules=RuleSet(rules=tuple(_merge(held[key]) for key in sorted(held)), postures=postures or Postures()),
        inert=tuple(RuleReport(rule=rule, status=RuleStatus.INERT, reason=reason) for rule, reason in sorted(inert)),
        notes=tuple(sorted(notes)),
    )


def why_not_selected(policy: Policy, node: NodeFacts) -> str:
    """Return why ``policy`` selects nothing on ``node``; empty when it does.

    Policies for workloads select no node: they hold wherever they are assigned.
    """
    model = policy.model
    if not isinstance(model, models.HostPolicy | models.NetworkPolicy):
        return ""
    wanted = model.spec.nodeSelector.matchLabels
    if not wanted:
        if isinstance(model, models.NetworkPolicy) and model.spec.selector != models.Selector():
            return ""
        return f'nodeSelector is empty and selects no node; for every node write {models.HOSTNAME}: "*"'
    held = {**node.labels, models.HOSTNAME: node.name, _KUBERNETES_HOSTNAME: node.name}
    for key, value in sorted(wanted.items()):
        if not _label_matches(key, value, held):
            own = models.HOSTNAME if key == models.HOSTNAME_PATTERN else key
            has = f"this node has {own}: {held[own]}" if own in held else "this node has no such label"
            return f"selects nodes with {key}: {value}; {has}"
    return ""


def _label_matches(key: str, value: str, held: Mapping[str, str]) -> bool:
    if key == models.HOSTNAME_PATTERN:
        return re.search(value, held[models.HOSTNAME]) is not None
    if key == models.HOSTNAME:
        return bool({"*", held[key]} & {name.strip() for name in value.split(",")})
    return held.get(key) == value


def why_matchless(rule: Rule) -> str:
    """Return why ``rule`` can match nothing on any node; empty when it can."""
    target = rule.target
    if isinstance(target, PathTarget) and target.how is PathKind.GLOB and not can_match(target.value):
        return f"{target.value} matches no absolute path: a single * stops at the first /; begin with **"
    if isinstance(rule.scope, WorkloadScope) and rule.scope.namespaces == NO_NAMESPACE:
        return "its namespace expressions exclude each other"
    return ""


def _merge(rules: list[Rule]) -> Rule:
    """Return one rule for rules of one id, which differ at most in mode, grading and what stands beside them."""
    first = rules[0]
    return msgspec.structs.replace(
        first,
        mode=Mode.ENFORCE if any(rule.mode is Mode.ENFORCE for rule in rules) else Mode.AUDIT,
        severity=max(rule.severity for rule in rules),
        tags=tuple(sorted({tag for rule in rules for tag in rule.tags})),
        message="; ".join(sorted({rule.message for rule in rules if rule.message})),
        exempts=all(rule.exempts for rule in rules),
    )
