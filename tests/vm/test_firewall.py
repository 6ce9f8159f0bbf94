"""The firewall's component tests on the kernels of nodes: packets of every kind, swaps under traffic, restored tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.lab import K61, K612, Lab, Machine

pytestmark = pytest.mark.long

COMPONENT = Path(__file__).resolve().parents[1] / "component"
FILES = ("firewall_nodes.py", "test_firewall.py")
# Ten thousand rules take minutes of emulation, and prove nothing here that they do not prove on this machine.
CHOSEN = "not ten_thousand_rules and not (kernel_drops and audit-]) and not without_nft"


@pytest.mark.parametrize("machine", [pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")])
def test_packets_are_judged_told_and_counted_as_on_the_machine_that_builds(lab: Lab, machine: Machine) -> None:
    vm = lab.boot("firewall", machine)
    for name in FILES:
        vm.put(f"/root/t/component/{name}", (COMPONENT / name).read_text())

    done = vm.run(
        "env", "PYTHONPATH=/root/t", "python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
        "-k", CHOSEN, "/root/t/component/test_firewall.py", timeout_s=900,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout
