"""The shipped units under a real systemd: hardened, watched over, and all still works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vm.lab import Lab, Machine, Vm

pytestmark = pytest.mark.long

CHECKOUT = Path(__file__).resolve().parents[2]
SYSTEMD = Machine("6.1")


def install(vm: Vm, unit: Path) -> None:
    text = unit.read_text().replace("/opt/garrison/bin/garrison", "/usr/local/bin/garrison")
    vm.put(f"/etc/systemd/system/{unit.name}", text)
    vm.check("systemctl", "daemon-reload")


def test_minion_runs_under_its_unit_with_every_backend_and_comes_back_when_it_hangs(lab: Lab) -> None:
    vm = lab.boot("edge-1", SYSTEMD)
    install(vm, CHECKOUT / "minion/garrison-minion.service")

    vm.check("systemctl", "start", "garrison-minion", timeout_s=120)

    assert vm.check("systemctl", "is-active", "garrison-minion").strip() == "active"
    status = vm.until(lambda: json.loads(vm.run("garrison", "minion", "status", "--json").stdout or "{}"), "the status")
    assert status["running"]
    assert {part["name"]: part["healthy"] for part in status["backends"]} == dict.fromkeys(names(status["backends"]), True)
    assert {"fanotify", "cgroup_net", "audit"} <= set(names(status["backends"])), "what hardening leaves"
    assert all(part["healthy"] for part in status["observers"]), status["observers"]
    assert "NoNewPrivileges=yes" in vm.check("systemctl", "show", "garrison-minion", "-p", "NoNewPrivileges")

    first = pid(vm, "garrison-minion")
    vm.check("kill", "-STOP", first)

    vm.until(lambda: pid(vm, "garrison-minion") not in {"0", first}, "the watchdog replaced the hung agent", timeout_s=120)
    vm.until(
        lambda: vm.run("systemctl", "is-active", "garrison-minion").stdout.strip() == "active", "it is ready again", timeout_s=60
    )


def names(parts: list[dict[str, object]]) -> list[str]:
    return [str(part["name"]) for part in parts]


def pid(vm: Vm, unit: str) -> str:
    return vm.check("systemctl", "show", unit, "-p", "MainPID", "--value").strip()


def test_relay_runs_under_its_unit_and_reaches_its_master_and_comes_back_when_it_hangs(lab: Lab) -> None:
    vm = lab.boot("site-1", SYSTEMD)
    install(vm, CHECKOUT / "relay/garrison-relay.service")
    vm.check("garrison", "init", "--advertise", "tcp://127.0.0.1:4515", timeout_s=60)
    vm.start("garrison", "master", log="/run/master.log")
    vm.put("/etc/garrison/relay.toml", 'name = "site-1"\njoin = "/var/lib/garrison/master/join.json"\nlisten = "tcp://*:4516"\n')
    vm.until(lambda: vm.run("garrison", "nodes", "--json").returncode == 0, "the master", timeout_s=60)
    key = json.loads(vm.check("garrison", "relay", "key", "--json", timeout_s=60))["key"]
    vm.check("garrison", "nodes", "accept", "site-1", "--relay", "--key", key, timeout_s=60)

    vm.check("systemctl", "start", "garrison-relay", timeout_s=120)

    def uplink() -> str:
        return str(json.loads(vm.run("garrison", "relay", "status", "--json").stdout or "{}").get("uplink"))

    vm.until(lambda: uplink() == "connected", "the uplink", timeout_s=60)
    first = pid(vm, "garrison-relay")
    vm.check("kill", "-STOP", first)

    vm.until(lambda: pid(vm, "garrison-relay") not in {"0", first}, "the watchdog replaced the hung relay", timeout_s=120)
    vm.until(lambda: uplink() == "connected", "the uplink of the next one", timeout_s=60)
