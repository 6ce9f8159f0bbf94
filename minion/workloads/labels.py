"""Labels of workloads: which a workload carries, and that none of them is what it must not be.

Rules of this file:
- Labels come from whoever starts a container or writes a unit. They are text to compare with a selector's text, and nothing
  else: no path, no command, no pattern is ever made of one.
- Ours (``garrison/…``) and KubeArmor's name of a container say what a workload *is*; nobody else's may look like them.
- Too long, too many, or with characters that do not print: left out and counted, never cut. A label cut short would be
  another label.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from garrison.common import limits

__all__ = ["CONTAINER_NAME", "fits", "foreign_labels", "own_labels"]

CONTAINER_NAME: Final = "kubearmor.io/container.name"  # what KubeArmor's policies for nodes without Kubernetes select by
_OWN: Final = "garrison/"


def own_labels(pairs: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return what we say of a workload, ``key=value`` each; a value that does not fit says nothing."""
    return frozenset(f"{key}={value}" for key, value in pairs if value and fits(f"{key}={value}"))


def foreign_labels(pairs: Iterable[tuple[str, str]], *, room: int) -> tuple[frozenset[str], int]:
    """Return labels that somebody else gave a workload, and how many were left out.

    Args:
        pairs: Keys and values.
        room: How many may be kept; which ones is decided by their order as text, so that it is always the same ones.
    """
    found, left_out = set[str](), 0
    for key, value in pairs:
        label = f"{key}={value}"
        if key and "=" not in key and not _is_ours(key) and fits(label):
            found.add(label)
        else:
            left_out += 1
    kept = sorted(found)[: max(0, room)]
    return frozenset(kept), left_out + len(found) - len(kept)


def fits(text: str) -> bool:
    """Return whether ``text`` is short enough and all of it prints."""
    return len(text) <= limits.WORKLOAD_LABEL_MAX_CHARS and text.isprintable()


def _is_ours(key: str) -> bool:
    return key.startswith(_OWN) or key == CONTAINER_NAME
