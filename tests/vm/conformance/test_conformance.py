"""Published policies hold as their authors say, on every kernel: what is refused, what passes, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vm.conformance.cases import CASES, FILES
from vm.conformance.model import Case
from vm.conformance.player import Player, build_probe
from vm.lab import K61, K612, Lab


@pytest.fixture(scope="module", params=[pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")])
def player(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    """A VM that all cases of one kernel share: each applies its own policies."""
    with Lab() as lab:
        vm = lab.boot("conform", request.param)
        yield Player(vm, build_probe(tmp_path_factory.mktemp("probe")), FILES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_policy_refuses_passes_and_tells_what_its_author_says(player: Player, case: Case) -> None:
    faults = player.faults(case)

    assert not faults, "\n".join(faults)
