"""Enforcement costs no more for more rules, and a cached open less than with AppArmor. All figures: ``./dev bench enforcer``."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.cost import Cost, rules
from vm.lab import Lab

pytestmark = pytest.mark.long


def test_cost_does_not_grow_with_the_number_of_rules(lab: Lab, tmp_path: Path) -> None:
    cost = Cost(lab, tmp_path)
    none, one, many = cost.none(), cost.garrison(rules(1)), cost.garrison(rules(10_000))

    assert none["open"] < one["open"]  # else nothing was measured
    for what in ("open", "cold", "exec", "linked", "connect", "rename"):
        assert many[what] <= 1.2 * one[what], what
    assert many["map_bytes"] + many["prog_bytes"] <= 32e6


def test_cached_open_costs_less_than_with_apparmor(lab: Lab, tmp_path: Path) -> None:
    cost = Cost(lab, tmp_path)

    assert cost.garrison(rules(100))["open"] < cost.apparmor(100)["open"]
