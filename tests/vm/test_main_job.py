"""The main job on the kernels that nodes have: a master here, a minion in a VM, ordinary programs refused there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vm.lab import K61, K612, Lab, Vm

ROOT = Path(__file__).resolve().parents[2]
GARRISON = str(Path(sys.prefix) / "bin" / "garrison")
LOAD_TIMEOUT_S = 300  # every program is verified before the node knocks: a minute on a busy emulated CPU
KERNELS = [pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")]
CONNECT = (
    'use IO::Socket::INET; IO::Socket::INET->new(PeerAddr => "10.0.2.2:%d", Timeout => 5) or do { print STDERR "$!\\n"; exit 1 };'
)


class Master:
    """A master on this machine that a VM reaches as 10.0.2.2."""

    def __init__(self, work: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.work, self.directory = work, work / "m"
        self.env = {**os.environ, "GARRISON_SOCKET": str(self.directory / "api.sock"), "NO_COLOR": "1", "COLUMNS": "200"}
        keys = ("--dir", str(self.directory), "--keys", str(work / "keys"))
        self.cli("init", *keys, "--advertise", f"tcp://10.0.2.2:{self.port}")
        with (work / "master.log").open("wb") as log:
            argv = [GARRISON, "master", "--dir", str(self.directory), "--listen", f"tcp://127.0.0.1:{self.port}"]
            self.process = subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def cli(self, *argv: str, ok: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run([GARRISON, *argv], check=False, capture_output=True, text=True, env=self.env, timeout=60)
        assert done.returncode in ok, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def events(self, *argv: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.cli("events", "--json", *argv).splitlines()]

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(timeout=20) == 0


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    made = Master(tmp_path)
    yield made
    made.close()


def until(look: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    """Return the first true answer; the last failure is shown when none comes."""
    deadline, last = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        try:
            if answer := look():
                return answer
        except (AssertionError, KeyError) as err:
            last = str(err)
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:g} s: {what}\n{last}")


def join(master: Master, vm: Vm) -> None:
    """Start a minion in ``vm`` and accept it by the fingerprint that it shows itself."""
    vm.put("/etc/garrison/join.json", (master.directory / "join.json").read_bytes(), 0o600)
    vm.put("/etc/secret/api.key", "not for everybody\n")
    shown = json.loads(vm.check("garrison", "minion", "--node", "edge-1", "key", "--json"))["fingerprint"]
    vm.start("garrison", "minion", "--join", "/etc/garrison/join.json", "--node", "edge-1", log="/tmp/minion.log")
    until(lambda: shown in master.cli("nodes", "pending", "--json"), "the node knocks", LOAD_TIMEOUT_S)
    master.cli("nodes", "accept", "edge-1", "--key", shown)
    until(lambda: json.loads(master.cli("nodes", "--json"))["nodes"][0]["state"] == "online", "the node is on line")


@pytest.mark.parametrize("kernel", KERNELS)
def test_node_on_this_kernel_enforces_reports_and_answers(lab: Lab, master: Master, kernel) -> None:
    vm = lab.boot("edge-1", kernel, reach_host=True)
    join(master, vm)
    connect = ("perl", "-e", CONNECT % master.port)
    for control in (("base64", "/etc/hostname"), ("cat", "/etc/secret/api.key"), connect):
        assert vm.run(*control).returncode == 0, f"without policy {control[0]} works"

    where = ("--states", str(ROOT / "states"), "--keys", str(master.work / "keys"), "--inventory", str(ROOT / "inventory"))
    master.cli("apply", *where, "--limit", "edge-1", "--wait", "60")

    for violation in (("sh", "-c", "base64 /etc/hostname"), ("cat", "/etc/secret/api.key"), connect):
        done = vm.run(*violation)
        assert done.returncode != 0
        assert "not permitted" in done.stderr, violation
    assert vm.run("sha256sum", "/etc/secret/api.key").returncode == 0
    assert vm.run("cat", "/etc/hostname").returncode == 0
    blocked = until(lambda: found if len(found := alerts(master)) >= 3 else None, "three alerts")
    assert {"exec", "open", "connect"} <= {event["operation"] for event in blocked}
    assert all(event["rule"].startswith(f"{event['policy']}/") for event in blocked)
    assert kernel.kernel in master.cli("run", "edge-1", "--inventory", str(ROOT / "inventory"), "--", "uname", "-r")


def alerts(master: Master) -> list[dict[str, Any]]:
    return [event for event in master.events("--kind", "alert") if event["verdict"] == "block"]
