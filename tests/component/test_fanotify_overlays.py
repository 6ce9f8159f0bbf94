"""Overlays watched beside the file systems of their layers: nothing hangs, and what a rule refuses is refused on either path."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from component.fanotify_node import Node, directory, exact, glob, wait_for
from garrison.common.errors import KernelError
from garrison.common.policy.rules import Verdict

pytestmark = pytest.mark.root


class Overlay:
    """An overlay at ``merged`` whose layers are on ``node``'s own file system, or on ``below``."""

    def __init__(self, node: Node, name: str, *below: Path) -> None:
        self.base, self._node = node.root / name, node
        for folder in ("lower", "upper", "work", "merged"):
            (self.base / folder).mkdir(parents=True)
        self.merged = self.base / "merged"
        for layer, folder in (("lower", "low"), ("upper", "up")):
            node.write(f"{name}/{layer}/{folder}/public")
            node.write(f"{name}/{layer}/{folder}/secret")
        lower = ":".join(map(str, (self.base / "lower", *below)))
        layers = f"lowerdir={lower},upperdir={self.base / 'upper'},workdir={self.base / 'work'}"
        subprocess.run(["mount", "-t", "overlay", name, "-o", layers, str(self.merged)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.merged)], check=True)


@pytest.fixture
def node():
    node = Node()
    yield node
    node.close()


@pytest.fixture
def overlay(node):
    overlay = Overlay(node, "one")
    yield overlay
    overlay.close()


@pytest.fixture
def stacked(node, overlay):
    """An overlay on an overlay: as many levels as the kernel allows."""
    stacked = Overlay(node, "two", overlay.merged)
    yield stacked
    stacked.close()


def lists(node: Node, path) -> bool:
    return node.executes("/bin/ls", path)


def assert_no_lapse(node: Node) -> None:
    status = node.enforcer.status()
    assert [e.data for e in node.events if e.kind == "tamper"] == []
    assert (status.healthy, status.counters["hung"], status.counters["restarts"]) == (True, 0, 0)


def everywhere(node: Node):
    """A rule that reaches everywhere below the node's root, and so watches all file systems there as a whole."""
    return node.file_rule(glob(f"{node.root}/**/secret"))


# ---- Nothing hangs ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layer", ["low", "up"])
def test_overlay_beside_its_layers_lets_pass_and_refuses_on_both_paths_without_a_lapse(node, overlay, layer):
    stored = overlay.base / {"low": "lower", "up": "upper"}[layer] / layer
    node.apply(everywhere(node))

    for folder in (overlay.merged / layer, stored):
        assert lists(node, folder)
        assert node.reads(folder / "public")
        assert not node.reads(folder / "secret")

    assert_no_lapse(node)
    for folder in (overlay.merged / layer, stored):
        wait_for(lambda folder=folder: node.alerts(object=str(folder / "secret"), result="EPERM"), "the alert")


def test_rule_on_the_path_in_the_overlay_leaves_the_layers_path_alone_and_the_other_way_round_without_a_lapse(node, overlay):
    by_overlay, by_layer = overlay.merged / "up/secret", overlay.base / "lower/low"
    wide = node.file_rule(glob(f"{node.root}/**/nothing"))
    node.apply(wide, node.file_rule(exact(by_overlay)), node.file_rule(exact(by_layer / "secret")))

    assert not node.reads(by_overlay)
    assert node.reads(overlay.base / "upper/up/secret")
    assert not node.reads(by_layer / "secret")
    assert node.reads(by_layer / "public")
    assert lists(node, overlay.merged / "up")
    assert_no_lapse(node)


def test_files_of_an_overlay_that_is_watched_file_by_file_beside_its_layers_pass_without_a_lapse(node, overlay):
    folders = [overlay.merged / "up", overlay.base / "upper/up"]
    node.apply(*(node.file_rule(exact(folder / "secret")) for folder in folders))

    for folder in folders:
        assert lists(node, folder)
        assert node.reads(folder / "public")
        assert not node.reads(folder / "secret")
    assert_no_lapse(node)


def test_program_on_an_overlay_starts_or_is_refused_without_a_lapse(node, overlay):
    good, bad = (overlay.merged / "up" / name for name in ("good", "bad"))
    for program in (good, bad):
        program.write_bytes(Path(os.path.realpath("/bin/true")).read_bytes())
        program.chmod(0o755)
    node.apply(everywhere(node), node.exec_rule(glob(f"{node.root}/**/bad")))

    assert node.executes(good)
    assert not node.executes(bad)
    assert not node.executes(overlay.base / "upper/up/bad")
    assert_no_lapse(node)


def test_overlay_on_an_overlay_beside_all_their_layers_lets_pass_and_refuses_without_a_lapse(node, overlay, stacked):
    node.apply(everywhere(node))

    for folder in (stacked.merged / "low", stacked.merged / "up", overlay.merged / "low", overlay.merged / "up"):
        assert lists(node, folder)
        assert node.reads(folder / "public")
        assert not node.reads(folder / "secret")
    assert_no_lapse(node)


def test_overlay_that_is_mounted_later_is_watched_from_the_next_rules_on_without_a_lapse(node, overlay):
    node.apply(everywhere(node))
    later = Overlay(node, "later", overlay.merged)

    try:
        node.apply(everywhere(node))
        assert lists(node, later.merged / "up")
        assert node.reads(later.merged / "up/public")
        assert not node.reads(later.merged / "up/secret")
    finally:
        later.close()
    assert_no_lapse(node)


_OPENERS = """
import os, sys, threading
folders, count, rounds = sys.argv[3:], int(sys.argv[1]), int(sys.argv[2])
start, wrong = threading.Barrier(count), []
def work(number):
    start.wait()
    for turn in range(rounds):
        folder = folders[(number + turn) % len(folders)]
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        os.close(os.open(folder + "/public", os.O_RDONLY))
        try:
            os.open(folder + "/secret", os.O_RDONLY)
            wrong.append(folder)
        except PermissionError:
            pass
threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(wrong))
"""


def test_many_tasks_that_open_stacked_overlays_at_once_wait_for_each_other_and_not_in_a_circle(node, overlay, stacked):
    folders = [stacked.merged / "up", stacked.merged / "low", overlay.merged / "up", overlay.base / "upper/up"]
    node.apply(everywhere(node))

    done = node.run(sys.executable, "-c", _OPENERS, "150", "20", *folders, timeout=120)

    assert (done.stdout, done.stderr) == ("0\n", "")
    assert_no_lapse(node)


# ---- All readers switch, all are watched --------------------------------------------------------------------------------
_OPEN_LOOP = """
import os, sys
passed = tried = 0
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    for path in sys.argv[2:]:
        tried += 1
        try:
            os.close(os.open(path, os.O_RDONLY))
            passed += 1
        except PermissionError:
            pass
print(passed, tried)
"""


def test_swap_of_rules_leaves_no_open_of_an_overlay_or_its_layer_unprotected(node, overlay, stacked):
    secrets = [stacked.merged / "up/secret", overlay.merged / "up/secret", overlay.base / "upper/up/secret"]
    stop = node.root / "stop"
    narrow = [node.file_rule(exact(path)) for path in secrets]
    others = [node.file_rule(exact(overlay.merged / f"up/other-{i}")) for i in range(50)]
    node.apply(everywhere(node))
    loop = subprocess.Popen([sys.executable, "-c", _OPEN_LOOP, stop, *secrets], stdout=subprocess.PIPE, text=True)
    assert loop.stdout.readline() == "ready\n"

    for turn in range(40):
        node.apply(*((everywhere(node),), narrow, (everywhere(node), *others), (*narrow, *others))[turn % 4])
    stop.touch()
    passed, tried = map(int, loop.communicate(timeout=20)[0].split())

    assert tried > 1000
    assert passed == 0
    assert_no_lapse(node)


_SEIZE, _INTERRUPT, _WALL = 0x4206, 0x4207, 0x40000000  # linux/ptrace.h, linux/wait.h


def stop_thread(tid: int) -> None:
    """Stop one thread of a process; ``see_end`` of it must follow."""
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (_SEIZE, _INTERRUPT):
        if libc.ptrace(request, tid, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")


def see_end(tid: int) -> None:
    """Wait for the end of a thread that was stopped: before that nobody else sees it end."""
    while os.WIFSTOPPED(os.waitpid(tid, _WALL)[1]):
        pass


@pytest.mark.parametrize("thread", ["responder", "reader-0", "reader-1", "reader-2"])
def test_hung_thread_of_the_worker_is_noticed_whichever_it_is(node, overlay, stacked, thread):
    node.apply(everywhere(node))
    tasks = {(t / "comm").read_text().strip(): int(t.name) for t in Path(f"/proc/{node.worker_pid()}/task").iterdir()}

    stop_thread(tasks[thread])

    # Refused or not: the kernel refuses an open whose reader is killed while it opens the file.
    for folder in (stacked.merged, overlay.merged, overlay.base / "upper"):
        node.run("/bin/ls", folder / "up")
    see_end(tasks[thread])
    wait_for(lambda: [e for e in node.events if e.kind == "tamper" and e.data["state"] == "restarted"], "it is back")
    assert [e.data["state"] for e in node.events if e.kind == "tamper"] == ["hung", "restarted"]
    assert lists(node, stacked.merged / "up")
    assert not node.reads(stacked.merged / "up/secret")


def test_no_reader_is_started_for_overlays_where_none_is_watched(node):
    node.apply(node.file_rule(directory(node.root, recursive=True), Verdict.AUDIT))

    assert {(t / "comm").read_text() for t in Path(f"/proc/{node.worker_pid()}/task").iterdir()} == {"responder\n", "reader-0\n"}


def test_overlay_for_which_the_kernel_gives_no_group_fails_the_rules_and_leaves_the_old_ones(node, overlay):
    node.apply(node.file_rule(exact(node.write("data/secret"))))
    limit = Path("/proc/sys/fs/fanotify/max_user_groups")
    before = limit.read_text()
    limit.write_text("1")

    try:
        with pytest.raises(KernelError, match="max_user_groups"):
            node.apply(everywhere(node))
    finally:
        limit.write_text(before)
    assert not node.reads(node.root / "data/secret")
    assert node.reads(overlay.merged / "up/secret")
