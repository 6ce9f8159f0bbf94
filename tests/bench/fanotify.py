"""What an allowed open costs: without rules, with one, with 10,000, and with 10,000 that ask for the acting program.

The opens are of a file on a tmpfs that is watched as a whole, by one process on a quiet machine; each figure is the best of
several rounds. ``alone`` is the same open while only rules on other, single files are held.
"""

from __future__ import annotations

import subprocess
import sys
import time

from component.fanotify_node import Node, directory, exact, glob

ROUNDS, OPENS = 12, 2_000

_LOOP = """
import os, sys, time
path, count = sys.argv[1], int(sys.argv[2])
for _ in range(int(sys.argv[3])):
    start = time.perf_counter_ns()
    for _ in range(count):
        os.close(os.open(path, os.O_RDONLY))
    print((time.perf_counter_ns() - start) / count)
"""


def _open_ns(path: str) -> float:
    argv = [sys.executable, "-c", _LOOP, path, str(OPENS), str(ROUNDS)]
    return min(float(line) for line in subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split())


def _many(node: Node, count: int, **fields):
    """Rules of all kinds, none of which names the file that is opened; directories on its way hold some of them."""
    makers = (
        lambda i: exact(f"{node.root}/rules/{i % 100}/file-{i}"),
        lambda i: directory(f"{node.root}/data/sub-{i}", recursive=True),
        lambda i: glob(f"{node.root}/rules/glob-{i}/**/*.key"),
        lambda i: exact(f"{node.root}/data/{i}"),
    )
    return [node.file_rule(makers[i % 4](i), id=f"bench/{i:05}", **fields) for i in range(count)]


def run() -> dict[str, float | int | str]:
    """Return nanoseconds of an open and close, and ratios to no rules and to one rule."""
    node = Node()
    try:
        file = str(node.write("data/deep/file"))
        none = _open_ns(file)
        node.write("other/secret")
        node.apply(node.file_rule(exact(node.root / "other/secret")))
        alone = _open_ns(file)
        node.apply(node.file_rule(directory(node.root / "elsewhere", recursive=True)))
        one = _open_ns(file)
        started = time.perf_counter()
        node.apply(*_many(node, 10_000))
        apply_s = time.perf_counter() - started
        many = _open_ns(file)
        node.apply(*_many(node, 10_000, sources=("/usr/bin/nosuch",)))
        sourced = _open_ns(file)
    finally:
        node.close()
    return {
        "open_without_rules_ns": none,
        "open_alone_ns": alone,
        "open_1_rule_ns": one,
        "open_10000_rules_ns": many,
        "open_10000_rules_with_source_ns": sourced,
        "added_by_1_rule_ns": one - none,
        "added_by_10000_rules_ns": many - none,
        "ratio_10000_rules_to_1": many / one,
        "apply_10000_rules_s": apply_s,
    }
