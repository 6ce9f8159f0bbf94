"""Where in the cgroup tree a workload is, read from the path alone: user slices, units, containers.

Rules of this file:
- Pure: paths in, ``Place`` out. Paths are below the mount, begin with ``/`` and have no trailing one.
- The innermost workload counts; what surrounds it (user, unit, slice) is told along with it.
- What a container makes below its own cgroup belongs to it and is not looked at.
- In a user's slice everything is that user's word: directories there can have any name that the user likes.

Names are those of systemd (``user-1000.slice``, ``nginx.service``), Docker (``docker-ID.scope``, ``docker/ID``), Podman
(``libpod-ID.scope``, ``libpod_parent/libpod-ID``, ``libpod-payload-ID``), containerd's CRI plugin
(``cri-containerd-ID.scope``, ``kubepods/…/ID``), nerdctl (``nerdctl-ID.scope``). ``libpod-conmon-ID`` and ``runtime`` hold
what looks after a container, not it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from garrison.common import limits

__all__ = ["ROOT", "Place", "descends", "place_of", "slice_path"]

_CONTAINER: Final = re.compile(r"(?:(?:docker|libpod|libpod-payload|crio|cri-containerd|nerdctl)-)?([0-9a-f]{64})(?:\.scope)?")
_UNIT: Final = re.compile(r"[^/]+\.(?:service|scope|socket)")
_USER: Final = re.compile(r"user-(\d{1,10})\.slice")
_OF_USER: Final = re.compile(r"(?:user@\d+\.service|session-[^/]+\.scope|init\.scope)")  # in a user's slice: the user as such
_CARER: Final = re.compile(
    r"(?:libpod|crio)-conmon-[^/]*\.scope"
)  # looks after a container; is neither it nor a unit to be named
_POD_OF_PODMAN: Final = "libpod_parent"  # cgroupfs driver: below it a bare ID is a pod, not a container
ROOT: Final = -1  # no user's slice


class Place(msgspec.Struct, frozen=True):
    """What a path says.

    Attributes:
        uid: Of the user's slice that it is in, ``ROOT`` for none.
        slice: Innermost slice, ``-.slice`` for none.
        unit: Innermost unit of its own; empty for none, and for what stands for a user as such.
        container: Container id, if the path *is* a container's.
        inside: It is below a container or a unit's own children: nothing more is to be found there.
    """

    uid: int = ROOT
    slice: str = "-.slice"
    unit: str = ""
    container: str = ""
    inside: bool = False


def _no_bundle(_namespace: str, _name: str) -> bool:
    return False


def place_of(path: str, is_bundle: Callable[[str, str], bool] = _no_bundle) -> Place:
    """Return what ``path`` says.

    Args:
        path: Of a cgroup.
        is_bundle: Whether containerd has a task of this namespace and id: its cgroup is ``/NAMESPACE/ID`` by default.
    """
    place, parent = Place(), ""
    parts = path.strip("/").split("/")
    for n, part in enumerate(parts):
        if place.container or place.inside:
            return msgspec.structs.replace(place, container="", inside=True)
        if n == 1 and parent == "user.slice" and (user := _USER.fullmatch(part)):
            place = Place(uid=int(user[1]), slice=part)
        elif (found := _CONTAINER.fullmatch(part)) and not (part == found[1] and parent == _POD_OF_PODMAN):
            place = msgspec.structs.replace(place, container=found[1])
        elif n == 1 and not parent.endswith(".slice") and is_bundle(parent, part):
            place = msgspec.structs.replace(place, container=part)
        elif part.endswith(".slice"):
            place = msgspec.structs.replace(place, slice=part)
        elif place.unit:
            place = msgspec.structs.replace(place, inside=True)
        elif _UNIT.fullmatch(part) and not _CARER.fullmatch(part) and not (place.uid != ROOT and _OF_USER.fullmatch(part)):
            place = msgspec.structs.replace(place, unit=part)
        parent = part
    return place


def descends(path: str, place: Place) -> bool:
    """Return whether workloads may be found below ``path``."""
    return not (place.container or place.inside) and path.count("/") < limits.CGROUP_DEPTH_MAX


def slice_path(name: str) -> str:
    """Return the path of a slice: ``a-b.slice`` is in ``a.slice``; empty for the root slice and for what is no slice's name.

    Source: systemd.slice(5).
    """
    stem = name.removesuffix(".slice")
    if not name.endswith(".slice") or stem == "-" or "/" in name or not all(stem.split("-")):
        return ""
    words = stem.split("-")
    return "".join(f"/{'-'.join(words[: n + 1])}.slice" for n in range(len(words)))
