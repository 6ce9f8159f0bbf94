"""Cost of system call rules per call: nothing attached, and with rules of other calls, programs, workloads, paths."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path

from garrison.bpf.loader import enabled_stats
from garrison.common.policy.rules import Entity, HostScope, Other, Rule, RuleSet, Scope, Source, Verdict, WorkloadScope
from garrison.minion.enforcers.syscalls import SyscallsEnforcer
from garrison.minion.enforcers.syscalls.numbers import NUMBERS

HOST = HostScope()
TIMES = 2_000_000
ROUNDS = 7
PROBE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    long n = atol(argv[1]), number = atol(argv[2]);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (long i = 0; i < n; i++)
        syscall(number, "/bench/nothing-here", 0);
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / n);
}
"""
CALLS = NUMBERS["x86_64"]


def run() -> dict[str, float | int | str]:
    """Measure getppid and access of a program that no rule speaks of; medians of ``ROUNDS`` rounds, interleaved."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        subprocess.run(["gcc", "-O1", "-xc", "-", "-o", probe], input=PROBE, text=True, check=True)
        enforcer = SyscallsEnforcer(lambda _: None)
        try:
            return _figures(enforcer, probe)
        finally:
            enforcer.close()


def _figures(enforcer: SyscallsEnforcer, probe: Path) -> dict[str, float | int | str]:
    others = [name for name in CALLS if name not in {"getppid", "access"}][100:200]
    cases: dict[str, tuple[str, list[Rule]]] = {
        "getppid_none": ("getppid", []),
        "getppid_1_of_another_call": ("getppid", [_rule("unlink")]),
        "getppid_100_of_other_calls": ("getppid", [_rule(name) for name in others]),
        "getppid_1_of_another_program": ("getppid", [_rule("getppid", "/opt/p")]),
        "getppid_100_of_other_directories": ("getppid", [_rule("getppid", f"/opt/d{i}/") for i in range(100)]),
        "getppid_1_of_another_workload": ("getppid", [_rule("getppid", scope=WorkloadScope(labels=("app=web",)))]),
        "access_none": ("access", []),
        "access_1_of_another_path": ("access", [_rule("access", path="/etc/passwd")]),
        "access_100_of_other_paths": ("access", [_rule("access", path=f"/etc/{i}") for i in range(100)]),
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (call, rules) in cases.items():
            enforcer.apply(RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id))))
            taken[name].append(_call_ns(probe, call))
    figures: dict[str, float | int | str] = {f"{name}_ns": round(statistics.median(ns), 1) for name, ns in taken.items()}
    enforcer.apply(RuleSet(rules=(_rule("unlink"),)))
    for hook in ("call_enter", "call_leave"):
        figures[f"program_{hook}_ns"] = round(_program_ns(enforcer, probe, hook), 1)
    enforcer.apply(RuleSet())
    return figures


def _rule(call: str, *sources: str, path: str = "", scope: Scope = HOST) -> Rule:
    spec = f'{{"path":"{path}"}}' if path else ""
    held = tuple(Source(s, recursive=s.endswith("/")) for s in sources)
    name = f"p/{call}{''.join(sources)}{path}"
    target = Other(call, spec)
    return Rule(id=name, policy="p", entity=Entity.SYSCALL, verdict=Verdict.AUDIT, target=target, sources=held, scope=scope)


def _call_ns(probe: Path, call: str) -> float:
    argv = [str(probe), str(TIMES if call == "getppid" else TIMES // 10), str(CALLS[call])]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def _program_ns(enforcer: SyscallsEnforcer, probe: Path, hook: str) -> float:
    assert enforcer.loaded is not None
    program = enforcer.loaded.programs[hook]
    with enabled_stats():
        ns, runs = program.run_stats()
        _call_ns(probe, "getppid")
        ns_after, runs_after = program.run_stats()
    return (ns_after - ns) / (runs_after - runs)
