"""The BPF objects of the kernel enforcer: which there are, which programs this kernel has hooks for, loading them as one.

Rules of this file:
- All objects share their maps by name; the first that has a map makes it.
- All or nothing: when one object does not load, none is loaded.
Owns: the list. Does not own: pins (``pins``), what is in the maps (``layout``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from garrison.bpf.cgroups import cgroup2_root
from garrison.bpf.loader import BpfMap, Object, Program, object_path

__all__ = ["OBJECTS", "attachable", "attachable_names", "cgroup_of", "load_all", "version"]

OBJECTS: Final = (
    "enforce_exec",
    "enforce_files",
    "enforce_maps",
    "enforce_network",
    "enforce_capabilities",
    "enforce_presets",
    "enforce_entry",
    "enforce_dns",
    "enforce_trace",
    "watch",
    "protect",
)
# Programs for hooks that not every kernel has: object -> program -> hook.
_OPTIONAL: Final[Mapping[str, Mapping[str, str]]] = {
    "enforce_files": {"guard_ftruncate": "file_truncate", "guard_ioctl32": "file_ioctl_compat"}
}
_ON_CGROUP: Final = "egress_"  # names of programs that are attached to the root of cgroups
_ATTACHED: Final = ("guard_", "watch_", _ON_CGROUP)  # names of programs that are attached; others are run
_PINS: Final = b"programs, links"  # what is pinned beside maps and rules: an agent that expects other pins is another version


def load_all(rodata: Mapping[str, bytes], into: list[Object]) -> None:
    """Load every object, all with the same maps, nothing attached.

    Args:
        rodata: Read-only variables of each.
        into: Takes the objects, in the order of ``OBJECTS``; the caller closes them.

    Raises:
        KernelError: The kernel refused; what was loaded is closed.
    """
    maps: dict[str, BpfMap] = {}
    try:
        for name in OBJECTS:
            made = Object(object_path(name))
            into.append(made)
            made.set_rodata(rodata)
            for map_name in made.map_names & maps.keys():
                made.reuse_map(map_name, maps[map_name])
            for program in _offered(name):
                made.enable(program)
            made.load()
            maps = {**made.maps, **maps}
    except BaseException:
        for made in into:
            made.close()
        into.clear()
        raise


def attachable(loaded: Sequence[Object]) -> list[Program]:
    """Return the programs that can be attached, of objects in the order of ``OBJECTS``."""
    found = []
    for name, made in zip(OBJECTS, loaded, strict=True):
        found += [made.programs[program] for program in _attachable(name, made)]
    return found


@cache
def attachable_names() -> frozenset[str]:
    """Return the names of the programs that can be attached on this kernel; loads none."""
    found = set[str]()
    for name in OBJECTS:
        with Object(object_path(name)) as made:
            found.update(_attachable(name, made))
    return frozenset(found)


def cgroup_of(program: str) -> Path | None:
    """Return the cgroup to attach a program to; ``None`` for one that its section says the place of.

    Raises:
        BackendUnsupportedError: There is no cgroup v2 to attach it to.
    """
    return cgroup2_root() if program.startswith(_ON_CGROUP) else None


def version() -> str:
    """Return a digest of the programs and of how they are pinned. What another version has pinned is replaced, not taken over."""
    return hashlib.sha256(_PINS + b"".join(object_path(name).read_bytes() for name in OBJECTS)).hexdigest()[:16]


def _attachable(name: str, made: Object) -> list[str]:
    left_out = _OPTIONAL.get(name, {}).keys() - set(_offered(name))
    return [program for program in made.program_names if program.startswith(_ATTACHED) and program not in left_out]


def _offered(name: str) -> list[str]:
    return [program for program, hook in _OPTIONAL.get(name, {}).items() if _has_hook(hook)]


@cache
def _has_hook(hook: str) -> bool:
    return f"\0bpf_lsm_{hook}\0".encode() in Path("/sys/kernel/btf/vmlinux").read_bytes()
