"""Instructions that loading each object of the kernel enforcer takes, and what the verifier looks at, by kernel; in VMs.

The machine counts instructions instead of time, so figures repeat. Names, for the kernel KK:

- ``load_minstr_KK_OBJECT``: millions of instructions, the agent's own and the kernel's: relocation, verification, translation.
- ``verified_KK_OBJECT``: BPF instructions that the verifier went through, all programs of the object together.
  ``most_KK_PROGRAM``: the one with the most; the kernel's limit for one is 1,000,000.
- ``load_KK_vs_LL``: all of it on the one kernel divided by all of it on the other.
"""

from __future__ import annotations

import json
from dataclasses import replace

from vm.cost import LSM_BPF
from vm.lab import K61, K612, Lab

KERNELS = {machine.kernel: replace(LSM_BPF, kernel=machine.kernel) for machine in (K61, K612)}
_TIMEOUT_S = 600.0
_NS_PER_MILLION = 1_000_000  # the machine's clock goes on by one ns for each instruction; the thread's own leaves out waiting
_LOAD = """
import json, re, time
from pathlib import Path
from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.minion.enforcers.bpf_lsm import objects

class Timed(list):
    def append(self, made):
        starts.append(time.thread_time_ns())
        super().append(made)

starts, loaded = [], Timed()
objects.load_all(PathHasher(bytes(KEY_BYTES)).rodata, loaded)
starts.append(time.thread_time_ns())
attached = {program.name: program.fd for program in objects.attachable(loaded)}
found = {}
for name, made, start, end in zip(objects.OBJECTS, loaded, starts, starts[1:]):
    abouts = {p: Path(f"/proc/self/fdinfo/{fd}").read_text() for p, fd in attached.items() if p in made.programs}
    verified = {p: int(re.search(r"^verified_insns:\\s*(\\d+)", about, re.M)[1]) for p, about in abouts.items()}
    found[name] = {"ns": end - start, "verified": verified}
print(json.dumps(found))
"""


def run() -> dict[str, float | int | str]:
    """Measure on both kernels; takes minutes."""
    figures: dict[str, float | int | str] = {}
    total = dict.fromkeys(KERNELS, 0)
    with Lab() as lab:
        for kernel, machine in KERNELS.items():
            vm = lab.boot("loading", machine)
            found = json.loads(vm.check("python3", "-c", _LOAD, timeout_s=_TIMEOUT_S))
            vm.cut_power()
            verified = {program: count for one in found.values() for program, count in one["verified"].items()}
            for name, one in found.items():
                total[kernel] += one["ns"]
                figures[f"load_minstr_{kernel}_{name}"] = round(one["ns"] / _NS_PER_MILLION)
                figures[f"verified_{kernel}_{name}"] = sum(one["verified"].values())
            most = max(verified, key=lambda program: verified[program])
            figures[f"most_{kernel}_{most}"] = verified[most]
            figures[f"load_minstr_{kernel}"] = round(total[kernel] / _NS_PER_MILLION)
    old, new = total
    figures[f"load_{new}_vs_{old}"] = round(total[new] / total[old], 3)
    return figures
