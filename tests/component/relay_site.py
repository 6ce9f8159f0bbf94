"""A master, a relay and nodes behind it, all real processes on this machine, driven through the command line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

from component.test_master import GARRISON, Master
from garrison.common.names import fingerprint
from garrison.common.trust.curve import ensure_curve_key

SOURCE = str(Path(__file__).resolve().parents[1] / "fakes/source.py")


class Site:
    """One relay, ``site-1``, accepted by a master of its own."""

    def __init__(self, work: Path, *master_args: str) -> None:
        self.work, self.master = work, Master(work / "a")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.directory, self.runtime = work / "relay", work / "relay-run"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.direct, self.by_relay = work / "direct.json", work / "site.json"
        self.master_args = master_args
        self.cli, self.until = self.master.cli, self.master.until
        self.master.start(*master_args)
        held = json.loads((self.master.directory / "join.json").read_text())
        self.direct.write_text(json.dumps(held | {"masters": [self.master.endpoint]}))
        shown = json.loads(self.relay_cli("key", "--json").stdout)
        assert shown["relay"] == "site-1"
        self.relay_key = shown["key"].encode()
        self.cli("nodes", "accept", "site-1", "--relay", "--key", shown["key"])
        self.by_relay.write_text(self.relay_cli("join", "--advertise", f"tcp://127.0.0.1:{self.port}").stdout)

    # ---- processes -----------------------------------------------------------------------------------------------------
    def relay_cli(self, *args: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        return self.cli("relay", *self._relay_flags(), *args, ok=ok)

    def _relay_flags(self) -> list[str]:
        flags = {"--dir": self.directory, "--runtime-dir": self.runtime, "--join": self.direct, "--name": "site-1"}
        flags["--listen"] = f"tcp://127.0.0.1:{self.port}"
        return [str(part) for pair in flags.items() for part in pair]

    def _start(self, name: str, argv: list[str]) -> None:
        with (self.master.work / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(argv, env=self.master.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start_relay(self, settings: str = "") -> None:
        config = self.work / "relay.toml"
        config.write_text(settings)
        self._start("relay", [GARRISON, "relay", "--config", str(config), *self._relay_flags()])

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(how)
        return process.wait(timeout=30)

    def accept(self, node: str, via: str = "site-1") -> None:
        """Accept a node's key, made now when it has none, and let ``via`` carry for it."""
        (self.work / node).mkdir(mode=0o700, exist_ok=True)
        public, _ = ensure_curve_key(self.work / node / "curve.key")
        self.cli("nodes", "accept", node, "--key", public.decode(), *(("--via", via) if via else ()))

    def fingerprint(self, node: str) -> str:
        return fingerprint(ensure_curve_key(self.work / node / "curve.key")[0])

    def start_source(self, node: str, count: int, per_s: float = 500, join: Path | None = None, pad_bytes: int = 0) -> None:
        argv = [sys.executable, SOURCE, str(self.work / node), str(join or self.by_relay), node]
        argv += [str(count), str(per_s), str(pad_bytes)]
        self._start(node, argv)

    def start_minion(self, node: str, join: Path | None = None) -> None:
        flags = {"--dir": self.work / node, "--runtime-dir": self.work / f"{node}-run", "--join": join or self.by_relay}
        flags |= {"--node": node, "--backends": "audit"}
        self._start(node, [GARRISON, "minion", *(str(part) for pair in flags.items() for part in pair)])

    def start_master(self) -> None:
        self.master.start(*self.master_args)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.master.close()

    # ---- what is known -------------------------------------------------------------------------------------------------
    def relay_status(self) -> dict:
        shown = self.relay_cli("status", "--json", ok=(0, 1, 2)).stdout  # 2: it has not told anything yet
        return json.loads(shown) if shown else {"uplink": "", "nodes": [], "spool": {"pending": {}, "gaps": 0}}

    def minion_status(self, node: str) -> dict:
        done = self.cli(
            "minion",
            "--dir",
            str(self.work / node),
            "--runtime-dir",
            str(self.work / f"{node}-run"),
            "status",
            "--json",
            ok=(0, 1, 2),
        )
        return json.loads(done.stdout) if done.stdout else {}

    def told(self, node: str) -> dict:
        path = self.work / node / "told.json"
        return json.loads(path.read_text()) if path.exists() else {"put": 0, "pending": 0, "cause": ""}

    def numbers(self, node: str) -> Counter[int]:
        """How often the master has each numbered event of a node."""
        lines = self.master.api.lines("/v1/events", node=node, kind="exec", limit=100_000)
        return Counter(json.loads(line)["data"]["n"] for line in lines)

    def all_put(self, node: str, count: int):
        return self.until(lambda: self.told(node)["put"] >= count, f"{node} has made {count} events", 60)

    def all_there(self, node: str, count: int, timeout_s: float = 60) -> None:
        """Wait until the master has events 0 to ``count`` - 1 of a node; each must be there once."""
        self.until(lambda: len(self.numbers(node)) >= count, f"the master has {count} events of {node}", timeout_s)
        numbers = self.numbers(node)
        assert set(numbers) == set(range(count)), f"{node}: missing or foreign"
        assert set(numbers.values()) == {1}, f"{node}: twice: {[n for n, times in numbers.items() if times > 1][:10]}"
