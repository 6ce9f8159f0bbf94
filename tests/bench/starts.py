"""Instructions of each kernel enforcement program for one start of a program: fork to exit; in a VM.

The machine counts instructions instead of time, and the kernel how long each program ran (``kernel.bpf_stats_enabled``). It is
``/bin/true``, which has a dynamic linker; one rule is held, and all files are in the cache. Names, as the kernel cuts them:

- ``start_instr_PROGRAM``: of its runs for one start together. ``start_instr``: of all. What the kernel itself adds to run them,
  and to make and free the task's entry outside of them, is not in it: ``./dev bench enforcer`` has the whole (``exec``).
"""

from __future__ import annotations

import json

from vm.cost import LSM_BPF, rules
from vm.lab import Lab
from vm.lsm import Guard

STARTS = 200
_TIMEOUT_S = 300.0
_MEASURE = f"""
import ctypes, json, os, re, sys
libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
NAME_AT, INFO_BYTES = 64, 232  # struct bpf_prog_info

def run_ns():
    number, found = ctypes.c_uint32(0), {{}}
    while not libbpf.bpf_prog_get_next_id(number, ctypes.byref(number)):
        fd = libbpf.bpf_prog_get_fd_by_id(number)
        info, size = ctypes.create_string_buffer(INFO_BYTES), ctypes.c_uint32(INFO_BYTES)
        if fd < 0 or libbpf.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)):
            raise OSError(ctypes.get_errno(), f"look at program {{number.value}}")
        name = info.raw[NAME_AT:].partition(b"\\0")[0].decode()
        with open(f"/proc/self/fdinfo/{{fd}}") as about:
            found[name] = int(re.search(r"^run_time_ns:\\s*(\\d+)", about.read(), re.M)[1])
        os.close(fd)
    return found

def start(times):
    before = run_ns()
    for _ in range(times):
        os.waitpid(os.posix_spawn(sys.argv[1], sys.argv[1:2], {{}}), 0)
    return {{name: ns - before[name] for name, ns in run_ns().items()}}

open("/proc/sys/kernel/bpf_stats_enabled", "w").write("1")
start({STARTS})
once, twice = start({STARTS}), start({2 * STARTS})
print(json.dumps({{name: twice[name] - once[name] for name in once}}))
"""


def run() -> dict[str, float | int | str]:
    """Measure; takes a minute."""
    with Lab() as lab:
        guard = Guard(lab.boot("starts", LSM_BPF))
        guard.hold(*rules(1))
        found = json.loads(guard.vm.check("python3", "-c", _MEASURE, "/bin/true", timeout_s=_TIMEOUT_S))
    each = {name: round(ns / STARTS) for name, ns in found.items() if ns >= STARTS}
    return {"start_instr": sum(each.values()), **{f"start_instr_{name}": each[name] for name in sorted(each)}}
