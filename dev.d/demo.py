"""`./dev demo`: the main job on this machine, with real processes, real keys and real kernel enforcement, in about a minute.

Two hosts made of namespaces, a master, the shipped policies. Every step checks what it shows and the table at the end lists only
what was seen. Ends with exit code 0, or says which step failed and exits 1. Leaves nothing behind unless --keep is given.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.fleet import GARRISON, Fleet, FleetError
from lab.hosts import Fabric, Host, LabError, sweep

TAG = "gdemo"
KEPT = Path("/run/garrison-demo")
COMMANDS_WHILE_CUT = 200
CONNECT = 'use IO::Socket::INET; IO::Socket::INET->new(PeerAddr => "%s", Timeout => 3) or do { print STDERR "$!\\n"; exit 1 };'

console = Console(highlight=False)


class Demo:
    """The steps, in order, and what they proved."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.proven = fleet, list[tuple[str, str]]()
        self.one, self.two = (fleet.fabric.host(name) for name in ("edge-1", "edge-2"))
        for host in (self.one, self.two):
            host.write("/etc/secret/api.key", "not for everybody\n")
            host.write("/var/log/app.log", "")

    def prove(self, promise: str, seen: str) -> None:
        """Note what a step has shown."""
        self.proven.append((promise, seen))
        console.print(f"  [green]✓[/] {promise}: [dim]{escape(seen)}[/]")

    def show(self, host: Host, *argv: str) -> tuple[int, str]:
        """Run a program on a host and print it as a person would see it."""
        done = host.run(*argv)
        said = (done.stdout + done.stderr).strip().splitlines()
        console.print(f"  [cyan]{host.name}$[/] {escape(shlex.join(argv)[:110])}")
        for line in said[:3]:
            console.print(f"    {escape(line[:140])}")
        return done.returncode, " ".join(said)

    # ---- steps -------------------------------------------------------------------------------------------------------
    def join(self) -> None:
        """Keys, master, two nodes."""
        fleet = self.fleet
        fleet.init()
        fleet.start_master()
        fleet.join(self.one)
        fleet.join(self.two)
        states = {name: node["state"] for name, node in fleet.nodes().items()}
        self.prove("two nodes joined, each by the fingerprint it shows itself", str(states))

    def control(self) -> None:
        """Before any policy all of it works: otherwise a refusal later would prove nothing."""
        for name, argv in self.violations().items():
            done = self.one.run(*argv)
            require(done.returncode == 0, f"before any policy, {name} works: {done.stderr}")
        self.prove("without a policy nothing is refused", ", ".join(self.violations()))

    def violations(self) -> dict[str, tuple[str, ...]]:
        """What ordinary programs do against the demo's policies: name → command line."""
        return {
            "exec": ("/usr/bin/bash", "-c", "base64 /etc/hostname"),
            "open": ("/usr/bin/cat", "/etc/secret/api.key"),
            "connect": ("/usr/bin/perl", "-e", CONNECT % f"{self.fleet.fabric.gateway}:4515"),
        }

    def apply(self) -> None:
        """Sign the states and have them enforced."""
        top = self.fleet.states / "top.yml"
        done = self.fleet.apply("--wait", "30")
        for line in (done.stdout + done.stderr).strip().splitlines():
            console.print(f"    {escape(line[:150])}")
        nodes = self.fleet.nodes()
        require(
            all(n["generation"] == 1 and n["apply_state"] == "applied" for n in nodes.values()),
            f"both enforce generation 1: {nodes}",
        )
        self.prove(f"{top.name} signed, sent and enforced", f"generation 1 on {', '.join(sorted(nodes))}")

    def enforce(self) -> None:
        """The kernel refuses a program, an open and a connection; neighbours of each go on."""
        for name, argv in self.violations().items():
            code, said = self.show(self.one, *argv)
            require(code != 0 and "not permitted" in said, f"{name} is refused with EPERM: exit {code}: {said}")
        allowed = {
            "another program": ("/usr/bin/md5sum", "/etc/hostname"),
            "the one program that may": ("/usr/bin/sha256sum", "/etc/secret/api.key"),
            "another client": ("/usr/bin/bash", "-c", f"exec 3<>/dev/tcp/{self.fleet.fabric.gateway}/4515"),
        }
        for name, argv in allowed.items():
            done = self.one.run(*argv)
            require(done.returncode == 0, f"{name} works: {done.stderr}")
        self.prove(
            "a program, a file open and a connection refused by the kernel", "EPERM three times; their neighbours unharmed"
        )

    def alerts(self) -> None:
        """Every refusal arrived with the rule that decided."""

        def three() -> dict[str, dict[str, str]]:
            blocked = [e for e in self.fleet.events("--kind", "alert", "--node", "edge-1") if e["verdict"] == "block"]
            found = {e["operation"]: e for e in blocked}
            return found if {"exec", "open", "connect"} <= set(found) else {}

        found = self.fleet.until(three, "an alert for each refusal")
        for operation in ("exec", "open", "connect"):
            alert = found[operation]
            require(bool(alert["rule"]) and alert["rule"].startswith(alert["policy"]), f"{operation} names its rule: {alert}")
            console.print(
                f"    {operation:8} {escape(alert['object']):32} by {alert['backend']:10} rule [bold]{escape(alert['rule'])}[/]"
            )
        self.prove("alerts stored with rule ids", ", ".join(found[o]["rule"] for o in ("exec", "open", "connect")))

    def run(self) -> None:
        """A command on both nodes, answered."""
        done = self.fleet.cli("run", "edge", "--", "uname", "-r")
        for line in done.stdout.splitlines():
            console.print(f"    {escape(line)}")
        require(done.stdout.count(os.uname().release) >= len(self.fleet.fabric.hosts), f"both nodes answer: {done.stdout}")
        self.prove("remote command answered by both", f"uname -r: {os.uname().release}")

    def observe(self) -> None:
        """Commands, resources and error lines are collected."""
        with self.one.path("/var/log/app.log").open("a") as log:
            log.write("2026-01-01 ERROR payment: the database went away\n")
        self.one.run("/usr/bin/id", "observed-in-the-demo")
        shell = self.fleet.until(
            lambda: [
                e
                for e in self.fleet.events("--kind", "exec", "--node", "edge-1")
                if "observed-in-the-demo" in e["actor"].get("args", ())
            ],
            "the command is recorded",
        )
        errors = self.fleet.until(lambda: self.fleet.events("--kind", "error", "--node", "edge-1"), "the error line arrives")
        metrics = self.fleet.until(lambda: self.fleet.events("--kind", "metric", "--node", "edge-1"), "a resource sample arrives")
        sample = metrics[-1]["data"]
        console.print(f"    exec   {escape(' '.join(shell[-1]['actor']['args']))}  uid {shell[-1]['actor'].get('uid')}")
        console.print(f"    error  {escape(str(errors[-1]['data']['message']))}")
        console.print(f"    metric cpu {sample['cpu_percent']:.1f} %, memory {sample['mem_used_bytes'] / 2**30:.1f} GiB")
        self.prove("commands, error logs and resources collected", f"{len(metrics)} samples so far")

    def forge(self) -> None:
        """Whoever holds the master's socket but not the author's key changes nothing."""
        fleet = self.fleet
        other = fleet.work / "other-keys"
        fleet.cli("init", "--dir", str(fleet.work / "other"), "--keys", str(other), "--advertise", fleet.endpoint)
        done = fleet.cli("apply", "--states", str(self._loosened()), "--keys", str(other), ok=(1, 2, 3))
        console.print(f"    {escape((done.stderr or done.stdout).strip().splitlines()[0][:150])}")
        code, said = self.show(self.one, *self.violations()["open"])
        require(code != 0 and "not permitted" in said, f"the old policy still holds: {said}")
        self.prove("policy signed by somebody else refused", "the previous generation still enforces")

    def _loosened(self) -> Path:
        states = self.fleet.work / "loosened"
        shutil.copytree(self.fleet.states, states)
        (states / "top.yml").write_text((states / "top.yml").read_text().replace("mode: enforce", "mode: audit"))
        return states

    def cut(self) -> None:
        """One site goes dark, goes on working, comes back, and nothing is missing."""
        fleet, two = self.fleet, self.two
        fleet.fabric.cut(two)
        loop = f"i=0; while [ $i -lt {COMMANDS_WHILE_CUT} ]; do i=$((i+1)); /usr/bin/printf '' while-cut-$i; done"
        two.run("/usr/bin/bash", "-c", loop)
        code, said = self.show(two, *self.violations()["open"])
        require(code != 0 and "not permitted" in said, f"a node without its master enforces: {said}")
        waiting = fleet.until(lambda: _over(fleet.minion_status(two)["unacked"], COMMANDS_WHILE_CUT), "events wait on the node")
        stored = len(self._markers())
        console.print(
            f"    edge-2 is cut off; {waiting} events wait on it, {stored} of {COMMANDS_WHILE_CUT} commands are at the master"
        )
        require(stored == 0, "nothing passes the cut")
        fleet.fabric.heal(two)
        healed = time.monotonic()
        found = fleet.until(
            lambda: m if len(set(m := self._markers())) == COMMANDS_WHILE_CUT else [], "edge-2 catches up", timeout_s=60
        )
        took_s = time.monotonic() - healed
        gaps = fleet.events("--kind", "gap", "--node", "edge-2")
        require(not gaps and len(found) == COMMANDS_WHILE_CUT, f"each once and no gap: {len(found)} stored, gaps {gaps}")
        self.prove(
            "a node cut off and caught up",
            f"made {COMMANDS_WHILE_CUT}, stored {len(found)}, lost 0, twice 0; {took_s:.0f} s after the cut healed",
        )

    def _markers(self) -> list[str]:
        events = self.fleet.events("--kind", "exec", "--node", "edge-2")
        return [a for e in events for a in e["actor"].get("args", ()) if a.startswith("while-cut-")]


def _over(lanes: dict[str, int], least: int) -> int:
    return total if (total := sum(lanes.values())) >= least else 0


def require(holds: bool, what: str) -> None:
    """Stop the demo when something it claims is not so."""
    if not holds:
        raise FleetError(f"not so: {what}")


def play(demo: Demo) -> None:
    """Run all steps; raises at the first that does not hold."""
    steps: list[tuple[str, Callable[[], None]]] = [
        ("master and nodes", demo.join),
        ("before any policy", demo.control),
        ("sign, assign, enforce", demo.apply),
        ("violations", demo.enforce),
        ("alerts", demo.alerts),
        ("remote command", demo.run),
        ("what the nodes saw", demo.observe),
        ("somebody else's signature", demo.forge),
        ("a cut link", demo.cut),
    ]
    for number, (title, step) in enumerate(steps, 1):
        console.print(f"[bold]{number}/{len(steps)} {title}[/]")
        step()


def keep(fleet: Fleet) -> None:
    """Leave the fleet running and say how to use it."""
    KEPT.mkdir(exist_ok=True)
    (KEPT / "work").write_text(f"{fleet.work}\n{fleet.master.pid if fleet.master else 0}\n")
    console.print("\nIt is left running. Try:")
    console.print(f"  export GARRISON_SOCKET={fleet.directory}/api.sock GARRISON_INVENTORY={fleet.inventory}", soft_wrap=True)
    for line in ("nodes", "events --follow", "top", "run edge -- id", "nodes show edge-1"):
        console.print(f"  {GARRISON} {line}", soft_wrap=True)
    console.print(f"  {shlex.join(fleet.fabric.hosts['edge-1'].argv(['bash']))}   # a shell on edge-1", soft_wrap=True)
    console.print("  ./dev demo --down   # ends it")


def down() -> None:
    """End what --keep left."""
    if (KEPT / "work").exists():
        work, pid = (KEPT / "work").read_text().split()
        cmdline = Path(f"/proc/{pid}/cmdline")
        if cmdline.exists() and work.encode() in cmdline.read_bytes():
            os.kill(int(pid), signal.SIGTERM)
        shutil.rmtree(KEPT)
        sweep(TAG)
        shutil.rmtree(work, ignore_errors=True)
    sweep(TAG)


def main() -> int:
    """Parse arguments, play, print the table."""
    parser = argparse.ArgumentParser(
        prog="./dev demo", description="The main job on this machine: real enforcement, nothing left behind."
    )
    parser.add_argument("--keep", action="store_true", help="leave master and nodes running and say what to try")
    parser.add_argument("--down", action="store_true", help="end what an earlier --keep left running")
    arguments = parser.parse_args()
    down()
    if arguments.down:
        return 0
    started, work = time.monotonic(), Path(tempfile.mkdtemp(prefix="garrison-demo-"))
    fleet, failed = None, True
    try:
        fleet = Fleet(Fabric(TAG, work / "hosts"), work)
        demo = Demo(fleet)
        play(demo)
        table = Table(
            "proven",
            "seen",
            title=f"garrison demo: {len(demo.proven)} of {len(demo.proven)} in {time.monotonic() - started:.0f} s",
        )
        for row in demo.proven:
            table.add_row(*map(escape, row))
        console.print()
        console.print(table)
        failed = False
    except (FleetError, LabError) as err:
        console.print(f"[bold red]failed:[/] {escape(str(err))}", soft_wrap=True)
    except KeyboardInterrupt:
        console.print("interrupted")
    if arguments.keep and fleet is not None:
        keep(fleet)
        return int(failed)
    if fleet is not None:
        fleet.close()
    shutil.rmtree(work, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
