"""A real master's directory and process, on a port of its own, and what tests ask of it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.peer import Peer
from garrison.cli.client import open_api
from garrison.common.errors import LinkError
from garrison.common.frames import Welcome

__all__ = ["GARRISON", "Master", "running_master"]

GARRISON = str(Path(sys.prefix) / "bin" / "garrison")


@functools.cache
def initialised() -> Path:
    """A folder with a fresh master's directory and keys, to be copied: making keys is not what these tests are about."""
    work = Path(tempfile.mkdtemp(prefix="gm-"))
    atexit.register(shutil.rmtree, work)
    argv = [GARRISON, "init", "--dir", str(work / "m"), "--keys", str(work / "keys"), "--advertise", "tcp://127.0.0.1:1"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return work


class Master:
    """A master's directory and process."""

    def __init__(self, work: Path) -> None:
        self.work, self.directory = work, work / "m"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GARRISON_")},
            "GARRISON_SOCKET": str(self.directory / "api.sock"),
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }
        self.api = open_api(self.directory / "api.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.peers: list[Peer] = []
        shutil.copytree(initialised(), work, dirs_exist_ok=True)
        self.server_key = json.loads((self.directory / "join.json").read_text())["server_key"].encode()

    def join_file(self) -> Path:
        """A join file that leads to this master's port."""
        path = self.work / "join.json"
        facts = json.loads((self.directory / "join.json").read_text())
        path.write_text(json.dumps({**facts, "masters": [self.endpoint]}))
        path.chmod(0o600)
        return path

    def cli(self, *args: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([GARRISON, *args], capture_output=True, text=True, env=self.env, timeout=60, check=False)
        assert done.returncode in ok, f"garrison {args}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()}"
        return done

    def log(self) -> str:
        path = self.work / "master.log"
        return path.read_text() if path.exists() else ""

    def start(self, *args: str) -> None:
        argv = [GARRISON, "master", "--dir", str(self.directory), "--listen", self.endpoint, *args]
        with (self.work / "master.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.until(self.answers, "the master answers")

    def answers(self) -> bool:
        try:
            return self.api.get("/v1/health")["state"] == "ok"
        except LinkError:
            return False

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(timeout=20)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def until(self, look, what: str, timeout_s: float = 20):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if answer := look():
                return answer
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s: {what}\n{self.log()}")

    def peer(self, **how) -> Peer:
        peer = Peer(self.endpoint, self.server_key, **how)
        self.peers.append(peer)
        return peer

    def enrolled(self, name: str = "n1", **hello) -> Peer:
        """A peer whose key was accepted, after its welcome."""
        peer = self.peer(node=name)
        self.api.post(f"/v1/nodes/{name}/accept", {"key": peer.public.decode()})
        peer.connect()
        answer = peer.hello(**hello)
        assert isinstance(answer, Welcome), answer
        return peer

    def nodes(self) -> dict[str, dict]:
        return {n["name"]: n for n in self.api.get("/v1/nodes")["nodes"]}

    def events(self, *args: str) -> list[dict]:
        lines = self.cli("events", "--json", *args).stdout.splitlines() if args else self.api.lines("/v1/events")
        return [json.loads(line) for line in lines]


@contextmanager
def running_master(*args: str) -> Iterator[Master]:
    """Run a fresh master."""
    work = Path(tempfile.mkdtemp(prefix="gm-"))
    made = Master(work)
    try:
        made.start(*args)
        yield made
    finally:
        made.close()
        shutil.rmtree(work)
