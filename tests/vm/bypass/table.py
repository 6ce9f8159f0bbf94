"""The table docs/bypass.md: known tricks, what garrison does about each, and which test shows it on which kernel.

Rules of this file:
- Pure but for ``marks``, which reads the tests' sources: a mark ``@pytest.mark.bypass(number, "what garrison does")`` is a row.
- A cell says what a run found: ``holds``, ``FAILS`` or ``not run``. Rows whose tests did not run keep what an earlier run found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["KERNELS", "NOT_RUN", "TRICKS", "Row", "marks", "read", "render"]

KERNELS: Final = ("6.1", "6.12")
NOT_RUN: Final = "not run"
TRICKS: Final[Mapping[int, str]] = {
    1: "hard link to a denied file",
    2: "rule written on a symbolic link, merged /usr, symbolic link to a program",
    3: "bind mount, move_mount, open_tree, chroot, pivot_root",
    4: "unshare, setns: other user, PID and mount namespaces",
    5: "overlayfs: lower, upper, merged, copied up after the policy",
    6: "paths of 21 to 2,049 components and up to 4,095 bytes",
    7: "renamed parent, RENAME_EXCHANGE, deleted but open",
    8: "memfd, fexecve, O_TMPFILE, unlinked program, /dev/shm",
    9: "ld.so PROGRAM, LD_PRELOAD, mmap and mprotect, PT_INTERP",
    10: "interpreters: python x, sh x, sh <x, here documents",
    11: "io_uring instead of system calls",
    12: "passing descriptors: SCM_RIGHTS, inheritance, /proc/PID/fd, pidfd_getfd",
    13: "ptrace, process_vm_writev, /proc/PID/mem into a program that is allowed more",
    14: "process already running, file already open when the policy comes",
    15: "race between check and use: links that change while they are followed",
    16: "fully preemptible kernel: tasks that interrupt each other's decisions",
    17: "flood of alerts to hide one, or to fill the ring",
    18: "TCP Fast Open, UDP without connect, raw and packet sockets, IPv4 in IPv6, vsock",
    19: "copy of a denied program",
    20: "open_by_handle_at, detached mounts, /proc/PID/root",
    21: "truncate, fallocate, chattr, chmod, chown, xattr, O_PATH",
    22: "programs that the kernel starts: core_pattern, modprobe, binfmt_misc",
    23: "32-bit system calls and programs",
    24: "kill -9, SIGSTOP, removed pins, LINK_DETACH, map update, umount, ptrace of the agent",
    25: "restart, upgrade and change of policy under load",
}
_HEAD: Final = """\
# Known ways around enforcement

Each trick is tried by a real program in a VM, together with the like operation that must go on working. `holds`: what the row
says was seen. What a row calls a limit is one: it is told here so that nobody relies on the opposite.

Written by `./dev vm-test -m bypass --bypass-table docs/bypass.md`; rows whose tests did not run keep what an earlier run found.

| # | trick | what garrison does | 6.1 | 6.12 | test |
|---|---|---|---|---|---|
"""


class Row(NamedTuple):
    """One test of one trick; ``found`` by kernel."""

    number: int
    does: str
    test: str  # file::function, below tests/vm
    found: tuple[str, ...] = (NOT_RUN,) * len(KERNELS)


def marks(folder: Path) -> Iterator[Row]:
    """Yield a row for each mark in the tests below ``folder``, in the order of tricks."""
    rows = [row for path in sorted(folder.rglob("test_*.py")) for row in _marks_of(path, folder)]
    yield from sorted(rows, key=lambda row: row.number)


def _marks_of(path: Path, folder: Path) -> Iterator[Row]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.bypass":
                    number, does = (ast.literal_eval(argument) for argument in mark.args)
                    yield Row(number, does, f"{path.relative_to(folder)}::{node.name}")


def read(text: str) -> list[Row]:
    """Return the rows of a table."""
    cells = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return [Row(int(row[0]), row[2], row[5].strip("`"), tuple(row[3:5])) for row in cells if row[0].isdigit()]


def render(rows: Iterable[Row], before: Iterable[Row] = ()) -> str:
    """Return the page; a cell that was not run now has what the same row of ``before`` had."""
    known = {(row.number, row.test): row.found for row in before}
    lines = []
    for row in rows:
        old = known.get((row.number, row.test), (NOT_RUN,) * len(KERNELS))
        found = [past if now == NOT_RUN else now for now, past in zip(row.found, old, strict=True)]
        lines.append(f"| {row.number} | {TRICKS[row.number]} | {row.does} | {' | '.join(found)} | `{row.test}` |")
    return _HEAD + "\n".join(lines) + "\n"
