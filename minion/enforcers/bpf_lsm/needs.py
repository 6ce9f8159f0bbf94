"""Which programs rules need. The others need not be attached, and so cost nothing.

Rules of this file:
- Pure. Told by the rules alone, not by what they come to in the workloads of the moment: those come and go without new rules.
- A program is named here only if it decides and remembers nothing while no such rule holds: by its own look at the tables. All
  others are always attached; so is one that nobody thought of.
Owns: the conditions. Does not own: attaching (``links``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from garrison.common.policy.models import PRESETS
from garrison.common.policy.rules import Entity, Rule, Verdict
from garrison.minion.enforcers.bpf_lsm.subjects import preset_bits

__all__ = ["LASTING", "OPTIONAL", "needed"]


def _about(entity: Entity) -> Callable[[Rule], bool]:
    return lambda rule: rule.entity is entity


def _asks_for(*presets: str) -> Callable[[Rule], bool]:
    wanted = sum(1 << PRESETS.index(name) for name in presets)
    return lambda rule: rule.entity is Entity.PRESET and bool(preset_bits((rule,)) & wanted)


_GROUPS: Final[Mapping[tuple[str, ...], Callable[[Rule], bool]]] = {
    ("guard_socket", "guard_connect", "guard_sendmsg", "guard_bind", "guard_listen", "guard_accept"): _about(Entity.NETWORK),
    ("guard_dns_send", "guard_dns_connect", "guard_dns_subflow", "egress_query"): _about(Entity.DNS),
    ("guard_capable",): _about(Entity.CAPABILITY),
    ("guard_preset_exec",): _asks_for("filelessExec"),
    ("guard_preset_mmap", "guard_preset_mprotect"): _asks_for("filelessExec", "anonymousMapExec"),
    ("guard_preset_open", "guard_preset_follow", "guard_preset_readlink"): _asks_for("protectProc", "protectEnv"),
    ("watch_attach", "watch_fork", "guard_entered"): _asks_for("exec"),
    ("guard_takeover", "guard_traced_exec"): lambda rule: rule.verdict is Verdict.ALLOW and bool(rule.sources),
    ("guard_arguments",): lambda rule: rule.allowed_args is not None,
}

OPTIONAL: Final = frozenset(name for group in _GROUPS for name in group)
"""Programs that are attached only while rules need them."""

LASTING: Final = frozenset({"guard_arguments"})
"""Those of ``OPTIONAL`` that stay once needed: a start that was let go for the sake of its arguments may be on its way still."""


def needed(rules: Iterable[Rule]) -> frozenset[str]:
    """Return those of ``OPTIONAL`` that do something under ``rules``."""
    held = tuple(rules)
    return frozenset(name for group, asks in _GROUPS.items() if any(map(asks, held)) for name in group)
