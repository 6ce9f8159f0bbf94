"""Where the programs run that recover a node, as far as rules for workloads go.

Rules of this file:
- systemd starts a unit's program in the unit's cgroup, and PAM moves a login into its user's. Process 1, the agent and its
  deadman are in no workload, unless somebody started the agent elsewhere.
- A node knows its own units and labels; without one these are systemd's and OpenSSH's usual ones.
- Several workloads may stand in for each other: of the people who may become root one is enough.
Pure. Owns: which workloads. Does not own: which operations they must be allowed (``never_deny``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from garrison.common.policy.expand import OUTSIDE_KUBERNETES
from garrison.common.policy.match import scope_matches
from garrison.common.policy.rules import HostScope, Rule, WorkloadScope

__all__ = ["USUAL", "Around", "Seat", "Seats", "rules_around", "selected", "usual_unit"]


class Seat(StrEnum):
    """What kind of workload a program runs in."""

    SSHD = "sshd"
    CONSOLE = "console"
    LOGIN = "login"  # of somebody who is or may become root
    AGENT = "agent"  # what surrounds the agent, if anything does


class Around(msgspec.Struct, frozen=True):
    """A workload around a program.

    Attributes:
        name: For people.
        labels: ``key=value`` each.
        namespace: As policies select it.
    """

    name: str
    labels: frozenset[str]
    namespace: str = OUTSIDE_KUBERNETES


Seats = Mapping[Seat, Sequence[Sequence[Around]]]
"""For each seat groups of workloads: a need is lost where one whole group loses it."""


def selected(scope: WorkloadScope, seats: Seats) -> dict[Seat, str]:
    """Return the seats of which ``scope`` selects a whole group, and the name of the first such group's first workload."""
    found: dict[Seat, str] = {}
    for seat, groups in seats.items():
        for group in groups:
            if all(scope_matches(scope, around.labels, around.namespace) for around in group):
                found.setdefault(seat, group[0].name)
    return found


def rules_around(rules: Sequence[Rule], around: Around) -> tuple[Rule, ...]:
    """Return the rules that hold in a workload, as if they were the host's."""
    return tuple(
        rule if isinstance(rule.scope, HostScope) else msgspec.structs.replace(rule, scope=HostScope())
        for rule in rules
        if scope_matches(rule.scope, around.labels, around.namespace)
    )


def usual_unit(name: str, slice_: str = "system.slice", template: str = "") -> Around:
    """Return a unit that has no labels of its own."""
    pairs = {"kind": "unit", "unit": name, "slice": slice_} | ({"template": template} if template else {})
    return Around(name, frozenset(f"garrison/{key}={value}" for key, value in pairs.items()))


_ROOT: Final = ("kind=user", "slice=user-0.slice", "uid=0", "user=root", "group=root")
USUAL: Final[Seats] = {
    Seat.SSHD: (
        (usual_unit("ssh.service"),),
        (usual_unit("sshd.service"),),
        (usual_unit("ssh@0.service", "system-ssh.slice", "ssh@.service"),),
        (usual_unit("sshd@0.service", "system-sshd.slice", "sshd@.service"),),
    ),
    Seat.CONSOLE: (
        (usual_unit("getty@tty1.service", "system-getty.slice", "getty@.service"),),
        (usual_unit("serial-getty@ttyS0.service", "system-serial\\x2dgetty.slice", "serial-getty@.service"),),
    ),
    Seat.LOGIN: ((Around("the session of root", frozenset(f"garrison/{label}" for label in _ROOT)),),),
}
