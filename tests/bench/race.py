"""Ten million evaluations of the kernel enforcer by tasks that race each other, and how many were wrong; in a VM, for long.

``tests/vm/race.py`` says what races what. ``evaluations`` is the enforcer's own count of decisions, ``operations`` what the
tasks checked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from vm.lab import Lab
from vm.race import run_race

EVALUATIONS = 10_000_000
TIMEOUT_S = 4 * 3600.0


def run() -> dict[str, float | int | str]:
    """Race."""
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        return run_race(lab, Path(folder), EVALUATIONS, timeout_s=TIMEOUT_S)


def table(figures: Mapping[str, float | int | str]) -> str:
    """Return the figures as Markdown."""
    said = ("evaluations", "operations", "swaps", "walks", "refused", "wrong", "closed", "table_errors")
    return "\n".join(["| figure |  |", "| --- | --- |", *(f"| `{name}` | {figures[name]:,} |" for name in said)])
