"""A master and minions on lab hosts, driven through the real command line: what the demo and the component tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lab.hosts import CHECKOUT, Fabric, Host

__all__ = ["Fleet", "FleetError"]

PORT = 4515
GARRISON = str(Path(sys.prefix) / "bin" / "garrison")
_T = TypeVar("_T")

# TOML values; a test's own settings replace them. Hosts share one kernel, and its security modules guard a whole machine: the
# kernel enforcer of one host would be that of all, so hosts do without it. Tests in VMs have it.
_MINION_SETTINGS = {
    "backends": '["fanotify", "cgroup_net", "syscalls", "audit"]',
    "join": '"/etc/garrison/join.json"',
    "resource_interval_s": "2",
    "self_interval_s": "5",
    "shell_scope": '"all"',
    "error_files": '["/var/log/app.log"]',
}


class FleetError(Exception):
    """A step did not come about; the text holds what was seen instead."""


class Fleet:
    """A fleet under test.

    Args:
        fabric: Where the hosts are.
        work: Folder for the master's directory, keys and logs; a short path, since it holds a socket.
        states: Folder with ``top.yml``.
        inventory: Inventory folder or file.
    """

    def __init__(
        self, fabric: Fabric, work: Path, *, states: Path = CHECKOUT / "states", inventory: Path = CHECKOUT / "inventory"
    ) -> None:
        self.fabric, self.work, self.states, self.inventory = fabric, work, states, inventory
        self.directory, self.keys = work / "master", work / "keys"
        self.endpoint = f"tcp://{fabric.gateway}:{PORT}"
        self.master: subprocess.Popen[bytes] | None = None
        self.minions: dict[str, subprocess.Popen[bytes]] = {}

    # ---- programs ----------------------------------------------------------------------------------------------------
    @property
    def env(self) -> dict[str, str]:
        """Environment in which ``garrison`` means this fleet."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GARRISON_")}
        return {
            **clean,
            "GARRISON_SOCKET": str(self.directory / "api.sock"),
            "GARRISON_INVENTORY": str(self.inventory),
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }

    def cli(
        self, *args: str, ok: tuple[int, ...] = (0,), timeout_s: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run ``garrison args`` as the operator would, beside the master.

        Raises:
            FleetError: It ended with an exit code outside ``ok``.
        """
        done = subprocess.run(
            [GARRISON, *args], check=False, capture_output=True, text=True, env=self.env, timeout=timeout_s, input=stdin
        )
        if done.returncode not in ok:
            raise FleetError(f"garrison {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def init(self) -> None:
        """Make the master's directory and keys."""
        self.cli("init", "--dir", str(self.directory), "--keys", str(self.keys), "--advertise", self.endpoint)

    def apply(self, *args: str, states: Path | None = None, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Sign the states with this fleet's author key and assign them."""
        return self.cli("apply", "--states", str(states or self.states), "--keys", str(self.keys), *args, ok=ok)

    def start_master(self) -> None:
        """Start the master and wait until it answers."""
        argv = [GARRISON, "master", "--dir", str(self.directory), "--listen", f"tcp://*:{PORT}"]
        with (self.work / "master.log").open("ab") as log:
            self.master = subprocess.Popen(
                self.fabric.argv(argv), env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.until(lambda: self.cli("nodes", "--json", ok=(0, 1)).returncode == 0, "the master answers", timeout_s=30)

    def end_master(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the master a signal and wait for its end; returns its exit code."""
        assert self.master is not None
        self.master.send_signal(how)
        return self.master.wait(timeout=20)

    def start_minion(self, host: Host, **settings: str) -> None:
        """Start the minion of a host, from a config file as an operator would; ``settings`` are TOML values."""
        host.write("/etc/garrison/join.json", (self.directory / "join.json").read_text(), 0o600)
        held = {**_MINION_SETTINGS, "node": f'"{host.name}"', "cgroup": f'"{host.cgroup}"', **settings}
        host.write("/etc/garrison/minion.toml", "".join(f"{key} = {value}\n" for key, value in held.items()))
        self.minions[host.name] = host.start(GARRISON, "minion", log=self.work / f"{host.name}.log", env=self.env)

    def end_minion(self, host: Host, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a host's minion a signal and wait until it has gone; returns its exit code."""
        pid = self.minion_status(host)["pid"]
        host.run("kill", f"-{how.name.removeprefix('SIG')}", str(pid))
        return self.minions.pop(host.name).wait(timeout=20)

    def minion_status(self, host: Host) -> dict[str, Any]:
        """Return ``garrison minion status --json`` as the host tells it."""
        done = host.run(GARRISON, "minion", "status", "--json")
        if done.returncode not in (0, 1):
            raise FleetError(f"{host.name}: minion status: {done.stderr}")
        return json.loads(done.stdout) if done.stdout else {}

    # ---- what the master knows ---------------------------------------------------------------------------------------
    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the master's nodes by name."""
        return {node["name"]: node for node in json.loads(self.cli("nodes", "--json").stdout)["nodes"]}

    def events(self, *args: str) -> list[dict[str, Any]]:
        """Return stored events, oldest first; ``args`` as for ``garrison events``."""
        return [json.loads(line) for line in self.cli("events", "--json", *args).stdout.splitlines()]

    def join(self, host: Host, **settings: str) -> None:
        """Start a host's minion and accept its key, by the fingerprint that the host itself shows."""
        self.start_minion(host, **settings)
        shown = self.until(lambda: self.minion_status(host).get("fingerprint"), f"{host.name} has a key")
        self.until(lambda: shown in self.cli("nodes", "pending", "--json").stdout, f"{host.name}'s key is pending")
        self.cli("nodes", "accept", host.name, "--key", shown)
        self.until(lambda: self.nodes()[host.name]["state"] == "online", f"{host.name} is online")

    # ---- waiting and ending --------------------------------------------------------------------------------------------
    def until(self, look: Callable[[], _T], what: str, timeout_s: float = 60) -> _T:
        """Return the first true answer of ``look``.

        Raises:
            FleetError: It did not come in time; the ends of all logs are in the text.
        """
        deadline, last = time.monotonic() + timeout_s, ""
        while time.monotonic() < deadline:
            try:
                answer = look()
            except (FleetError, KeyError, FileNotFoundError) as err:
                last = f" ({type(err).__name__}: {err})"
            else:
                if answer:
                    return answer
            time.sleep(0.1)
        raise FleetError(f"not within {timeout_s:g} s: {what}{last}\n" + "\n".join(self.log_ends()))

    def log_ends(self, lines: int = 15) -> Iterator[str]:
        """Yield the last lines of every log."""
        for path in sorted(self.work.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            yield from (f"--- {path.name}", *tail)

    def close(self) -> None:
        """End everything. Idempotent."""
        if self.master is not None and self.master.poll() is None:
            self.master.terminate()
            try:
                self.master.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.master.kill()
                self.master.wait()
        self.fabric.close()
        for process in self.minions.values():
            process.wait()
