"""An inventory as garrison uses it: hosts, groups, variables, labels, and which hosts a pattern means.

Rules of this file:
- Pure: made from what ``ansible-inventory --list`` printed. Immutable.
- A pattern that means no host is an error that says which groups there are: a rollout to nobody is never a success.
- Labels become part of what an author signs: only plain values are taken, never templates.
Does not own: reading (``reader``), patterns (``patterns``).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from garrison.common import limits
from garrison.common.errors import ConfigError, InventoryError
from garrison.common.names import NodeName, node_name
from garrison.master.inventory.patterns import evaluate, expand_limit, match_term, split_pattern

__all__ = ["GROUP_LABEL", "HOSTNAME_LABEL", "LABELS_VARIABLE", "Inventory"]

GROUP_LABEL: Final = "group/"
HOSTNAME_LABEL: Final = "kubearmor.io/hostname"
LABELS_VARIABLE: Final = "garrison_labels"
_BUILT_IN: Final = frozenset({"all", "ungrouped"})
_GROUPS_IN_HINT: Final = 12


class _Group(msgspec.Struct):
    hosts: list[str] = []
    children: list[str] = []


class _Meta(msgspec.Struct):
    hostvars: dict[str, dict[str, Any]] = {}


class Inventory:
    """Hosts and groups.

    Attributes:
        hosts: All hosts, in the inventory's order.
        groups: Every group, ``all`` and ``ungrouped`` included, with all its hosts, those of its children included.
        children: Every group with its direct children.
        source: Where it was read from, for messages.
    """

    def __init__(
        self,
        groups: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]],
        hostvars: Mapping[str, Mapping[str, Any]],
        *,
        source: str = "inventory",
    ) -> None:
        """Make an inventory from groups (direct hosts, direct children) and variables."""
        names = dict.fromkeys(["all", "ungrouped", *_breadth_first("all", groups), *groups])
        self.source = source
        self.children = MappingProxyType({name: groups.get(name, ((), ()))[1] for name in names})
        members = {
            name: tuple(dict.fromkeys(h for g in _breadth_first(name, groups) for h in groups.get(g, ((), ()))[0]))
            for name in names
        }
        self.hosts = tuple(dict.fromkeys(h for name in ("all", *names) for h in members[name]))
        self.groups: Mapping[str, tuple[str, ...]] = MappingProxyType({**members, "all": self.hosts})
        self._direct = {name: groups.get(name, ((), ()))[0] for name in names}
        self._vars = hostvars
        self._groups_of: dict[str, list[str]] = {host: [] for host in self.hosts}
        for name in sorted(set(names) - _BUILT_IN):
            for host in members[name]:
                self._groups_of[host].append(name)

    @classmethod
    def from_json(cls, raw: bytes, *, source: str) -> Inventory:
        """Return the inventory in the output of ``ansible-inventory --list``.

        Raises:
            InventoryError: It is not such an output.
        """
        try:
            parts = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            meta = msgspec.json.decode(parts.pop("_meta", msgspec.Raw(b"{}")), type=_Meta)
            groups = {name: msgspec.json.decode(part, type=_Group) for name, part in parts.items()}
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
            raise InventoryError(f"{source}: ansible-inventory printed something else than an inventory: {err}") from err
        return cls({n: (tuple(g.hosts), tuple(g.children)) for n, g in groups.items()}, meta.hostvars, source=source)

    def vars(self, host: str) -> dict[str, Any]:
        """Return the variables of ``host`` as Ansible merges them; templates in them are not evaluated.

        Raises:
            InventoryError: There is no such host.
        """
        self._require(host)
        return dict(self._vars.get(host, {}))

    def groups_of(self, host: str) -> tuple[str, ...]:
        """Return the names of the groups that hold ``host``, sorted, without ``all`` and ``ungrouped``.

        Raises:
            InventoryError: There is no such host.
        """
        self._require(host)
        return tuple(self._groups_of[host])

    def labels(self, host: str) -> dict[str, str]:
        """Return what policies select ``host`` by: its groups, its name, and its variable ``garrison_labels``.

        Raises:
            InventoryError: There is no such host, or its ``garrison_labels`` is not a mapping of plain values.
        """
        labels = {f"{GROUP_LABEL}{name}": "true" for name in self.groups_of(host)} | {HOSTNAME_LABEL: host}
        own = self._vars.get(host, {}).get(LABELS_VARIABLE, {})
        if not isinstance(own, dict):
            raise InventoryError(f"host {host}: {LABELS_VARIABLE} is not a mapping", hint="write it as key: value lines")
        for key, value in own.items():
            labels[_label_key(host, str(key), labels)] = _label_text(host, str(key), value)
        if len(labels) > limits.HELLO_MAX_ITEMS:
            raise InventoryError(f"host {host} has {len(labels)} labels, the limit is {limits.HELLO_MAX_ITEMS}")
        return labels

    def select(self, pattern: str, limit: str | None = None) -> tuple[NodeName, ...]:
        """Return the hosts that ``pattern`` means and that ``limit``, if given, means too.

        Args:
            pattern: A host pattern.
            limit: A host pattern that may also be, or contain, ``@FILE``.

        Returns:
            At least one host; in the inventory's order for each term of the pattern.

        Raises:
            InventoryError: Either of them means no host of this inventory, or the two have none in common; a pattern is
                malformed; a host's name is no node name.
        """
        chosen = self._evaluate(split_pattern(pattern), pattern, "host pattern")
        if limit is not None:
            allowed = set(self._evaluate(expand_limit(limit), limit, "limit"))
            common = [host for host in chosen if host in allowed]
            if not common:
                raise InventoryError(f"limit {limit!r} leaves no host of {pattern!r}", hint=f"{pattern!r} means {_some(chosen)}")
            chosen = common
        try:
            return tuple(node_name(host) for host in chosen)
        except ConfigError as err:
            raise InventoryError(f"{self.source}: a host cannot be a node: {err}", hint=err.hint) from err

    def unmatched(self, pattern: str) -> tuple[str, ...]:
        """Return the terms of ``pattern`` that match nothing; others of it may. Ansible warns of these and goes on.

        Raises:
            InventoryError: The pattern is malformed.
        """
        terms = [term.lstrip("&!") for term in split_pattern(pattern)]
        return tuple(t for t in terms if t and t not in _BUILT_IN and not match_term(t, self.groups, self.hosts))

    def graph(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Return every group with its direct children and its direct hosts."""
        return {name: (self.children[name], self._direct[name]) for name in self.groups}

    def _evaluate(self, terms: list[str], text: str, what: str) -> list[str]:
        chosen = evaluate(terms, self.groups, self.hosts) if terms else []
        if chosen:
            return chosen
        raise InventoryError(f"{self.source}: {what} {text!r} matches no host", hint=self._hint(terms))

    def _hint(self, terms: list[str]) -> str:
        names = [name for name in self.groups if name not in _BUILT_IN and self.groups[name]]
        near = difflib.get_close_matches(terms[0].lstrip("&!") if terms else "", [*names, *self.hosts], n=1)
        groups = f"groups: {_some(sorted(names))}" if names else f"hosts: {_some(self.hosts)}"
        return f"did you mean {near[0]}? {groups}" if near else groups

    def _require(self, host: str) -> None:
        if host not in self._groups_of:
            near = difflib.get_close_matches(host, self.hosts, n=1)
            raise InventoryError(
                f"{self.source}: no host {host!r}",
                hint=f"did you mean {near[0]}?" if near else "`garrison inventory list` shows all",
            )


def _breadth_first(top: str, groups: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> list[str]:
    """Return ``top`` and all groups below it, level by level, each once: the order in which Ansible counts hosts."""
    seen, level = {top: None}, [top]
    while level:
        level = [child for name in level for child in groups.get(name, ((), ()))[1] if child not in seen]
        seen |= dict.fromkeys(level)
    return list(seen)


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:_GROUPS_IN_HINT])
    return f"{shown} and {len(names) - _GROUPS_IN_HINT} more" if len(names) > _GROUPS_IN_HINT else shown or "none"


def _label_key(host: str, key: str, taken: Mapping[str, str]) -> str:
    if key.startswith(GROUP_LABEL) or key == HOSTNAME_LABEL or key in taken or not key:
        raise InventoryError(
            f"host {host}: {LABELS_VARIABLE} may not set {key!r}",
            hint="labels of groups and of the hostname come from the inventory",
        )
    return key


def _label_text(host: str, key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float) or "{{" in str(value):
        raise InventoryError(
            f"host {host}: label {key!r} is not a plain value",
            hint="a label is text, a number or a boolean; templates are not evaluated",
        )
    if len(str(value)) + len(key) > limits.STRING_MAX_CHARS:
        raise InventoryError(f"host {host}: label {key!r} is longer than {limits.STRING_MAX_CHARS} characters")
    return str(value)
