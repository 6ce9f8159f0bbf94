"""Programs by their pins: attached by who has not loaded them.

Rules of this file:
- A link is pinned before its descriptor is closed, so a program is attached for good or not at all.
- The kernel detaches some time after a link's pin was removed. Until then it takes no other link of the same program: waited for.
Owns: descriptors, while they are used. Does not own: which programs are attached, and when.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from garrison.bpf.libbpf import check, libbpf
from garrison.bpf.loader import Program
from garrison.common.errors import KernelError

__all__ = ["attach_pinned", "pin_program"]

_CGROUP_EGRESS: Final = 1  # enum bpf_attach_type
_STILL_ATTACHED: Final = frozenset({errno.EBUSY, errno.EEXIST})  # LSM hooks and fexit; tracepoints
_DETACHED_AFTER_MAX_S: Final = 30.0  # a grace period of the kernel, on a machine that has no time
_STEP_S: Final = 0.01


def pin_program(program: Program, path: Path) -> None:
    """Keep a program loaded at ``path``, on a bpffs.

    Raises:
        KernelError: The kernel refused.
    """
    check(libbpf().bpf_obj_pin(program.fd, os.fsencode(path)), f"pin {program.name} at {path}")


def attach_pinned(program: Path, link: Path, *, cgroup: Path | None = None) -> None:
    """Attach the program pinned at ``program``, until ``link`` (on a bpffs) is removed.

    Args:
        program: Its pin.
        link: Where the link is pinned.
        cgroup: A cgroup v2 directory, for programs on packets that leave one; others are attached where their section says.

    Raises:
        KernelError: The kernel refused; nothing is attached that was not.
    """
    held = check(libbpf().bpf_obj_get(os.fsencode(program)), f"open {program}")
    try:
        made = _linked(lambda: _link_to_cgroup(held, cgroup) if cgroup else _link(held), program.name)
        try:
            check(libbpf().bpf_obj_pin(made, os.fsencode(link)), f"pin {program.name} at {link}")
        finally:
            os.close(made)
    finally:
        os.close(held)


def _linked(link: Callable[[], int], name: str) -> int:
    deadline = time.monotonic() + _DETACHED_AFTER_MAX_S
    while (made := link()) < 0:
        if c.get_errno() not in _STILL_ATTACHED or time.monotonic() > deadline:
            raise KernelError(c.get_errno(), f"attach {name}")
        time.sleep(_STEP_S)
    return made


def _link(program: int) -> int:
    made: int = libbpf().bpf_raw_tracepoint_open(None, program)  # the kernel knows the hook since it was loaded
    return made


def _link_to_cgroup(program: int, cgroup: Path) -> int:
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made: int = libbpf().bpf_link_create(program, fd, _CGROUP_EGRESS, None)
    finally:
        os.close(fd)
    return made
