"""What enforcement costs, in instructions: the machine's clock counts them, so figures repeat. ``pytest -s`` prints them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.common.policy.rules import WorkloadScope
from vm.lab import BENCH, Lab
from vm.lsm import Guard, file, process

RULES = 10_000
# Prints the least of seven rounds: nanoseconds (instructions) of open and close, and of vfork, exec and wait.
LOOP = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static void opens(int n) { for (int i = 0; i < n; i++) close(open("/srv/cost/d/e/f/file", O_RDONLY)); }
static void renames(int n) { for (int i = 0; i < n; i++) rename(i & 1 ? "/srv/b" : "/srv/a", i & 1 ? "/srv/a" : "/srv/b"); }
static void execs(int n) {
  for (int i = 0; i < n; i++) {
    pid_t pid = vfork();
    if (!pid) { execl("/tmp/nothing", "nothing", (char *)0); _exit(1); }
    waitpid(pid, 0, 0);
  }
}
static void measure(const char *what, void (*run)(int), int n) {
  double least = 1e18;
  for (int repeat = 0; repeat < 7; repeat++) {
    double began = now();
    run(n);
    double each = (now() - began) / n;
    if (each < least) least = each;
  }
  printf("%s %.0f\n", what, least);
}
int main(void) {
  struct sched_param fifo = {.sched_priority = 50};
  mlockall(MCL_CURRENT);
  if (sched_setscheduler(0, SCHED_FIFO, &fifo)) return 1;
  measure("open", opens, 2000);
  measure("rename", renames, 500);
  measure("exec", execs, 50);
}
"""


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """An enforcer in a VM that counts instructions, with the programs that are measured."""
    folder: Path = tmp_path_factory.mktemp("cost")
    (folder / "loop.c").write_text(LOOP)
    (folder / "nothing.c").write_text("int main(void) { return 0; }")
    for name in ("loop", "nothing"):
        subprocess.run(["gcc", "-O1", "-static", f"{name}.c", "-o", name], check=True, cwd=folder)
    with Lab() as lab:
        guard = Guard(lab.boot("cost", BENCH))
        guard.files("/srv/cost/d/e/f/file", "/srv/a")
        for name in ("loop", "nothing"):
            guard.vm.put(f"/tmp/{name}", (folder / name).read_bytes(), mode=0o755)
        yield guard


def _measure(guard: Guard, what: str) -> dict[str, float]:
    found = dict(line.split() for line in guard.vm.check("/tmp/loop", timeout_s=300).splitlines())
    print(what, found)  # noqa: T201 - the figure is the point
    return {name: float(figure) for name, figure in found.items()}


def test_cost_does_not_grow_with_the_number_of_rules(guard: Guard) -> None:
    none = _measure(guard, "no programs")
    guard.hold()
    empty = _measure(guard, "no rules")
    guard.hold(file("/srv/cost/secret"), process("/usr/bin/base64"))
    one = _measure(guard, "one file and one process rule")
    guard.hold(
        *(file(f"/srv/{n % 100}/cost/{n}/secret") for n in range(RULES // 2)),
        *(process(f"/opt/{n % 100}/{n}/bin/tool") for n in range(RULES // 2)),
    )
    many = _measure(guard, f"{RULES} rules")
    guard.hold(file("/srv/cost/*/secret*"), file("/srv/**/*.key"), process("/usr/bin/base64"))
    _measure(guard, "two globs")
    elsewhere = WorkloadScope(labels=("app=web",))
    guard.hold(file("/srv/cost/secret"), process("/usr/bin/base64"), file("/srv/cost/more", scope=elsewhere))
    _measure(guard, "one rule for a workload besides, outside of it")

    assert none["open"] < empty["open"]  # else nothing was measured
    for what in one:
        assert many[what] <= 1.2 * one[what], what
