"""The shipped unit under a real systemd: hardened, watched over, and every backend still works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vm.lab import Lab, Machine

pytestmark = pytest.mark.long

UNIT = Path(__file__).resolve().parents[2] / "minion" / "garrison-minion.service"
SYSTEMD = Machine("6.1")


def test_minion_runs_under_its_unit_with_every_backend_and_comes_back_when_it_hangs(lab: Lab) -> None:
    vm = lab.boot("edge-1", SYSTEMD)
    vm.put(
        "/etc/systemd/system/garrison-minion.service",
        UNIT.read_text().replace("/opt/garrison/bin/garrison", "/usr/local/bin/garrison"),
    )
    vm.check("systemctl", "daemon-reload")

    vm.check("systemctl", "start", "garrison-minion", timeout_s=120)

    assert vm.check("systemctl", "is-active", "garrison-minion").strip() == "active"
    status = vm.until(lambda: json.loads(vm.run("garrison", "minion", "status", "--json").stdout or "{}"), "the status")
    assert status["running"]
    assert {part["name"]: part["healthy"] for part in status["backends"]} == dict.fromkeys(names(status["backends"]), True)
    assert {"fanotify", "cgroup_net", "audit"} <= set(names(status["backends"])), "what hardening leaves"
    assert all(part["healthy"] for part in status["observers"]), status["observers"]
    assert "NoNewPrivileges=yes" in vm.check("systemctl", "show", "garrison-minion", "-p", "NoNewPrivileges")

    first = vm.check("systemctl", "show", "garrison-minion", "-p", "MainPID", "--value").strip()
    vm.check("kill", "-STOP", first)

    vm.until(lambda: pid(vm) not in {"0", first}, "the watchdog replaced the hung agent", timeout_s=120)
    vm.until(
        lambda: vm.run("systemctl", "is-active", "garrison-minion").stdout.strip() == "active", "it is ready again", timeout_s=60
    )


def names(parts: list[dict[str, object]]) -> list[str]:
    return [str(part["name"]) for part in parts]


def pid(vm) -> str:
    return vm.check("systemctl", "show", "garrison-minion", "-p", "MainPID", "--value").strip()
