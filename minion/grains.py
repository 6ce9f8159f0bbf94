"""Facts about this machine that the hello carries: what an operator selects and reads by."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["boot_id", "grains"]


def boot_id() -> str:
    """Return the kernel's id of this boot. Source: proc_sys_kernel(5), random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def grains() -> dict[str, str]:
    """Return facts, by Salt's names: os, osrelease, kernelrelease, cpuarch, num_cpus, mem_total, host, lsm."""
    release = _os_release()
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {
        "os": release.get("NAME", "unknown"),
        "osrelease": release.get("VERSION_ID", "unknown"),
        "kernelrelease": platform.release(),
        "cpuarch": platform.machine(),
        "num_cpus": str(os.cpu_count() or 0),
        "mem_total": str(memory_mib),
        "host": platform.node(),
        "python": platform.python_version(),
        "lsm": _first_line(Path("/sys/kernel/security/lsm")),
    }


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:  # minimal images have none; the grain then says unknown
        return {}


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # securityfs is not mounted
        return "unknown"
