"""From what is known of a place in the cgroup tree to the workload that policies select. Pure.

Rules of this file:
- A workload says where it is (user, unit, slice), but carries no label that others gave what surrounds it: what holds around it
  holds in it anyway, by the labels of what is around it.
- A container that no engine knows is a workload all the same: by its id, so that it can be seen, and selected as a container.
- What is not in Kubernetes is in the namespace ``default``. The reasons are in ``docs/adr/0014-finding-workloads.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from garrison.common import limits
from garrison.common.policy.expand import OUTSIDE_KUBERNETES
from garrison.minion.workloads.accounts import Account
from garrison.minion.workloads.engines import ContainerFacts
from garrison.minion.workloads.labels import CONTAINER_NAME, fits, foreign_labels, own_labels
from garrison.minion.workloads.model import Workload, WorkloadKind
from garrison.minion.workloads.places import ROOT, Place
from garrison.minion.workloads.units import UnitFacts, template_of

__all__ = ["SHORT_ID", "container", "counted", "unit", "user"]

SHORT_ID = 12  # characters of a container's id that stand for its name where it has none, as engines print them


def user(uid: int, account: Account | None, *, cgroup: str, cgroup_id: int) -> Workload:
    """Return the workload of a user: everything in the user's slice that is nothing else."""
    return Workload(
        kind=WorkloadKind.USER,
        name=_name(account.name if account else "", str(uid)),
        namespace=OUTSIDE_KUBERNETES,
        labels=own_labels(
            [("garrison/kind", WorkloadKind.USER), ("garrison/slice", f"user-{uid}.slice"), *_of_user(uid, account)]
        ),
        cgroup=cgroup,
        cgroup_id=cgroup_id,
    )


def unit(place: Place, facts: UnitFacts, account: Account | None, *, cgroup: str, cgroup_id: int) -> tuple[Workload, int]:
    """Return the workload of a unit, and how many labels of its files were left out.

    Args:
        place: Where it is, or will be.
        facts: What its files say.
        account: Whose slice it is in; ``None`` for nobody's, or somebody who is not known.
        cgroup: Its path.
        cgroup_id: Its number, 0 while it does not run.
    """
    own = own_labels([("garrison/kind", WorkloadKind.UNIT), *_of_place(place, account)])
    theirs, left_out = foreign_labels(facts.labels, room=limits.WORKLOAD_LABELS_MAX - len(own))
    made = Workload(
        kind=WorkloadKind.UNIT,
        name=_name(place.unit, "unit"),
        namespace=OUTSIDE_KUBERNETES,
        labels=own | theirs,
        cgroup=cgroup,
        cgroup_id=cgroup_id,
    )
    return made, left_out


def container(
    place: Place, facts: ContainerFacts | None, account: Account | None, *, cgroup: str, cgroup_id: int
) -> tuple[Workload, int]:
    """Return the workload of a container, and how many labels were left out.

    Args:
        place: Where it is.
        facts: What its engine says; ``None`` when none knows it.
        account: Whose slice it is in; ``None`` for nobody's, or somebody who is not known.
        cgroup: Its path.
        cgroup_id: Its number.
    """
    known = facts or ContainerFacts(engine="")
    name = _name(known.name, place.container[:SHORT_ID])
    own = own_labels(
        [
            ("garrison/kind", WorkloadKind.CONTAINER),
            ("garrison/container", name),
            ("garrison/engine", known.engine),
            ("garrison/image", known.image),
            (CONTAINER_NAME, name),
            *_of_place(place, account),
        ]
    )
    theirs, left_out = foreign_labels(known.labels.items(), room=limits.WORKLOAD_LABELS_MAX - len(own))
    made = Workload(
        kind=WorkloadKind.CONTAINER,
        name=name,
        namespace=_name(known.namespace, OUTSIDE_KUBERNETES),
        labels=own | theirs,
        cgroup=cgroup,
        cgroup_id=cgroup_id,
        image=_name(known.image, ""),
    )
    return made, left_out


def counted(kinds: Iterable[Workload]) -> Mapping[str, int]:
    """Return how many workloads there are of each kind, by the kind's name with an s."""
    found = {f"{kind}s": 0 for kind in WorkloadKind}
    for each in kinds:
        found[f"{each.kind}s"] += 1
    return found


def _of_place(place: Place, account: Account | None) -> list[tuple[str, str]]:
    pairs = [("garrison/slice", place.slice), ("garrison/unit", place.unit), ("garrison/template", template_of(place.unit))]
    return pairs if place.uid == ROOT else [*pairs, *_of_user(place.uid, account)]


def _of_user(uid: int, account: Account | None) -> list[tuple[str, str]]:
    room = limits.WORKLOAD_LABELS_MAX // 2  # a user in very many groups leaves room for a container's own labels
    groups = account.groups[:room] if account else ()
    pairs = [("garrison/uid", str(uid)), ("garrison/user", account.name if account else "")]
    return [*pairs, *(("garrison/group", group) for group in groups)]


def _name(text: str, instead: str) -> str:
    return text if text and len(text) <= limits.WORKLOAD_NAME_MAX_CHARS and fits(text) else instead
