"""Whoever enforces hears of every workload that comes, goes or changes, however many at once."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.node import FakeNode
from garrison.common.errors import KernelError
from garrison.minion.workloads import inotify, watcher
from garrison.minion.workloads.inotify import OVERFLOW, Inotify, Notice
from garrison.minion.workloads.model import Workload
from garrison.minion.workloads.tree import Tree
from garrison.minion.workloads.watcher import WorkloadWatcher

BOX = "0123456789abcdef" * 4
STORM = 5000


class Enforcer:
    """Takes workloads as an enforcer does."""

    def __init__(self) -> None:
        self.told: list[tuple[Workload, ...]] = []
        self.refuses, self.held = "", False
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, workloads: tuple[Workload, ...]) -> None:
        self.held = not self.gate.is_set()
        self.gate.wait()
        if self.refuses:
            raise KernelError(28, self.refuses)
        self.told.append(workloads)

    def running(self) -> dict[str, int]:
        return {each.cgroup: each.cgroup_id for each in self.told[-1] if each.cgroup_id} if self.told else {}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node whose cgroup tree is in memory where that is possible: these tests make ten thousands of directories."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield FakeNode(tmp_path / "root", Path(folder))


@pytest.fixture
def enforcer() -> Enforcer:
    return Enforcer()


@pytest.fixture
def watching(node: FakeNode, enforcer: Enforcer) -> Iterator[WorkloadWatcher]:
    made = WorkloadWatcher(cgroups=node.cgroups, root=node.root)
    made.tell(enforcer)
    made.start(lambda _: None)
    until(lambda: enforcer.told, "the first telling")
    yield made
    enforcer.gate.set()
    made.stop()


def until(look: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.002)


def units(node: FakeNode, count: int, folder: str = "/system.slice") -> dict[str, int]:
    """Make cgroups of so many units; returns them with their numbers."""
    return {(path := f"{folder}/u{n}.service"): node.cgroup(path) for n in range(count)}


def test_workload_is_told_when_it_comes_and_when_it_goes(node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher) -> None:
    number = node.cgroup("/a.slice/a-b.slice/web.service")
    until(lambda: enforcer.running() == {"/a.slice/a-b.slice/web.service": number}, "it came")

    shutil.rmtree(node.cgroups / "a.slice")
    until(lambda: not enforcer.running(), "it went")


def test_nothing_is_missed_in_a_storm(node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher, monkeypatch) -> None:
    """As many cgroups at once as a node that starts everything anew makes, nested, while the enforcer is slow."""
    monkeypatch.setattr("garrison.common.limits.WORKLOADS_MAX", 2 * STORM)
    enforcer.gate.clear()
    made = {path: n for k in range(50) for path, n in units(node, STORM // 50, f"/s{k}.slice/s{k}-x.slice").items()}
    enforcer.gate.set()
    until(lambda: enforcer.running() == made, "all are told")

    for k in range(0, 50, 2):
        shutil.rmtree(node.cgroups / f"s{k}.slice")
    left = {path: number for path, number in made.items() if int(path.split(".")[0][2:]) % 2}
    until(lambda: enforcer.running() == left, "half is gone")
    assert len(enforcer.told) < STORM, "a storm is told in fewer tellings than there were changes"


def test_overflow_of_the_kernels_queue_loses_nothing(
    node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher, monkeypatch
) -> None:
    monkeypatch.setattr("garrison.common.limits.WORKLOADS_MAX", 10_000)
    depth = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    node.cgroup("/system.slice/first.service")
    until(enforcer.running, "the first")
    enforcer.gate.clear()
    node.cgroup("/system.slice/second.service")
    until(lambda: enforcer.held, "the watcher is held with this one, and the queue fills up behind it")
    churned = node.cgroups / "system.slice/churned.service"
    for _ in range(depth // 2 + 200):
        churned.mkdir()
        churned.rmdir()
    made = units(node, 100)
    enforcer.gate.set()

    until(lambda: made.items() <= enforcer.running().items(), "those that the queue had no room for")
    until(lambda: watching.status().counters["overflows"] > 0, "the overflow is counted")


def test_cgroup_made_anew_under_its_old_name_is_told_with_its_new_number(
    node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher
) -> None:
    path = "/system.slice/web.service"
    node.cgroup(path)
    until(lambda: path in enforcer.running(), "it came")
    for _ in range(50):
        (node.cgroups / path.lstrip("/")).rmdir()
        (node.cgroups / "system.slice" / "placeholder").mkdir(exist_ok=True)  # so that the inode is not used again at once
        number = node.cgroup(path)
    until(lambda: enforcer.running().get(path) == number, "the newest number")


def test_labels_of_a_unit_follow_its_files(node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher) -> None:
    node.cgroup("/system.slice/web.service")
    until(enforcer.running, "it came")

    def labels() -> frozenset[str]:
        return next(each.labels for each in enforcer.told[-1] if each.name == "web.service")

    node.unit("web.service.d/labels.conf", "[X-Garrison]\nLabels=app=web")
    until(lambda: "app=web" in labels(), "a drop-in in a folder that was not there before")
    node.unit("web.service.d/labels.conf", "[X-Garrison]\nLabels=app=other")
    until(lambda: "app=other" in labels() and "app=web" not in labels(), "the drop-in changed")


def test_new_user_gets_a_name(node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher) -> None:
    node.cgroup("/user.slice/user-1001.slice")
    until(enforcer.running, "somebody logged in")
    node.file("etc/passwd", "bob:x:1001:1001::/home/bob:/bin/bash\n")
    until(lambda: any("garrison/user=bob" in each.labels for each in enforcer.told[-1] if each.cgroup_id), "the name")


def test_container_whose_engine_writes_late_gets_its_labels(
    node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher
) -> None:
    node.cgroup(f"/system.slice/docker-{BOX}.scope")
    until(enforcer.running, "it came")
    assert watching.status().counters["containers_unknown"] == 1

    node.docker(BOX, "web", {"app": "web"})

    until(lambda: any("app=web" in each.labels for each in enforcer.told[-1]), "its labels")
    assert watching.container(BOX) in enforcer.told[-1]
    assert watching.status().counters["containers_unknown"] == 0


def test_container_that_has_ended_can_still_be_named(node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher) -> None:
    """Its last events may be read after its end."""
    for n in range(300):
        node.docker(f"{n:064x}", f"c{n}", {})
        node.cgroup(f"/docker/{n:064x}")
    until(lambda: len(enforcer.running()) == 300, "they came")
    last = f"{0:064x}"
    for cgroup in (node.cgroups / "docker").iterdir():
        if cgroup.name != last:
            shutil.rmtree(cgroup)
    until(lambda: len(enforcer.running()) == 1, "the others went")
    shutil.rmtree(node.cgroups / "docker")
    until(lambda: not enforcer.running(), "it went")
    until(lambda: watching.status().counters["containers"] == 0, "the figures say so")

    named = [found.name for n in range(300) if (found := watching.container(f"{n:064x}"))]

    assert len(named) == 256
    assert "c0" in named


def test_what_could_not_be_handed_over_is_handed_over_later(
    node: FakeNode, enforcer: Enforcer, watching: WorkloadWatcher, monkeypatch
) -> None:
    monkeypatch.setattr(watcher, "_RETRY_S", 0.01)
    enforcer.refuses = "no room"
    node.cgroup("/system.slice/web.service")
    until(lambda: not watching.status().healthy, "the status says so")
    assert "no room" in watching.status().detail

    enforcer.refuses = ""

    until(lambda: "/system.slice/web.service" in enforcer.running(), "it is told after all")
    until(lambda: watching.status().healthy, "the status says so")


def test_without_watches_the_tree_is_looked_at_again_and_again(node: FakeNode, enforcer: Enforcer, monkeypatch) -> None:
    monkeypatch.setattr("garrison.common.limits.CGROUP_WATCHES_MAX", 0)
    monkeypatch.setattr(watcher, "_BLIND_WALK_S", 0.02)
    made = WorkloadWatcher(cgroups=node.cgroups, root=node.root)
    made.tell(enforcer)
    made.start(lambda _: None)
    try:
        until(lambda: enforcer.told, "the first telling")
        node.cgroup("/system.slice/web.service")
        until(lambda: "/system.slice/web.service" in enforcer.running(), "it is found")
        assert "cannot be watched" in made.status().detail
    finally:
        made.stop()


@pytest.mark.parametrize("told", ["/a.slice/a-b.slice/web.service", ""])
def test_cgroup_that_somebody_else_told_of_is_looked_at(node: FakeNode, enforcer: Enforcer, monkeypatch, told: str) -> None:
    monkeypatch.setattr("garrison.common.limits.CGROUP_WATCHES_MAX", 0)
    monkeypatch.setattr(watcher, "_BLIND_WALK_S", 3600.0)
    made = WorkloadWatcher(cgroups=node.cgroups, root=node.root)
    made.tell(enforcer)
    made.start(lambda _: None)
    try:
        until(lambda: enforcer.told, "the first telling")
        node.cgroup("/a.slice/a-b.slice/web.service")
        made.look_at(told)
        until(lambda: "/a.slice/a-b.slice/web.service" in enforcer.running(), "it is found")
    finally:
        made.stop()


def test_node_without_the_cgroup_mount_has_no_workloads_and_says_why(tmp_path: Path, enforcer: Enforcer) -> None:
    node = FakeNode(tmp_path)
    made = WorkloadWatcher(cgroups=tmp_path / "nowhere", root=node.root)

    made.tell(enforcer)

    assert not [each for each in made.workloads if each.cgroup_id]
    assert not made.status().healthy


def test_notices_of_directories_that_are_forgotten_change_nothing(node: FakeNode) -> None:
    queue = Inotify()
    try:
        tree = Tree(node.cgroups, queue, lambda _, __: False)
        node.cgroup("/system.slice/web.service")
        tree.walk()
        before = dict(tree.numbers)

        assert not tree.feed([Notice(99, inotify.CREATE | inotify.IS_DIR, "x"), Notice(1, inotify.CREATE, "file")])
        assert not tree.feed([Notice(-1, OVERFLOW, "")])
        assert tree.numbers == before
    finally:
        queue.close()
