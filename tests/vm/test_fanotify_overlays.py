"""fanotify on a node with overlays, on kernels whose overlays raise other events for their layers than this machine's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vm.lab import K61, K612, Lab, Machine

_HOLDER = "/opt/test/fanotify_overlays_holder.py"


@pytest.mark.parametrize("machine", [K61, K612], ids=["6.1", "6.12"])
def test_overlays_beside_their_layers_let_pass_and_refuse_without_a_lapse(machine: Machine) -> None:
    with Lab() as lab:
        vm = lab.boot("overlays", machine)
        vm.put(_HOLDER, Path(__file__).with_name("fanotify_overlays_holder.py").read_bytes())

        said = json.loads(vm.check("python3", _HOLDER, timeout_s=180))
        log = vm.check("dmesg")

    wrong = {path: passed for path, passed in said["passed"].items() if passed == path.endswith("secret")}
    assert wrong == {}
    assert len(said["passed"]) == 24
    assert said["lapses"] == []
    assert [line for line in log.splitlines() if "overlayfs" in line and "depth" not in line] == []
