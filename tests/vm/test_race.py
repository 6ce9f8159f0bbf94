"""No verdict is wrong while tasks, renames, mounts and switches of rules race each other. Much longer: ``./dev bench race``."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.lab import Lab
from vm.race import run_race

pytestmark = pytest.mark.long

EVALUATIONS = 100_000


def test_no_verdict_is_wrong_under_races(lab: Lab, tmp_path: Path) -> None:
    figures = run_race(lab, tmp_path, EVALUATIONS, timeout_s=500)

    assert (figures["wrong"], figures["first_wrong"], figures["table_errors"]) == (0, "", 0), figures
    assert figures["workers"] == 4
    assert figures["evaluations"] >= EVALUATIONS
    assert figures["swaps"] > 1
    assert 0 < figures["refused"] < figures["evaluations"]
