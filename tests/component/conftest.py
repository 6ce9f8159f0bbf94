"""One running fleet for the tests of the main job, and fleets of their own for tests that break things."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.fleet import Fleet
from lab.hosts import Fabric

_numbers = itertools.count()


@pytest.fixture
def make_fleet() -> Iterator[Callable[[int], Fleet]]:
    """Make a started master with so many joined minions, named edge-1, edge-2 …; ended after the test."""
    made: list[tuple[Fleet, Path]] = []

    def make(nodes: int) -> Fleet:
        work = Path(tempfile.mkdtemp(prefix="gt-"))
        fleet = Fleet(Fabric(f"gt{os.getpid() % 100_000}x{next(_numbers) % 10}", work / "hosts"), work)
        made.append((fleet, work))
        fleet.init()
        fleet.start_master()
        for number in range(1, nodes + 1):
            host = fleet.fabric.host(f"edge-{number}")
            host.write("/etc/secret/api.key", "not for everybody\n")
            fleet.join(host)
        return fleet

    yield make
    for fleet, work in made:
        fleet.close()
        shutil.rmtree(work, ignore_errors=True)
