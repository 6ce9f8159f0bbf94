"""Hosts made of namespaces: each with its own network, mounts, PIDs, hostname and cgroup, root an overlay on this machine's.

Rules of this file:
- A host sees this machine's programs and none of its changes come back: the upper layer is a tmpfs that goes with the host.
- Hosts hang on a bridge in a network namespace of their own; nothing is reachable from outside, nothing reaches out.
- Everything is named after a tag, so that a run cleans up exactly what it made, also after a crash (``sweep``).
Needs root and cgroup v2. One kernel serves all hosts: BPF programs are told apart by cgroup, fanotify marks by mount.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["Fabric", "Host", "LabError", "cgroup2_mount", "sweep"]

CHECKOUT = Path(__file__).resolve().parents[2]
_NET = "10.213.77"

_CUT = """
table bridge cut-{port} {{
  chain inbound {{ type filter hook prerouting priority -300; iifname "{port}" drop; }}
  chain outbound {{ type filter hook postrouting priority 300; oifname "{port}" drop; }}
}}
"""

# The first process of a host.
_INIT = Path(__file__).with_name("host-init")


class LabError(Exception):
    """A host could not be made; the text holds what the command said."""


def cgroup2_mount() -> Path:
    """Return where cgroup v2 is mounted.

    Raises:
        LabError: It is not.
    """
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise LabError("cgroup v2 is not mounted; hosts need it to tell their processes apart")


def _run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Host:
    """One host. Made by ``Fabric.host``.

    Attributes:
        name: Its hostname.
        address: Its IPv4 address on the fabric.
        cgroup: Its cgroup, as seen on this machine and in the host.
        pid: First process, as seen from this machine.
    """

    def __init__(self, fabric: Fabric, name: str, number: int) -> None:
        self.name, self.address = name, f"{_NET}.{number + 1}"
        self.cgroup = fabric.cgroup / name
        self._netns, self.port = f"{fabric.tag}-{name}", f"v{number}"
        self._base = fabric.base / name
        self._base.mkdir(parents=True, exist_ok=True)
        self.cgroup.mkdir(parents=True, exist_ok=True)
        _run("ip", "netns", "add", self._netns)
        # Made in the fabric under names of its own and then moved: older kernels look for the names on this machine too.
        _run("ip", "-n", fabric.netns, "link", "add", self.port, "type", "veth", "peer", "name", f"{self.port}p")
        _run("ip", "-n", fabric.netns, "link", "set", f"{self.port}p", "netns", self._netns)
        _run("ip", "-n", self._netns, "link", "set", f"{self.port}p", "name", "eth0")
        _run("ip", "-n", fabric.netns, "link", "set", self.port, "master", "br0", "up")
        _run("ip", "-n", self._netns, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _run("ip", "-n", self._netns, "link", "set", "eth0", "up")
        self._log = (self._base.parent / f"{name}.log").open("wb")
        unshare = ["unshare", "--mount", "--uts", "--pid", "--ipc", "--fork", "--kill-child", "sh", str(_INIT)]
        self._outer = subprocess.Popen(
            self._in_cgroup(["nsenter", f"--net=/run/netns/{self._netns}", *unshare]),
            env={**os.environ, "BASE": str(self._base), "NAME": name, "BINDS": " ".join(_binds())},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._wait_ready()

    def _wait_ready(self) -> int:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if self._outer.poll() is not None:
                raise LabError(f"host {self.name}: {(self._base.parent / f'{self.name}.log').read_text().strip()}")
            children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/root/run/host-ready").exists():
                return int(children[0])
            time.sleep(0.01)
        raise LabError(f"host {self.name} was not ready within 15 s")

    def argv(self, argv: list[str]) -> list[str]:
        """Return the command line that runs ``argv`` inside the host, in its cgroup, as root."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--wdns=/", "--"]
        return self._in_cgroup([*enter, *argv])

    def _in_cgroup(self, argv: list[str]) -> list[str]:
        # Everything of a host is in its cgroup, also what only enters it: so that ``sweep`` finds it after a crash.
        return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(self.cgroup), *argv]

    def run(
        self, *argv: str, timeout_s: float = 30, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the host and wait for it; output is captured, the exit code is not checked."""
        return subprocess.run(
            self.argv(list(argv)), check=False, capture_output=True, text=True, timeout=timeout_s, input=stdin, env=env
        )

    def start(self, *argv: str, log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a program in the host in the background, output to ``log``."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.argv(list(argv)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )

    def path(self, inside: str) -> Path:
        """Return a path of the host as this machine reaches it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file in the host."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def close(self) -> None:
        """Kill everything in the host and give back what it held. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._outer.pid, signal.SIGKILL)
        self._outer.wait()
        self._log.close()
        _remove_cgroup(self.cgroup)
        _run("ip", "netns", "del", self._netns, check=False)


class Fabric:
    """A bridge in its own network namespace, with hosts on it.

    Args:
        tag: At most 10 letters and digits; names every namespace, cgroup and folder.
        base: Folder for logs and mount points.
    """

    def __init__(self, tag: str, base: Path) -> None:
        if os.geteuid() != 0:
            raise LabError("hosts need root: namespaces, overlay mounts and cgroups")
        self.tag, self.base, self.netns = tag, base, f"{tag}-fab"
        self.cgroup = cgroup2_mount() / tag
        self.gateway = f"{_NET}.254"
        self.hosts: dict[str, Host] = {}
        sweep(tag)
        base.mkdir(parents=True, exist_ok=True)
        self.cgroup.mkdir(exist_ok=True)
        _run("ip", "netns", "add", self.netns)
        _run("ip", "-n", self.netns, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        _run("ip", "-n", self.netns, "addr", "add", f"{self.gateway}/24", "dev", "br0")
        _run("ip", "-n", self.netns, "link", "set", "br0", "up")
        _run("ip", "-n", self.netns, "link", "set", "lo", "up")

    def host(self, name: str) -> Host:
        """Make and start one more host."""
        host = self.hosts[name] = Host(self, name, len(self.hosts) + 1)
        return host

    def argv(self, argv: list[str]) -> list[str]:
        """Return the command line that runs ``argv`` on the fabric itself (address ``gateway``), on this machine's files."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--", *argv]

    def cut(self, host: Host) -> None:
        """Drop every packet of ``host`` without a word to either side: what a dead radio link looks like."""
        rules = _CUT.format(port=host.port)
        done = subprocess.run(self.argv(["nft", "-f", "-"]), input=rules, text=True, capture_output=True, check=False)
        if done.returncode:
            raise LabError(f"nft: {done.stderr.strip()}")

    def heal(self, host: Host) -> None:
        """Undo ``cut``."""
        _run(*self.argv(["nft", "delete", "table", "bridge", f"cut-{host.port}"]))

    def close(self) -> None:
        """Close all hosts and remove the bridge. Idempotent."""
        for host in self.hosts.values():
            host.close()
        self.hosts.clear()
        sweep(self.tag)


def sweep(tag: str) -> None:
    """Remove what a run of this tag left behind: processes in its cgroups, namespaces, cgroups."""
    top = cgroup2_mount() / tag
    if top.is_dir():
        for child in [*(p for p in top.iterdir() if p.is_dir()), top]:
            _remove_cgroup(child)
    for line in _run("ip", "netns", "list", check=False).splitlines():
        if line.split()[0].startswith(f"{tag}-"):
            _run("ip", "netns", "del", line.split()[0], check=False)


def _remove_cgroup(path: Path) -> None:
    deadline = time.monotonic() + 5
    while path.is_dir():
        for inner in [p for p in path.iterdir() if p.is_dir()]:
            _remove_cgroup(inner)
        with contextlib.suppress(FileNotFoundError):
            for pid in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    if int(pid):  # 0: a process of another PID namespace; its own host kills it
                        os.kill(int(pid), signal.SIGKILL)
        try:
            path.rmdir()
        except OSError as err:  # dying processes hold it for some milliseconds
            if time.monotonic() > deadline:
                raise LabError(f"cgroup {path} cannot be removed: {err}") from err
            time.sleep(0.01)


def _binds() -> list[str]:
    """Folders that a host needs and would not see: on another file system than /, or where a host mounts its own."""
    root = Path("/").stat().st_dev
    wanted = {str(CHECKOUT), sys.prefix, sys.base_prefix}
    return sorted(p for p in wanted if Path(p).stat().st_dev != root or p.startswith(("/tmp/", "/run/")))
