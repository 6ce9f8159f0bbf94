"""Instructions of open, exec and connect under the kernel enforcer, against nothing, empty LSM programs, and AppArmor; in VMs.

The machine counts instructions instead of time, so figures repeat (open: 0.1 %, exec: 1 %) and say nothing of nanoseconds or
caches. Operations are defined in ``tests/vm/cost.c``, rules in ``tests/vm/cost.py``. ``NAME_N``: with N rules; one of them
names a file that exists. Names of ratios:

- ``OP_vs_X``, ``OP_N_vs_M``: the whole operation under one divided by the whole operation under the other, kernel's own work
  included.
- ``OP_added_vs_empty_added``: only what was added to ``none``: enforcement with 10,000 rules by programs that do nothing.
- ``open_cached``: of a file that was opened before under these rules. ``open_cold``: of files that nobody ever opened (their
  names and inodes are in memory), so that path and rules are looked up and the cache entry is made.
- ``vs_apparmor``: 10,000 rules here divided by a profile with the same 10,000 rules that confines the program which is measured;
  one kernel, whose ``lsm=`` has ``bpf`` in the one case and ``apparmor`` in the other.
- ``exec``: of ``/usr/bin/true``, which has a dynamic linker and libc, as nearly all programs have.
  ``exec_static``: of one that has neither, and does nothing: the least that a start can be.
- ``connect`` is measured under rules that refuse UDP to as many other programs.
- ``bpf_mb``: what the kernel says that all maps and programs lock (``memlock`` of fdinfo), both copies of the tables filled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from garrison.common.policy.rules import WorkloadScope
from vm.cost import LSM_APPARMOR, Cost, network_rules, rules
from vm.lab import Lab
from vm.lsm import file

COUNTS = (0, 1, 100, 1_000, 10_000)
MANY = COUNTS[-1]
NAMES = {
    "open": "open_cached",
    "cold": "open_cold",
    "linked": "exec",
    "exec": "exec_static",
    "rename": "rename",
    "connect": "connect",
}


def run() -> dict[str, float | int | str]:
    """Measure everything; takes minutes."""
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        cost = Cost(lab, Path(folder))
        none, empty = cost.none(), cost.empty()
        held = {count: cost.garrison(rules(count), refused=bool(count)) for count in COUNTS}
        network = {count: cost.garrison(network_rules(count), refused=0) for count in (1, MANY)}
        elsewhere = file("/srv/cost/more", scope=WorkloadScope(labels=("app=web",)))
        workload = cost.garrison((*rules(1), elsewhere))
        without, confined = cost.none(LSM_APPARMOR), {count: cost.apparmor(count) for count in (1, MANY)}
    for count, figures in held.items():
        if count in network:
            figures["connect"] = network[count]["connect"]
        elif count:
            del figures["connect"]  # rules about files are none about sockets
    many = held[MANY]

    def ratio(name: str, over: dict[str, int], under: dict[str, int]) -> float:
        return round(over[name] / under[name], 4)

    figures: dict[str, float | int | str] = {
        "open_cached_vs_empty": ratio("open", many, empty),
        "open_cached_added_vs_empty_added": round((many["open"] - none["open"]) / (empty["open"] - none["open"]), 2),
        "open_cold_vs_empty": ratio("cold", many, empty),
        "open_10000_vs_1": ratio("open", many, held[1]),
        "open_cold_10000_vs_1": ratio("cold", many, held[1]),
        "exec_10000_vs_1": ratio("linked", many, held[1]),
        "exec_static_10000_vs_1": ratio("exec", many, held[1]),
        "connect_10000_vs_1": ratio("connect", many, held[1]),
        "rename_10000_vs_1": ratio("rename", many, held[1]),
        "open_vs_apparmor": ratio("open", many, confined[MANY]),
        "open_cold_vs_apparmor": ratio("cold", many, confined[MANY]),
        "exec_vs_apparmor": ratio("linked", many, confined[MANY]),
        "exec_static_vs_apparmor": ratio("exec", many, confined[MANY]),
        "bpf_mb_10000": round((many["map_bytes"] + many["prog_bytes"]) / 1e6, 2),
    }
    cases = {"none": none, "empty": empty, **{str(n): held[n] for n in COUNTS}, "apparmor_unconfined": without}
    del workload["connect"]
    cases["1_and_workload"] = workload
    cases |= {f"apparmor_{count}": measured for count, measured in confined.items()}
    for short, name in NAMES.items():
        figures |= {f"{name}_{case}": measured[short] for case, measured in cases.items() if short in measured}
    return figures


def table(figures: Mapping[str, float | int | str]) -> str:
    """Return the figures as Markdown: counts by case, then ratios."""
    cases = {
        "without programs": "none",
        "programs that do nothing": "empty",
        "no rules": "0",
        "1 rule": "1",
        "the same and one for a workload, outside of it": "1_and_workload",
        "100 rules": "100",
        "1,000 rules": "1000",
        "10,000 rules": "10000",
        "AppArmor instead, 1 rule": "apparmor_1",
        "AppArmor instead, 10,000 rules": "apparmor_10000",
    }
    heads = ["open, cached", "open, cold", "exec", "exec, static", "rename", "connect"]  # as NAMES has them
    rows = [["", *heads], ["---"] * (1 + len(heads))]
    for said, case in cases.items():
        counts = [figures.get(f"{name}_{case}", "") for name in NAMES.values()]
        rows.append([said, *(f"{count:,}" if isinstance(count, int) else count for count in counts)])
    ratios = [(name, value) for name, value in figures.items() if isinstance(value, float)]
    rows_of_ratios = [["figure", ""], ["---", "---"], *([f"`{name}`", str(value)] for name, value in ratios)]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in (rows, rows_of_ratios))
