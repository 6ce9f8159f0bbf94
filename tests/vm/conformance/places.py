"""The workloads of the published container policies, and words that their cases share.

Differences from how the originals are played: users are changed to directly, not by su; ``/readwrite`` and tools that Debian
does not have (arping, curl, route) are probe.c under their names.
"""

from __future__ import annotations

from vm.conformance.model import Alert, Grade, Place, Step

__all__ = [
    "CRITICAL", "FOUR", "KEY1", "LOADER", "NOT_ONE", "ONE", "OTHER", "PASSWORD", "PRIVATE", "SECRET1", "THREE", "TWO",
    "audited", "elsewhere", "off_list", "own", "published",
]  # fmt: skip

_SPACE = "multiubuntu"
ONE = Place(("container=ubuntu-1", "group=group-1"), _SPACE, ("container=ubuntu-2", "group=group-2"))
TWO = Place(("container=ubuntu-2", "group=group-2"), _SPACE, ("container=ubuntu-1", "group=group-1"))
THREE = Place(("container=ubuntu-3", "group=group-2"), _SPACE, ("container=ubuntu-4", "group=group-2"))
FOUR = Place(("container=ubuntu-4", "group=group-2"), _SPACE, ("container=ubuntu-3", "group=group-2"))
NOT_ONE = Place(FOUR.labels, _SPACE, ONE.labels)
SECRET1, OTHER, KEY1 = "/home/user1/secret_data1.txt", "/home/user1/otherfile.txt", "/home/user1/dir1/key1.txt"
PASSWORD, PRIVATE = "/credentials/password", "/credentials/keys/priv.key"
LOADER = ("/etc/ld.so.cache", "/usr/lib/locale/locale-archive")
CRITICAL = Grade(10, "a critical file was accessed", ("WARNING",))


def published(name: str) -> tuple[str, ...]:
    return (f"conformance/container-policies/{name}.yaml",)


def own(*names: str) -> tuple[str, ...]:
    return tuple(f"behaviours/{name}.yaml" for name in names)


def off_list(path: str, **more: object) -> Alert:
    return Alert(path, posture=True, **more)  # type: ignore[arg-type]


def audited(path: str, rule: str = "", **more: object) -> Alert:
    return Alert(path, rule, verdict="audit", **more)  # type: ignore[arg-type]


def elsewhere(run: str, **more: object) -> Step:
    """Return a step of the other workload, which the policy is not for."""
    return Step(run, elsewhere=True, **more)  # type: ignore[arg-type]
