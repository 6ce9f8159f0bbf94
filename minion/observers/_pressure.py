"""Reads the kernel's pressure stall information: how long tasks waited for CPU, memory or I/O.

Source: Documentation/accounting/psi.rst: one line ``some``, one ``full``, each ``avg10= avg60= avg300= total=``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["parse_pressure", "read_pressure"]

ROOT: Final = Path("/proc/pressure")
_RESOURCES: Final = ("cpu", "memory", "io")


def parse_pressure(text: str) -> dict[str, float]:
    """Return ``{"some_avg10": percent, "full_avg10": percent}`` of one pressure file; what is malformed is left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        kind, *fields = line.split()
        for field in fields:
            name, _, value = field.partition("=")
            if kind in {"some", "full"} and name == "avg10":
                try:
                    found[f"{kind}_avg10"] = float(value)
                except ValueError:  # no kernel writes this; leaving the figure out is the honest answer
                    continue
    return found


def read_pressure(root: Path = ROOT) -> dict[str, float]:
    """Return ``psi_<cpu|memory|io>_<some|full>_avg10``, in percent of the last ten seconds.

    Without ``psi_cpu_full_avg10``: for the whole machine it is 0 by definition. Empty on a kernel without PSI, or booted with
    ``psi=0`` (then reading fails with EOPNOTSUPP).
    """
    figures: dict[str, float] = {}
    for resource in _RESOURCES:
        try:
            text = (root / resource).read_text(encoding="ascii", errors="replace")
        except OSError:  # see above: absent, and so are the figures
            continue
        figures |= {f"psi_{resource}_{name}": value for name, value in parse_pressure(text).items()}
    figures.pop("psi_cpu_full_avg10", None)
    return figures
