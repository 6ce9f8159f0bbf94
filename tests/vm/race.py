"""Tasks that race each other, renames, mounts and switches of rules through the kernel enforcer: is any verdict ever wrong?

On a kernel that may preempt at any instruction (``preempt=full``) with two CPUs, four tasks of two programs open and start
what rules refuse and what they do not. What they share on purpose: one cache entry (names of one inode, of which a glob
refuses one), one walk (a bind mount), one class cache (the program's file), two copies of the tables, which switch all the
time. A fifth renames a directory and mounts another, so that caches are untrue all the time. Both sets of rules say the same
of what is checked.

A path whose directory is moved under the very walk may count as unknown, which block rules refuse: told as ``closed``, not as
wrong.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from garrison.common.policy.rules import Rule, RuleSet
from vm.lab import PREEMPT_FULL, Lab, Machine
from vm.lsm import file, process

__all__ = ["RACE", "run_race"]

RACE = replace(PREEMPT_FULL, cpus=2)
_HERE = Path(__file__).parent
_HOLDER = "/opt/test/race_holder.py"
_FILES = ("deep/a/b/c/free", "deep/a/b/c/secret", "deep/a/b/free", "links/yes", "src", "m/x/free", "m/x/no", "flip", "ro/conf")
_CHECKED = (
    file("/race/deep/a/b/c/secret"),
    file("/race/**/no"),
    file("/race/src", by="/race/bin/two"),
    file("/race/ro/", read_only=True),
    process("/race/bin/tool"),
)


def run_race(
    lab: Lab, folder: Path, evaluations: int, *, machine: Machine = RACE, timeout_s: float
) -> dict[str, int | float | str]:
    """Race until the enforcer has decided so often; returns figures, ``wrong`` among them.

    Args:
        lab: Where the VM is made.
        folder: To build in.
        evaluations: As the enforcer's own counter has them.
        machine: The VM's kind.
        timeout_s: How long it may take.
    """
    built = folder / "race"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", str(_HERE / "race.c"), "-o", str(built)], check=True)
    vm = lab.boot("race", machine)
    vm.put(_HOLDER, (_HERE / "race_holder.py").read_bytes())
    for name in _FILES:
        vm.put(f"/race/{name}", "x\n")
    for name in ("one", "two", "tool", "fine"):
        vm.put(f"/race/bin/{name}", built.read_bytes(), mode=0o755)
    vm.check("sh", "-c", "cd /race && ln links/yes links/no && mkdir bind")
    assert vm.check("nproc").strip() == str(machine.cpus)
    began = time.monotonic()
    sets = msgspec.json.encode([_ruleset(*_more_files()), _ruleset(*_more_programs())])
    figures: dict[str, int | float | str] = json.loads(
        vm.check("python3", _HOLDER, str(evaluations), stdin=sets, timeout_s=timeout_s)
    )
    return {**figures, "seconds": round(time.monotonic() - began)}


def _ruleset(*more: Rule) -> RuleSet:
    return RuleSet(rules=tuple(sorted((*_CHECKED, *more), key=lambda rule: rule.id)))


def _more_files() -> list[Rule]:
    return [file("/race/flip"), *(file(f"/race/deep/a/b/c/other-{n}") for n in range(20))]


def _more_programs() -> list[Rule]:
    """Return rules that give every set, class and state another number than ``_more_files`` do."""
    return [
        *(process(f"/race/bin/{n}/other", by=f"/race/bin/{n}/") for n in range(12)),
        *(file(f"/race/links/{n}/**", read_only=True) for n in range(6)),
        file("/race/m/*/zz*"),
        file("/race/**/free-not*", by="/race/bin/one"),
    ]
