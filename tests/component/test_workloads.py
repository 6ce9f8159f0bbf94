"""Workloads in a real cgroup tree, and stores that really belong to other users."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.node import FakeNode
from garrison.bpf.cgroups import CgroupNames, cgroup2_root
from garrison.minion.workloads.model import Workload
from garrison.minion.workloads.watcher import WorkloadWatcher

pytestmark = pytest.mark.root

BOX = "0123456789abcdef" * 4
STORM = 5000
HERS = "home/alice/.local/share/containers/storage"


@pytest.fixture
def cgroups() -> Iterator[Path]:
    """A cgroup that stands for the root of all."""
    made = cgroup2_root() / f"garrison-test-{secrets.token_hex(4)}"
    made.mkdir()
    yield made
    for folder, _, _ in os.walk(made, topdown=False):
        Path(folder).rmdir()


@pytest.fixture
def node(tmp_path: Path, cgroups: Path) -> FakeNode:
    return FakeNode(tmp_path, cgroups)


def until(look: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)


def look(node: FakeNode) -> dict[str, Workload]:
    watcher = WorkloadWatcher(cgroups=node.cgroups, root=node.root)
    watcher.tell(lambda _: None)
    return {each.cgroup: each for each in watcher.workloads}


def test_five_thousand_cgroups_made_at_once_are_all_known_and_all_forgotten(node: FakeNode, monkeypatch) -> None:
    monkeypatch.setattr("garrison.common.limits.WORKLOADS_MAX", 2 * STORM)
    told: list[tuple[Workload, ...]] = []
    watcher = WorkloadWatcher(cgroups=node.cgroups, root=node.root)
    watcher.tell(told.append)
    watcher.start(lambda _: None)
    try:
        made = {}
        for n in range(STORM):
            path = f"/s{n % 50}.slice/u{n}.service"
            made[path] = node.cgroup(path)
        until(lambda: {each.cgroup: each.cgroup_id for each in told[-1] if each.cgroup_id} == made, "all are known by number")

        for path in made:
            (node.cgroups / path.lstrip("/")).rmdir()
        until(lambda: not any(each.cgroup_id for each in told[-1]), "all are forgotten")
    finally:
        watcher.stop()


def test_numbers_are_those_by_which_the_kernel_knows_cgroups(node: FakeNode) -> None:
    node.cgroup("/system.slice/web.service")

    found = look(node)["/system.slice/web.service"]

    assert found.cgroup_id == (node.cgroups / "system.slice/web.service").stat().st_ino


def test_cgroup_that_somebody_told_of_keeps_its_name_when_it_is_gone(cgroups: Path) -> None:
    told, seen, missed = (cgroups / name for name in ("told", "seen", "missed"))
    for each in (told, seen, missed):
        each.mkdir()
    numbers = [each.stat().st_ino for each in (told, seen, missed)]
    names = CgroupNames(cgroup2_root())
    try:
        names.remember(numbers[0], "/as/told")
        assert names.path(numbers[1]) == f"/{cgroups.name}/seen"
        for each in (told, seen, missed):
            each.rmdir()

        assert [names.path(number) for number in numbers] == ["/as/told", f"/{cgroups.name}/seen", ""]
    finally:
        names.close()


def given_to(node: FakeNode, path: str, uid: int) -> Path:
    for folder, folders, files in os.walk(node.root / "home"):
        for name in (*folders, *files):
            os.chown(Path(folder) / name, 1000, 1000)
    os.chown(node.root / path, uid, uid)
    return node.root / path


@pytest.mark.parametrize(("owner", "name"), [(1000, "hers"), (0, "hers"), (1001, BOX[:12])])
def test_users_container_is_described_by_files_of_that_user_or_root_alone(node: FakeNode, owner: int, name: str) -> None:
    """A link into a third user's home is no way to read there."""
    node.podman({BOX: ("hers", {})}, storage=HERS)
    given_to(node, f"{HERS}/libpod/bolt_state.db", owner)
    path = f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{BOX}.scope"
    node.cgroup(path)

    assert look(node)[path].name == name


def test_pipe_in_place_of_a_users_store_holds_nothing_up(node: FakeNode) -> None:
    store = node.root / HERS / "libpod/bolt_state.db"
    store.parent.mkdir(parents=True)
    os.mkfifo(store)
    os.mkfifo(node.root / HERS / "db.sql")
    path = f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{BOX}.scope"
    node.cgroup(path)
    node.cgroup("/system.slice/web.service")

    found = look(node)

    assert found[path].name == BOX[:12]
    assert "/system.slice/web.service" in found
