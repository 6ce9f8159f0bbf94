"""Who an actor is for workload rules: the scopes that match the workloads it runs in, as one number beside its class.

Rules of this file:
- Pure. ``common.policy.match.scope_matches`` says whether a scope means a workload.
- A *profile* is the set of scopes that match a workload or one that it runs in: a container in a user's session is both. What
  holds in a profile is what holds for the host plus the rules of these scopes.
- Numbers of profiles are those of one generation. 0 is the host. 1 is what cannot be told, or does not fit: rules of every scope
  count then that refuse or watch, and none that allows.
- The tables know actors by *subject*: profile and class in one number. What has no entry of its own falls back, nearest first.
Owns: numbers, which cgroup has which profile. Does not own: what rules come to (``program``), finding workloads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.policy.match import scope_matches
from garrison.common.policy.rules import Rule, Verdict, WorkloadScope
from garrison.minion.workloads.model import Workload, WorkloadKind

__all__ = [
    "ANY_CLASS",
    "CLASS_MAX",
    "HOST_PROFILE",
    "NO_WORKLOAD",
    "UNKNOWN_PROFILE",
    "Placement",
    "Placements",
    "Profile",
    "Profiles",
    "class_part",
    "fallbacks",
    "needed_profiles",
    "place_workloads",
    "profile_part",
    "shortage",
    "speaks_in",
    "subject_of",
    "workload_scopes",
]

ANY_CLASS: Final = 0  # a program that no source names
HOST_PROFILE: Final = 0
UNKNOWN_PROFILE: Final = 1
_FIRST_PROFILE: Final = 2
_CLASS_BITS: Final = 22  # CLASS_BITS of rule_tables.h
CLASS_MAX: Final = (1 << _CLASS_BITS) - 1
NO_WORKLOAD: Final = "no workload of this node matches now; it holds in one that does as soon as that is there"

Profile = frozenset[WorkloadScope]


def subject_of(class_: int, profile: int) -> int:
    """Return the number of actors of this class in this profile."""
    return profile << _CLASS_BITS | class_


def class_part(subject: int) -> int:
    """Return the class in a subject's number."""
    return subject & CLASS_MAX


def profile_part(subject: int) -> int:
    """Return the profile in a subject's number."""
    return subject >> _CLASS_BITS


def fallbacks(subject: int) -> tuple[int, ...]:
    """Return the subjects whose entries stand for ``subject``, in the order in which the kernel looks them up."""
    class_, profile = class_part(subject), profile_part(subject)
    return tuple(dict.fromkeys((subject, subject_of(ANY_CLASS, profile), class_, ANY_CLASS)))


class Profiles:
    """Profiles of one generation by number.

    Args:
        known: At most ``LSM_PROFILES_MAX``, each once, none empty.
    """

    def __init__(self, known: Sequence[Profile] = ()) -> None:
        self.known = tuple(known)
        self._numbers = {profile: number for number, profile in enumerate(self.known, _FIRST_PROFILE)}
        self._by_scope: dict[WorkloadScope, list[int]] = {}
        for profile, number in self._numbers.items():
            for scope in profile:
                self._by_scope.setdefault(scope, []).append(number)

    def number(self, profile: Profile | None) -> int:
        """Return the number of ``profile``; that of the unknown one when it is ``None`` or not known in this generation."""
        if profile is None:
            return UNKNOWN_PROFILE
        return self._numbers.get(profile, UNKNOWN_PROFILE) if profile else HOST_PROFILE

    def concerned(self, rules: Iterable[Rule]) -> list[int]:
        """Return the profiles, the host's left out, in which one of ``rules`` speaks that does not for the host."""
        found: set[int] = set()
        for rule in rules:
            if isinstance(rule.scope, WorkloadScope):
                found.update(self._by_scope.get(rule.scope, ()))
                if rule.verdict is not Verdict.ALLOW:
                    found.add(UNKNOWN_PROFILE)
        return sorted(found)

    def scopes(self, number: int) -> Profile:
        """Return the scopes of a profile that this generation knows."""
        return self.known[number - _FIRST_PROFILE]


def speaks_in(rule: Rule, profiles: Profiles, number: int) -> bool:
    """Return whether ``rule`` holds for actors in the profile ``number``."""
    if not isinstance(rule.scope, WorkloadScope):
        return True
    if number == HOST_PROFILE:
        return False
    return rule.verdict is not Verdict.ALLOW if number == UNKNOWN_PROFILE else rule.scope in profiles.scopes(number)


def workload_scopes(rules: Iterable[Rule]) -> tuple[WorkloadScope, ...]:
    """Return each scope of workloads once, in the order of the rules."""
    return tuple(dict.fromkeys(rule.scope for rule in rules if isinstance(rule.scope, WorkloadScope)))


class Placement(msgspec.Struct, frozen=True):
    """What holds for processes of a cgroup.

    Attributes:
        profile: Scopes of its workloads and of those around it; ``None`` when they are not told.
        sticky: It is a container's: who was in it stays its, wherever it moves.
    """

    profile: Profile | None
    sticky: bool = False


Placements = Mapping[str, Placement]
"""Path of a cgroup → what holds in it. What is in a cgroup that is not there has the nearest above; above all is the host."""


def place_workloads(scopes: Sequence[WorkloadScope], workloads: Iterable[Workload]) -> dict[str, Placement]:
    """Return what holds in each workload's cgroup, given all scopes of a rule set; cgroups in which nothing does are left out.

    Past ``LSM_WORKLOADS_MAX`` cgroups the rest is left out, and everything on the node that is in none of them counts as unknown.
    """
    by_path: dict[str, list[Workload]] = {}
    for workload in workloads:
        by_path.setdefault(_path(workload.cgroup), []).append(workload)
    matcher = _Matcher(scopes)
    own = {path: frozenset[WorkloadScope]().union(*map(matcher.profile, here)) for path, here in by_path.items()}
    found: dict[str, Placement] = {}
    for path, here in by_path.items():
        profile = own[path].union(*(own[above] for above in _above(path) if above in own))
        # A container counts even if nothing holds in it now: rules that come later must find who has left it.
        if profile or any(workload.kind is WorkloadKind.CONTAINER for workload in here):
            found[path] = Placement(profile, any(workload.kind is WorkloadKind.CONTAINER for workload in here))
    if len(found) > limits.LSM_WORKLOADS_MAX:
        return {**dict(list(found.items())[: limits.LSM_WORKLOADS_MAX - 1]), "/": Placement(None)}
    return found


def needed_profiles(placements: Placements) -> list[Profile]:
    """Return the profiles in ``placements`` to be numbered: at most ``LSM_PROFILES_MAX``, the most used."""
    counted = Counter(placement.profile for placement in placements.values() if placement.profile)
    return [profile for profile, _ in counted.most_common(limits.LSM_PROFILES_MAX)]


def shortage(placements: Placements, profiles: Profiles) -> str:
    """Say why workloads of the node could not be told apart; empty when they are."""
    unknown = sum(profiles.number(placement.profile) == UNKNOWN_PROFILE for placement in placements.values())
    if not unknown:
        return ""
    return (
        f"{unknown} of this node's workloads are selected in more ways than fit: every rule for workloads that blocks or audits"
        " holds in them, and none that allows"
    )


class _Matcher:
    """Says which scopes match a workload. Looks only at scopes one of whose labels it carries, and those that ask for none."""

    def __init__(self, scopes: Sequence[WorkloadScope]) -> None:
        self._by_label: dict[str, list[WorkloadScope]] = {}
        self._unlabelled: list[WorkloadScope] = []
        for scope in scopes:
            wanted = scope.labels[:1] or (scope.any_of[0] if scope.any_of else ())
            for label in wanted:
                self._by_label.setdefault(label, []).append(scope)
            if not wanted:
                self._unlabelled.append(scope)

    def profile(self, workload: Workload) -> Profile:
        asked = chain(self._unlabelled, *(self._by_label.get(label, ()) for label in workload.labels))
        return frozenset(scope for scope in asked if scope_matches(scope, workload.labels, workload.namespace))


def _path(cgroup: str) -> str:
    return "/" + "/".join(part for part in cgroup.split("/") if part)


def _above(path: str) -> Iterator[str]:
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
