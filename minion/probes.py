"""What a node must still be able to do under new rules: looked at before, and again and again while they are on trial.

Rules of this file:
- What did not work before proves nothing afterwards: only what worked is asked again.
- Each probe does the real thing: a program is started, a file is written, sshd is talked to, a name server answers.
- A probe ends within ``PROBE_MAX_S`` and raises nothing; its answer is empty or says what is wrong.
- The deadman's own start is a probe: rules under which no deadman could be started would never be replaced again.
Owns: the probes. Does not own: how many answers count (``verdict``), the master (``tryout``).
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.minion.arming import DEADMAN, interpreter

__all__ = ["Probe", "Probes", "local_probes"]

Probe = Callable[[], str]
"""Returns what is wrong; empty for nothing."""

_SSH: Final = ("127.0.0.1", 22)
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_SERVER: Final = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)
_DNS_S: Final = 2.0  # all servers together: where none answers, each new policy waits for it
# A query for the name servers of the root: whatever answers, with whatever, can be reached.
_QUERY: Final = b"\x67\x61\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"


class Probes(msgspec.Struct, frozen=True):
    """Probes that are worth asking.

    Attributes:
        asked: By name.
    """

    asked: Mapping[str, Probe]

    def that_work(self) -> Probes:
        """Return those that are good now; all are asked at once."""
        with ThreadPoolExecutor(len(self.asked) or 1) as pool:
            troubles = dict(zip(self.asked, pool.map(lambda probe: probe(), self.asked.values()), strict=True))
        return Probes({name: probe for name, probe in self.asked.items() if not troubles[name]})

    def trouble(self) -> str:
        """Return what the first bad one says; empty when all are good."""
        for name, probe in self.asked.items():
            if trouble := probe():
                return f"{name}: {trouble}"
        return ""


def local_probes(directory: Path) -> Probes:
    """Return the probes of this node.

    Args:
        directory: The agent's data directory.
    """
    return Probes(
        {
            "files": lambda: _files(directory),
            "programs": lambda: _runs(["/bin/sh", "-c", ":"]),
            "deadman": lambda: _runs([*interpreter(), str(DEADMAN), "--check"]),
            "ssh": lambda: _ssh(_SSH),
            "dns": lambda: _dns(_RESOLV_CONF),
        }
    )


def _files(directory: Path) -> str:
    try:
        for path in (Path(os.path.realpath(sys.executable)), directory / "node", directory / "bundles" / "state.json"):
            if path.exists():
                with path.open("rb") as file:
                    file.read(16)
        probe = directory / ".probe"
        probe.write_bytes(b"\n")
        probe.unlink()
    except OSError as err:
        return f"{err.filename}: {err.strerror}"
    return ""


def _runs(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=limits.PROBE_MAX_S, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return f"{argv[0]} does not end"
    except OSError as err:
        return f"{argv[0]} cannot be started: {err.strerror}"
    return f"{argv[0]} ends with {done.returncode}" if done.returncode else ""


def _ssh(address: tuple[str, int]) -> str:
    # Its greeting, not only its port: the kernel accepts for a server that can start no session any more.
    try:
        with socket.create_connection(address, timeout=limits.PROBE_MAX_S) as connection:
            return "" if connection.recv(4) == b"SSH-" else f"port {address[1]} does not greet"
    except OSError as err:
        return f"port {address[1]}: {err.strerror or err}"


def _dns(conf: Path) -> str:
    try:
        servers = _SERVER.findall(conf.read_text(encoding="utf-8", errors="replace"))
    except OSError as err:
        return f"{conf}: {err.strerror}"
    trouble = f"{conf} names no server"
    for server in servers:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.settimeout(_DNS_S / max(len(servers), 1))
                asking.connect((server, 53))
                asking.send(_QUERY)
                if asking.recv(512)[:2] == _QUERY[:2]:
                    return ""
        except OSError as err:
            trouble = f"{server}: {err.strerror or err}"
    return trouble
