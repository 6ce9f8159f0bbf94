"""A workload: a part of the node that policies select by label, and the cgroup that its processes are in. Pure values.

Owns: what is known of a workload. Does not own: finding workloads, and which rules count in them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["Workload", "WorkloadKind"]


class WorkloadKind(StrEnum):
    """What a workload is."""

    CONTAINER = "container"
    UNIT = "unit"
    USER = "user"


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One workload and its cgroup.

    Attributes:
        kind: What it is.
        name: The container's, unit's or user's name.
        namespace: Kubernetes namespace; empty for none.
        labels: ``key=value`` each.
        cgroup: Path below the mount of cgroup v2: ``/machine.slice/libpod-….scope``.
        cgroup_id: The cgroup's number; 0 when it is not there yet: a unit that does not run.
        image: The image that a container was made from.
    """

    kind: WorkloadKind
    name: str
    namespace: str = ""
    labels: frozenset[str]
    cgroup: str
    cgroup_id: int = 0
    image: str = ""
