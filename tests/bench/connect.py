"""Cost of network rules per connect: without rules, with one and with 10,000, by program and by directory."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path

from garrison.bpf.loader import enabled_stats
from garrison.common.policy.rules import Entity, Protocol, Rule, RuleSet, Source, Verdict
from garrison.minion.enforcers.cgroup_net import CgroupNetEnforcer
from lab.hosts import cgroup2_mount

TIMES = 200_000
ROUNDS = 5
SOURCE = Path(__file__).parents[1] / "component" / "netprobe.c"


def run() -> dict[str, float | int | str]:
    """Measure UDP connects of a program that no rule refuses; each figure is the median of ``ROUNDS`` rounds, interleaved."""
    cgroup = cgroup2_mount() / "bench-connect"
    cgroup.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "netprobe"
        subprocess.run(["gcc", "-static", "-O1", "-o", probe, SOURCE], check=True)
        enforcer = CgroupNetEnforcer(lambda _: None, cgroup=cgroup)
        try:
            return _figures(enforcer, cgroup, probe)
        finally:
            enforcer.close()
            cgroup.rmdir()


def _figures(enforcer: CgroupNetEnforcer, cgroup: Path, probe: Path) -> dict[str, float | int | str]:
    cases = {
        "none": [],
        "free_1": [_rule(0)],
        "program_1": [_rule(0, "/opt/p0")],
        "program_10000": [_rule(i, f"/opt/p{i}") for i in range(10_000)],
        "directory_1": [_rule(0, "/opt/d0/")],
        "directory_10000": [_rule(i, f"/opt/d{i}/") for i in range(10_000)],
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    program: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, rules in cases.items():
            enforcer.apply(RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id))))
            taken[name].append(_connect_ns(cgroup, probe))
            if enforcer.loaded is not None:
                program[name] = _program_ns(enforcer, cgroup, probe)
    figures: dict[str, float | int | str] = {f"connect_{name}_ns": statistics.median(ns) for name, ns in taken.items()}
    figures |= {f"program_{name}_ns": ns for name, ns in program.items()}
    medians = {name: statistics.median(ns) for name, ns in taken.items()}
    figures["ratio_10000_to_1_programs"] = medians["program_10000"] / medians["program_1"]
    figures["ratio_10000_to_1_directories"] = medians["directory_10000"] / medians["directory_1"]
    return figures


def _rule(number: int, *sources: str) -> Rule:
    held = tuple(Source(s, recursive=s.endswith("/")) for s in sources)
    name = "tcp" if not sources else "udp"
    target = Protocol(name)
    return Rule(id=f"p/{number:05}", policy="p", entity=Entity.NETWORK, verdict=Verdict.BLOCK, target=target, sources=held)


def _connect_ns(cgroup: Path, probe: Path) -> float:
    argv = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(cgroup), str(probe), "udpc", "127.0.0.1", "9", str(TIMES)]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stderr)


def _program_ns(enforcer: CgroupNetEnforcer, cgroup: Path, probe: Path) -> float:
    assert enforcer.loaded is not None
    program = enforcer.loaded.programs["net_connect4"]
    with enabled_stats():
        ns, runs = program.run_stats()
        _connect_ns(cgroup, probe)
        ns_after, runs_after = program.run_stats()
    return (ns_after - ns) / (runs_after - runs)
