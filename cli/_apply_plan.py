"""What an apply would change, and what became of it: pure functions over what the master says and what the states folder says."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from garrison.common.names import Digest, NodeName, digest_of
from garrison.common.top import States
from garrison.common.trust.bundle import NodeShare
from garrison.master.desk import AssignedFile, Current, CurrentNode

__all__ = ["Change", "NodePlan", "Plan", "Progress", "diffs", "exit_code", "make_plan", "progress"]

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_NOT_QUEUED: Final = 4
EXIT_QUEUED: Final = 6
_BAD: Final = frozenset({"refused", "failed", "reverted", "quarantined"})


@dataclass(frozen=True)
class Change:
    """One policy file on one node: ``before`` or ``after`` is ``None`` where it is added or removed."""

    path: str
    before: AssignedFile | None
    after: AssignedFile | None

    @property
    def text(self) -> str:
        """The change in one short line."""
        if self.before is None and self.after is not None:
            return f"+ {self.path} ({self.after.mode})"
        if self.after is None or self.before is None:
            return f"- {self.path}"
        if self.before.mode != self.after.mode:
            return f"~ {self.path} ({self.before.mode} → {self.after.mode})"
        return f"~ {self.path}"


@dataclass(frozen=True)
class NodePlan:
    """What would change on one node.

    Attributes:
        node: Its name.
        changes: Of its policy files, by path.
        others: Other reasons for a new generation, for people: labels, postures, expiry, another try.
        again: Nothing changed, but what it has failed there: try again.
    """

    node: NodeName
    changes: tuple[Change, ...]
    others: tuple[str, ...] = ()
    again: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.changes and not self.others


@dataclass(frozen=True)
class Plan:
    """What would change.

    Attributes:
        nodes: Accepted nodes that this apply is about, in order of name.
        absent: Hosts it is about that are no accepted nodes.
        strangers: Accepted nodes that the inventory does not name; they stay as they are.
    """

    nodes: tuple[NodePlan, ...]
    absent: tuple[NodeName, ...] = ()
    strangers: tuple[NodeName, ...] = ()

    @property
    def changed(self) -> tuple[NodePlan, ...]:
        """Those with something to do."""
        return tuple(plan for plan in self.nodes if not plan.empty)


def make_plan(states: States, selected: Iterable[NodeName], current: Current, rows: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Return what would change.

    Args:
        states: The resolved states folder.
        selected: Hosts that this apply is about.
        current: What the master has assigned.
        rows: The master's view of its nodes by name (``GET /v1/nodes``).
    """
    wanted = sorted(set(selected))
    return Plan(
        nodes=tuple(
            _node_plan(node, states, current.nodes[node], rows.get(node, {}))
            for node in wanted
            if node in current.nodes and node in states.nodes
        ),
        absent=tuple(node for node in wanted if node not in current.nodes),
        strangers=tuple(sorted(current.nodes.keys() - states.nodes.keys())),
    )


def _node_plan(node: NodeName, states: States, held: CurrentNode, row: Mapping[str, Any]) -> NodePlan:
    share = states.nodes[node]
    if held.generation == 0 and not share.files:
        return NodePlan(node, ())  # nothing assigned and nothing wanted: labels alone need no generation
    after = {path: AssignedFile(digest_of(states.files[path]), mode) for path, mode in share.files.items()}
    paths = sorted(held.files.keys() | after.keys())
    changes = tuple(
        Change(path, held.files.get(path), after.get(path)) for path in paths if held.files.get(path) != after.get(path)
    )
    others = tuple(_others(share, held))
    if not changes and not others and _failed(row):
        return NodePlan(node, (), (f"try again: {row.get('apply_error') or row.get('apply_state')}",), again=True)
    return NodePlan(node, changes, others)


def _others(share: NodeShare, held: CurrentNode) -> Iterator[str]:
    if held.generation == 0:
        return
    for key in sorted(held.labels.keys() | share.labels.keys()):
        before, after = held.labels.get(key), share.labels.get(key)
        if before != after:
            yield f"label {key}: {before or '-'} → {after or '-'}"
    if held.postures != share.postures:
        yield "postures"
    if held.renew:
        yield f"renew: expires {held.expires:%Y-%m-%d}"


def _failed(row: Mapping[str, Any]) -> bool:
    return row.get("apply_state") in _BAD and int(row.get("generation", 0)) < int(row.get("assigned_generation", 0))


def diffs(plan: Plan, states: States, old_text: Callable[[Digest], str]) -> Iterator[str]:
    """Yield unified diffs of policy texts, each pair once, with the nodes it is about.

    Args:
        plan: What would change.
        states: Where the new texts are.
        old_text: Gets the text of a digest from the master.
    """
    about: dict[tuple[str, Digest | None, Digest | None], list[str]] = {}
    for node in plan.changed:
        for change in node.changes:
            before = change.before.digest if change.before else None
            after = change.after.digest if change.after else None
            if before != after:
                about.setdefault((change.path, before, after), []).append(node.node)
    for (path, before, after), nodes in about.items():
        old = old_text(before) if before else ""
        new = states.files[path].decode(errors="replace") if after else ""
        names = ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")  # noqa: PLR2004 - a line's width
        labels = (f"{path} (assigned)" if before else "/dev/null", f"{path} (states)" if after else "/dev/null")
        yield f"# {names}"
        yield from difflib.unified_diff(old.splitlines(), new.splitlines(), *labels, lineterm="")


@dataclass
class Progress:
    """Where the nodes of an apply are.

    Attributes:
        applied: Enforce what was assigned.
        failed: Node → why it does not.
        offline: Not connected; the assignment waits for them.
        waiting: Connected and not there yet.
    """

    applied: list[NodeName] = field(default_factory=list)
    failed: dict[NodeName, str] = field(default_factory=dict)
    offline: list[NodeName] = field(default_factory=list)
    waiting: list[NodeName] = field(default_factory=list)


def progress(
    wanted: Mapping[NodeName, int], rows: Mapping[str, Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]]
) -> Progress:
    """Return where nodes are.

    Args:
        wanted: Node → generation it should enforce.
        rows: The master's view now.
        before: The master's view before the assignment: a failure that was there already says nothing about this one.
    """
    found = Progress()
    for node, generation in sorted(wanted.items()):
        row = rows.get(node, {})
        if int(row.get("generation", 0)) >= generation:
            found.applied.append(node)
        elif _failed_now(row, before.get(node, {}), generation):
            found.failed[node] = f"{row['apply_state']}: {row.get('apply_error', '')}"
        elif row.get("state") in {"online", "late"}:
            found.waiting.append(node)
        else:
            found.offline.append(node)
    return found


def _failed_now(row: Mapping[str, Any], before: Mapping[str, Any], generation: int) -> bool:
    if row.get("apply_state") not in _BAD:
        return False
    spoken_of = int(row.get("apply_generation", 0))
    if spoken_of:
        return spoken_of == generation
    # A refusal before the assignment could be read names no generation: it counts if it was not there before.
    return (row.get("apply_state"), row.get("apply_error")) != (before.get("apply_state"), before.get("apply_error"))


def exit_code(found: Progress, *, waited: bool, absent_named: Sequence[NodeName]) -> int:
    """Return the exit code of an apply.

    Args:
        found: Where its nodes are.
        waited: Whether the operator waited for them; otherwise a connected node counts as done.
        absent_named: Hosts that the operator named one by one and that are no accepted nodes.
    """
    if found.failed or (waited and found.waiting):
        return EXIT_FAILED
    if absent_named:
        return EXIT_NOT_QUEUED
    return EXIT_QUEUED if found.offline else EXIT_DONE
