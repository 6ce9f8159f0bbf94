"""Latencies of any number are kept small and add up; figures of pools add up."""

import random

import pytest

from garrison.minion.simulator.figures import Figures, Latencies


def test_percentiles_are_exact_to_two_percent():
    chance = random.Random(1)  # noqa: S311 - repeatable, hides nothing
    seconds = [chance.uniform(0.0001, 3.0) * (n % 7 + 1) for n in range(10_000)]
    latencies = Latencies()
    for one in seconds:
        latencies.add(one)

    for percent in (1, 50, 99, 100):
        exact = sorted(seconds)[max(0, round(len(seconds) * percent / 100) - 1)]
        assert latencies.percentile(percent) == pytest.approx(exact, rel=0.021)


def test_no_latency_has_no_percentile():
    assert Latencies().percentile(99) == 0.0


def test_latencies_of_two_pools_are_those_of_one():
    whole, first, second = Latencies(), Latencies(), Latencies()
    for number in range(1, 1_000):
        whole.add(number / 100)
        (first if number % 3 else second).add(number / 100)

    first.merge(second)

    assert first == whole


def test_figures_of_a_fleet_are_the_sums_of_its_pools():
    """By reflection, so that a figure that is added later is not forgotten in the sum."""
    numbers = [name for name in Figures.__struct_fields__ if isinstance(getattr(Figures(), name), int)]
    one = Figures(**{name: n + 1 for n, name in enumerate(numbers)})
    other = Figures(**dict.fromkeys(numbers, 100))
    one.refused["clone"], other.refused["clone"], other.refused["busy"] = 1, 2, 3
    other.latencies.add(0.5, 7)

    one.add(other)

    assert [getattr(one, name) for name in numbers] == [n + 101 for n in range(len(numbers))]
    assert one.refused == {"clone": 3, "busy": 3}
    assert one.latencies.classes.total() == 7
