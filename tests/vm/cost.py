"""What enforcement costs in instructions, on a machine whose clock counts them, so that figures repeat.

    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        bench = Cost(lab, Path(folder))
        bench.none()["open"], bench.garrison(rules(10_000))["open"], bench.apparmor(10_000)["open"]

Rules of this file:
- Each figure comes from a VM of its own, fresh from its template: a machine that has run for long counts up to 2 % more.
- The machines differ in nothing but ``lsm=``: what is compared with AppArmor runs without it, and the other way round.
- ``rules(n)`` and ``profile(n)`` are the same ``n`` rules: they name files and programs, half of them in the very directories
  where files are opened and programs are started, and refuse everybody. Nothing that is measured is refused.
- Each measurement proves that its rules held: it tries to open one of the files.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

from garrison.common.policy.rules import Entity, Protocol, Rule, Source, Verdict
from vm.lab import BENCH, K61, Lab, Machine, Vm
from vm.lsm import Guard, file, process

__all__ = ["LSM_APPARMOR", "LSM_BPF", "Cost", "CostError", "network_rules", "rules"]

LSM_BPF = replace(BENCH, cmdline=(*BENCH.cmdline, "lsm=landlock,lockdown,yama,bpf"))
LSM_APPARMOR = replace(BENCH, cmdline=(*BENCH.cmdline, "lsm=landlock,lockdown,yama,apparmor"))
FOLDER = "/srv/cost/d/e/f"  # where files are opened
PROGRAMS = "/opt/cost/b"  # where programs are started
REFUSED = f"{FOLDER}/secret-0"
_HERE = Path(__file__).parent
_LOOP, _EMPTY, _PROFILE = "/usr/local/bin/cost", "/opt/test/cost_empty.bpf.o", "/run/profile"
_MEASURE_TIMEOUT_S = 300.0
_COMPILE_TIMEOUT_S = 900.0
_HOLD_EMPTY = f"""
import signal, sys
from pathlib import Path
from garrison.bpf.loader import Object
with Object(Path({_EMPTY!r})) as held:
    held.load()
    for program in held.programs.values():
        program.attach()
    print("held", flush=True)
    signal.pause()
"""
# Every map and program there is: a fresh VM has none but ours.
_MEMORY = """
import ctypes, json, os, re
libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
total = {}
for kind in ("map", "prog"):
    number = ctypes.c_uint32(0)
    total[kind] = 0
    while not getattr(libbpf, f"bpf_{kind}_get_next_id")(number, ctypes.byref(number)):
        fd = getattr(libbpf, f"bpf_{kind}_get_fd_by_id")(number)
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"open {kind} {number.value}")
        with open(f"/proc/self/fdinfo/{fd}") as about:
            total[kind] += int(re.search(r"^memlock:\\s*(\\d+)", about.read(), re.M)[1])
        os.close(fd)
print(json.dumps(total))
"""


class CostError(Exception):
    """A measurement cannot be believed; the text says why."""


def rules(count: int) -> tuple[Rule, ...]:
    """Return ``count`` rules about files and programs; the first names a file that exists."""
    return tuple(file(where) if entity is Entity.FILE else process(where) for entity, where in _targets(count))


def network_rules(count: int) -> tuple[Rule, ...]:
    """Return ``count`` rules, each of which refuses UDP to another program."""
    return tuple(
        Rule(
            id=f"n/{number:05}",
            policy="n",
            entity=Entity.NETWORK,
            verdict=Verdict.BLOCK,
            target=Protocol("udp"),
            sources=(Source(f"{PROGRAMS}/tool-{number}"),),
        )
        for number in range(count)
    )


def profile(count: int) -> str:
    """Return an AppArmor profile of the measuring program that means what ``rules(count)`` mean."""
    denied = [f"  deny {path} {'mrwlkx' if entity is Entity.FILE else 'mx'}," for entity, path in _targets(count)]
    allowed = ["  /** mrwlkix,", "  / r,", "  capability,", "  network,", "  signal,", "  ptrace,", "  unix,", "  mount,"]
    return "\n".join([f"profile cost {_LOOP} {{", *allowed, *denied, "}", ""])


def _targets(count: int) -> list[tuple[Entity, str]]:
    turns = (
        (Entity.FILE, f"{FOLDER}/secret-{{}}"),
        (Entity.PROCESS, f"{PROGRAMS}/tool-{{}}"),
        (Entity.FILE, "/srv/data/{}/etc/secret"),
        (Entity.PROCESS, "/opt/data/{}/bin/tool"),
    )
    return [(turns[n % 4][0], turns[n % 4][1].format(n)) for n in range(count)]


class Cost:
    """Measures in VMs of ``lab``; builds its programs in ``folder``."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._loop = self._built(folder / "cost", "cost.c")
        (folder / "nothing.c").write_text("int main(void) { return 0; }")
        self._nothing = self._built(folder / "nothing", str(folder / "nothing.c"))
        self._empty = folder / "empty.bpf.o"
        flags = ["-g", "-O2", "-target", "bpf", "-idirafter", "/usr/include/x86_64-linux-gnu"]
        subprocess.run(["clang-14", *flags, "-c", str(_HERE / "cost_empty.bpf.c"), "-o", str(self._empty)], check=True)

    def none(self, machine: Machine = LSM_BPF) -> dict[str, int]:
        """Measure without rules and without programs."""
        return self._measured(self._booted(machine), refused=0)

    def empty(self, machine: Machine = LSM_BPF) -> dict[str, int]:
        """Measure with programs on the hooks that do nothing."""
        vm = self._booted(machine)
        vm.put(_EMPTY, self._empty.read_bytes())
        holder = vm.start("python3", "-c", _HOLD_EMPTY, log="/run/empty.log")
        vm.until(lambda: "held" in holder.output() or not holder.running(), "programs that do nothing")
        if not holder.running():
            raise CostError(holder.output())
        return self._measured(vm, refused=0)

    def garrison(self, held: tuple[Rule, ...], machine: Machine = LSM_BPF, *, refused: int = 1) -> dict[str, int]:
        """Measure while the kernel enforcer holds these rules; ``map_bytes`` and ``prog_bytes`` are what it takes of memory."""
        guard = Guard(self._booted(machine))
        for _ in range(2):  # so that both copies of the tables are as large
            guard.hold(*held)
        memory = json.loads(guard.vm.check("python3", "-c", _MEMORY))
        figures = self._measured(guard.vm, refused)
        return {**figures, "map_bytes": memory["map"], "prog_bytes": memory["prog"]}

    def apparmor(self, count: int, machine: Machine = LSM_APPARMOR) -> dict[str, int]:
        """Measure while an AppArmor profile with ``count`` rules confines the program that is measured."""
        compiled = self._compiled(count)
        vm = self._booted(machine)
        vm.put(_PROFILE, compiled)
        vm.check("sh", "-c", f"cat {_PROFILE} >/sys/kernel/security/apparmor/.replace")
        return self._measured(vm, refused=1 if count else 0)

    def _compiled(self, count: int) -> bytes:
        vm = self._lab.boot("parser", K61)
        vm.put(_PROFILE, profile(count))
        try:
            vm.check("sh", "-c", f"apparmor_parser -S -K {_PROFILE} >{_PROFILE}.bin", timeout_s=_COMPILE_TIMEOUT_S)
            return vm.get(f"{_PROFILE}.bin")
        finally:
            vm.cut_power()

    def _booted(self, machine: Machine) -> Vm:
        vm = self._lab.boot("cost", machine)
        for path in (f"{FOLDER}/file", REFUSED, "/srv/cost/a"):
            vm.put(path, "hi\n")
        vm.put(_LOOP, self._loop, mode=0o755)
        vm.put(f"{PROGRAMS}/nothing", self._nothing, mode=0o755)
        return vm

    @staticmethod
    def _measured(vm: Vm, refused: int) -> dict[str, int]:
        lines = vm.check(_LOOP, REFUSED, timeout_s=_MEASURE_TIMEOUT_S).splitlines()
        vm.cut_power()
        figures = {name: int(figure) for name, figure in (line.split() for line in lines)}
        if figures.pop("refused") != refused:
            raise CostError(f"{REFUSED} was {'not ' if refused else ''}refused, so these figures measure something else")
        return figures

    @staticmethod
    def _built(out: Path, source: str) -> bytes:
        subprocess.run(["gcc", "-O1", "-static", "-Wall", source, "-o", str(out)], check=True, cwd=_HERE)
        return out.read_bytes()
