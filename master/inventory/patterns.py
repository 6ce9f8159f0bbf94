"""Ansible's host patterns over the groups and hosts of an inventory: pure, no I/O but an ``@file`` that a limit names.

Rules of this file:
- The same hosts as Ansible for every pattern; a test compares the two. Source: Ansible User Guide, "Patterns: targeting hosts and
  groups".
- Terms without a sign first, then ``&`` (intersection), then ``!`` (exclusion), whatever their order in the text. With none but
  signed terms they work on ``all``.
- A term is a group's name, or a host's, or a glob, or ``~`` and a regular expression that must match from the beginning. A glob
  or a regular expression matches both. ``[n]``, ``[a:b]`` (b included), ``[a:]`` at the end choose among the matches.
- Terms are split at commas, and at colons outside brackets when there is no comma.
Owns: which hosts a pattern means. Does not own: what an empty answer means (``model``).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import InventoryError

__all__ = ["evaluate", "expand_limit", "match_term", "split_pattern"]

_COLON_TERM: Final = re.compile(r"(?:[^\s:\[\]]|\[[^\]]*\])+")
_SUBSCRIPT: Final = re.compile(r"(?P<base>.+)\[(?:(?P<index>-?\d+)|(?P<first>\d+)[:-](?P<last>\d*))\]", re.ASCII | re.DOTALL)
_GLOB_CHARS: Final = frozenset(".?*[")


def split_pattern(pattern: str) -> list[str]:
    """Return the terms of ``pattern``, without spaces around them and without empty ones."""
    terms = pattern.split(",") if "," in pattern else _COLON_TERM.findall(pattern)
    return [term.strip() for term in terms if term.strip()]


def expand_limit(limit: str) -> list[str]:
    """Return the terms of a limit; ``@FILE`` stands for the terms in that file, one a line.

    Raises:
        InventoryError: The file cannot be read, or is too long.
    """
    terms: list[str] = []
    for term in split_pattern(limit):
        terms += _terms_in_file(Path(term[1:])) if term.startswith("@") else [term]
    return terms


def _terms_in_file(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(limits.LIMIT_FILE_MAX_CHARS + 1)
    except (OSError, UnicodeDecodeError) as err:
        raise InventoryError(
            f"limit file {path} cannot be read: {err}", hint="@FILE names a text file with one host or pattern a line"
        ) from err
    if len(text) > limits.LIMIT_FILE_MAX_CHARS:
        raise InventoryError(f"limit file {path} has more than {limits.LIMIT_FILE_MAX_CHARS} characters")
    return [line.strip() for line in text.splitlines() if line.strip()]


def evaluate(terms: Sequence[str], groups: Mapping[str, Sequence[str]], hosts: Sequence[str]) -> list[str]:
    """Return the hosts that ``terms`` mean, each once, in the inventory's order within each term.

    Args:
        terms: From ``split_pattern`` or ``expand_limit``.
        groups: Every group with all its hosts, those of its children included.
        hosts: All hosts.

    Raises:
        InventoryError: A glob or regular expression is malformed, or a subscript is out of range.
    """
    plain = [term for term in terms if term[0] not in "&!"] or ["all"]
    chosen: dict[str, None] = {}
    for term in plain:
        # A host goes before a group of the same name here, and only here, as with Ansible.
        chosen |= dict.fromkeys([term] if term in hosts else match_term(term, groups, hosts))
    for sign, keep in (("&", True), ("!", False)):
        for term in terms:
            if term.startswith(sign) and len(term) > 1:
                other = set(match_term(term[1:], groups, hosts))
                chosen = {host: None for host in chosen if (host in other) is keep}
    return list(chosen)


def match_term(term: str, groups: Mapping[str, Sequence[str]], hosts: Sequence[str]) -> list[str]:
    """Return the hosts that one term without a sign means; empty when it matches nothing.

    Raises:
        InventoryError: As for ``evaluate``.
    """
    base, choose = _split_subscript(term)
    matches = _matcher(base)
    found_groups = [name for name in groups if matches(name)]
    found = [host for name in found_groups for host in groups[name]]
    if not found_groups or base.startswith("~") or _GLOB_CHARS & set(base):
        found += [host for host in hosts if matches(host)]
    return choose(found) if found else []


def _matcher(base: str) -> Callable[[str], object]:
    try:
        # Like Ansible, re.match: the beginning is fixed, the end is not, unless the expression says so. Globs are whole names.
        return re.compile(base[1:] if base.startswith("~") else fnmatch.translate(base)).match
    except (re.error, RecursionError, OverflowError) as err:
        raise InventoryError(f"host pattern {base!r} is malformed: {err}") from err


def _split_subscript(term: str) -> tuple[str, Callable[[list[str]], list[str]]]:
    found = None if term.startswith("~") else _SUBSCRIPT.fullmatch(term)
    if found is None:
        return term, lambda hosts: hosts
    if found["index"]:
        return found["base"], lambda hosts: [_at(term, hosts, int(found["index"]))]
    first, last = int(found["first"]), int(found["last"]) if found["last"] else -1
    if last == 0:  # Ansible takes [n:0] for [n]
        return found["base"], lambda hosts: [_at(term, hosts, first)]
    return found["base"], lambda hosts: hosts[first : None if last == -1 else last + 1]


def _at(term: str, hosts: list[str], index: int) -> str:
    try:
        return hosts[index]
    except IndexError:
        raise InventoryError(
            f"host pattern {term!r} asks for a host that is not there", hint=f"it chooses among {len(hosts)}, counted from 0"
        ) from None
