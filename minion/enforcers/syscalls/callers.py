"""Who runs on the node, as system call rules for workloads tell callers apart, and the kernel's table of it.

Rules of this file:
- Profiles, places and their table are those of the kernel enforcer (``profiles``, ``cgroup_table``, ``bpf/include/workloads.h``).
- Each generation of rules has one of two copies of the table, which is filled before its rows are put in place, and changed in
  place while they hold.
- A workload whose combination of scopes this generation does not know counts as unknown until there is a new one.
Owns: this table. Does not own: generations (``enforcer``), what a profile is.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence

from garrison.bpf.loader import NO_PREALLOC, BpfMap, MapType, Object
from garrison.bpf.pathhash import PathHasher
from garrison.common import limits
from garrison.common.policy.rules import Entity, RuleSet, WorkloadScope
from garrison.minion.enforcers.cgroup_table import CGROUP_KEY_BYTES, CGROUP_ROW_BYTES, change_cgroups, lay_out_cgroups
from garrison.minion.enforcers.profiles import (
    UNKNOWN_PROFILE,
    Placements,
    Profiles,
    needed_profiles,
    place_workloads,
    shortage,
    workload_scopes,
)
from garrison.minion.enforcers.syscalls.plan import Plan
from garrison.minion.workloads.model import Workload

__all__ = ["Callers"]


class Callers:
    """The node's workloads, and what rules on system calls make of them.

    Args:
        hasher: Of paths, as the programs have it.
    """

    def __init__(self, hasher: PathHasher) -> None:
        self._hasher = hasher
        self._workloads: tuple[Workload, ...] = ()
        self._plan: Plan | None = None
        self._placements: Placements = {}

    @contextlib.contextmanager
    def told(self, workloads: Sequence[Workload]) -> Iterator[bool]:
        """Take these from now on, unless the block fails; whether that is news."""
        before = self._workloads
        news = frozenset(workloads) != frozenset(before)
        self._workloads = tuple(workloads) if news else before
        try:
            yield news
        except BaseException:
            self._workloads = before
            raise

    def placed(self, rules: RuleSet) -> Placements:
        """Return what system call rules say of each workload; nothing when none of them is about workloads."""
        scopes = workload_scopes(rule for rule in rules.rules if rule.entity is Entity.SYSCALL)
        return place_workloads(scopes, self._workloads) if scopes else {}

    def matched(self, rules: RuleSet) -> frozenset[WorkloadScope]:
        """Return the scopes of system call rules that match a workload of the node."""
        return frozenset[WorkloadScope]().union(*(placement.profile or () for placement in self.placed(rules).values()))

    @property
    def shortage(self) -> str:
        """Why workloads of the node could not be told apart; empty when they are."""
        return shortage(self._placements, self._plan.profiles) if self._plan else ""

    def are_new(self, rules: RuleSet) -> bool:
        """Return whether some are selected in a way that the present generation has no number for."""
        known = self._plan.profiles if self._plan else Profiles()
        return any(known.number(profile) == UNKNOWN_PROFILE for profile in needed_profiles(self.placed(rules)))

    # ---- the kernel's table ----------------------------------------------------------------------------------------------
    def fill(self, made: Object, plan: Plan) -> None:
        """Fill the copy that ``plan`` will have.

        Raises:
            KernelError: The kernel refused; what holds is as before.
        """
        # Without rules for workloads it is emptied: its numbers were another generation's.
        room = limits.LSM_WORKLOADS_MAX if plan.placed else 1
        table = BpfMap.create(MapType.HASH, CGROUP_KEY_BYTES, CGROUP_ROW_BYTES, room, name="cgroups", flags=NO_PREALLOC)
        try:
            table.update_batch(lay_out_cgroups(plan.placements if plan.placed else {}, plan.profiles, self._hasher))
            made.maps["cgroups"].update(_copy(plan), struct.pack("=I", table.fd))
        finally:
            table.close()  # the outer map holds it

    def hold(self, plan: Plan | None) -> None:
        """Know whose table the kernel has now."""
        self._plan, self._placements = plan, plan.placements if plan else {}

    def settle(self, made: Object, rules: RuleSet) -> None:
        """Bring the table of the present generation up to date.

        Raises:
            KernelError: Not all of it could be written; the rest is as before.
        """
        plan, placements = self._plan, self.placed(rules)
        if plan is None or not plan.placed:
            return
        before, after = (lay_out_cgroups(p, plan.profiles, self._hasher) for p in (self._placements, placements))
        number = struct.unpack("=I", made.maps["cgroups"].lookup(_copy(plan)) or bytes(4))[0]
        table = BpfMap.by_id(number, name="cgroups")
        try:
            change_cgroups(table, made.maps["workload_figures"], before, after)
        finally:
            table.close()
        self._placements = placements


def _copy(plan: Plan) -> bytes:
    return struct.pack("=I", plan.generation & 1)
