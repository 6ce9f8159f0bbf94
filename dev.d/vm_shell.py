"""``./dev vm``: a person's shell, or one command, in a VM with this checkout's garrison. The VM goes with it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from vm.lab import FAST_INIT, Lab, Machine, VmError
from vm.payload import PayloadError
from vm.qemu import QemuError


def parse(argv: list[str]) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="./dev vm", description=__doc__)
    parser.add_argument("--kernel", choices=("6.1", "6.12"), default="6.1", help="series (default: %(default)s)")
    parser.add_argument("--preempt", choices=("none", "voluntary", "full"), help="preemption model (default: the kernel's own)")
    parser.add_argument("--systemd", action="store_true", help="boot systemd, not the fast init")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="default: %(default)s")
    parser.add_argument(
        "--net", action="store_true", help="let the VM reach this machine (10.0.2.2) and what this machine reaches"
    )
    parser.add_argument("command", nargs="*", metavar="CMD", help="after --: run this and exit with its code; none: a shell")
    return parser.parse_args(argv)


def machine(args: argparse.Namespace) -> Machine:
    """Return the machine that the options describe."""
    made = Machine(args.kernel, init="" if args.systemd else FAST_INIT, memory_mib=args.memory)
    return replace(made, cmdline=(f"preempt={args.preempt}",)) if args.preempt else made


def main() -> int:
    """Run it; returns the command's exit code."""
    args = parse(sys.argv[1:])
    try:
        with Lab() as lab:
            vm = lab.boot("lab", machine(args), reach_host=args.net)
            argv = vm.ssh_argv(*args.command)
            if not args.command:
                print(f"vm: kernel {vm.machine.kernel}; another terminal: {' '.join(argv)}", file=sys.stderr)
            return subprocess.run(argv, check=False).returncode
    except (VmError, QemuError, PayloadError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
