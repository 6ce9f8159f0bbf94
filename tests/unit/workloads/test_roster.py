"""Which workloads a node has, from its files and its cgroup tree."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from fakes.node import FakeNode
from garrison.common import limits
from garrison.minion.workloads.accounts import Account, parse_accounts
from garrison.minion.workloads.model import Workload, WorkloadKind
from garrison.minion.workloads.stores import Patience
from garrison.minion.workloads.watcher import WorkloadWatcher

BOX = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


def look(node: FakeNode) -> dict[str, Workload]:
    """Return the workloads of ``node`` by cgroup."""
    watcher = WorkloadWatcher(cgroups=node.cgroups, root=node.root)
    watcher.tell(lambda _: None)
    assert watcher.status().healthy, watcher.status().detail
    return {each.cgroup: each for each in watcher.workloads}


# ---- units and users -------------------------------------------------------------------------------------------------
def test_unit_carries_its_name_its_slice_and_the_labels_of_its_file(node: FakeNode) -> None:
    node.unit("nginx.service", "[X-Garrison]\nLabels=app=web")
    number = node.cgroup("/system.slice/nginx.service")

    found = look(node)["/system.slice/nginx.service"]

    assert (found.kind, found.name, found.namespace, found.cgroup_id) == (WorkloadKind.UNIT, "nginx.service", "default", number)
    assert found.labels == {"garrison/kind=unit", "garrison/unit=nginx.service", "garrison/slice=system.slice", "app=web"}


def test_unit_that_does_not_run_is_known_with_the_cgroup_it_will_have(node: FakeNode) -> None:
    node.unit("nginx.service", "[Service]\nSlice=shop-web.slice\n[X-Garrison]\nLabels=app=web")
    before = look(node)["/shop.slice/shop-web.slice/nginx.service"]
    number = node.cgroup("/shop.slice/shop-web.slice/nginx.service")
    after = look(node)["/shop.slice/shop-web.slice/nginx.service"]

    assert (before.cgroup_id, after.cgroup_id) == (0, number)
    assert before.labels == after.labels


def test_instance_is_known_by_its_template_too(node: FakeNode) -> None:
    node.unit("db@.service", "[X-Garrison]\nLabels=app=db")
    node.cgroup("/system.slice/system-db.slice/db@east.service")

    labels = look(node)["/system.slice/system-db.slice/db@east.service"].labels

    assert {"garrison/unit=db@east.service", "garrison/template=db@.service", "app=db"} <= labels


def test_process_1_the_agent_and_its_deadman_cannot_be_selected(node: FakeNode) -> None:
    node.unit("garrison-enforce.service")
    node.cgroup("/init.scope")
    node.cgroup("/system.slice/garrison-minion.service")
    node.cgroup("/system.slice/garrison-deadman-0a1b2c3d.scope")

    assert not [each for each in look(node).values() if each.kind is WorkloadKind.UNIT]


def test_user_cannot_hide_behind_the_names_of_the_agent(node: FakeNode) -> None:
    theirs = "/user.slice/user-1000.slice/user@1000.service/app.slice/garrison-minion.service"
    node.cgroup(theirs)

    assert "garrison/user=alice" in look(node)[theirs].labels


def test_unit_whose_cgroup_cannot_be_told_is_known_once_it_runs(node: FakeNode) -> None:
    """An empty path would be the root of all cgroups."""
    node.unit("odd.service", "[Service]\nSlice=%%x/../y.slice")
    assert not [each for each in look(node).values() if each.name == "odd.service" or not each.cgroup]

    node.cgroup("/odd.slice/odd.service")

    assert look(node)["/odd.slice/odd.service"].name == "odd.service"


def test_user_carries_name_number_and_groups_and_is_known_before_logging_in(node: FakeNode) -> None:
    before = look(node)["/user.slice/user-1000.slice"]
    number = node.cgroup("/user.slice/user-1000.slice/session-1.scope") and node.cgroup("/user.slice/user-1000.slice")
    found = look(node)
    after = found["/user.slice/user-1000.slice"]

    assert (before.kind, before.name, before.cgroup_id, after.cgroup_id) == (WorkloadKind.USER, "alice", 0, number)
    assert before.labels == after.labels
    assert {"garrison/user=alice", "garrison/uid=1000", "garrison/group=alice", "garrison/group=operators"} <= after.labels
    assert "/user.slice/user-1000.slice/session-1.scope" not in found
    assert not any(each.name == "www" for each in found.values())


def test_user_without_a_name_is_known_by_number(node: FakeNode) -> None:
    node.cgroup("/user.slice/user-4711.slice")

    found = look(node)["/user.slice/user-4711.slice"]

    assert (found.name, {label for label in found.labels if "user=" in label}) == ("4711", set())


def test_unit_in_a_users_slice_has_the_users_labels_and_none_that_the_user_wrote(node: FakeNode) -> None:
    node.unit("x.service", "[X-Garrison]\nLabels=app=mine", "home/alice/.config/systemd/user")
    node.unit("y.service", "[X-Garrison]\nLabels=app=shipped", "usr/lib/systemd/user")
    base = "/user.slice/user-1000.slice/user@1000.service/app.slice"
    node.cgroup(f"{base}/x.service")
    node.cgroup(f"{base}/y.service")

    found = look(node)

    assert {"garrison/unit=x.service", "garrison/user=alice"} <= found[f"{base}/x.service"].labels
    assert not {label for label in found[f"{base}/x.service"].labels if label.startswith("app=")}
    assert "app=shipped" in found[f"{base}/y.service"].labels


def test_lines_that_are_no_accounts_are_left_out() -> None:
    accounts = parse_accounts(
        "root:x:0:0::/root:/bin/sh\n+::::::\n:x:5:5:::\nbob:x:-1:0:::\nbig:x:99999999999:0:::\nshort:x:7\n", "x:y"
    )

    assert accounts == {0: Account(name="root", uid=0, home="/root", groups=(), logs_in=True)}


# ---- containers ------------------------------------------------------------------------------------------------------
def test_docker_container_carries_its_labels_name_and_image(node: FakeNode) -> None:
    node.docker(BOX, "web", {"app": "web", "note": "two words", "garrison/unit": "fake"})
    number = node.cgroup(f"/system.slice/docker-{BOX}.scope")

    found = look(node)[f"/system.slice/docker-{BOX}.scope"]

    assert (found.kind, found.name, found.image, found.cgroup_id) == (WorkloadKind.CONTAINER, "web", "nginx:1", number)
    assert found.namespace == "default"
    assert found.labels == {
        "garrison/kind=container", "garrison/container=web", "garrison/engine=docker", "garrison/image=nginx:1",
        "garrison/slice=system.slice", "kubearmor.io/container.name=web", "app=web", "note=two words",
    }  # fmt: skip


@pytest.mark.parametrize("database", ["bolt", "sqlite"])
def test_podman_container_carries_the_labels_in_podmans_database(node: FakeNode, database: str) -> None:
    if database == "bolt":
        node.podman({BOX: ("db", {"app": "db"}), OTHER: ("web", {"app": "web"})})
    else:
        node.podman_sqlite(BOX, "db", {"app": "db"})
    node.cgroup(f"/machine.slice/libpod-{BOX}.scope/container")

    found = look(node)

    assert found[f"/machine.slice/libpod-{BOX}.scope"].name == "db"
    assert {"app=db", "garrison/engine=podman"} <= found[f"/machine.slice/libpod-{BOX}.scope"].labels
    assert f"/machine.slice/libpod-{BOX}.scope/container" not in found


def test_podman_with_another_storage_is_found_by_its_settings(node: FakeNode) -> None:
    node.file("etc/containers/storage.conf", '[storage]\ndriver = "overlay"\ngraphroot = "/srv/containers"\n')
    node.podman({BOX: ("db", {"app": "db"})}, storage="srv/containers")
    node.cgroup(f"/machine.slice/libpod-{BOX}.scope")

    assert look(node)[f"/machine.slice/libpod-{BOX}.scope"].name == "db"


def test_container_in_a_service_says_so_and_has_no_label_but_its_own(node: FakeNode) -> None:
    node.unit("web.service", "[X-Garrison]\nLabels=tier=front")
    node.podman({BOX: ("web", {"app": "web"})})
    node.cgroup(f"/system.slice/web.service/libpod-payload-{BOX}")

    found = look(node)

    labels = found[f"/system.slice/web.service/libpod-payload-{BOX}"].labels
    assert {"app=web", "garrison/unit=web.service", "garrison/kind=container"} <= labels
    assert "tier=front" not in labels
    assert "tier=front" in found["/system.slice/web.service"].labels


def test_kubernetes_container_carries_its_pods_labels_and_namespace(node: FakeNode) -> None:
    says = {
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "nginx",
        "io.kubernetes.cri.image-name": "docker.io/library/nginx:1", "io.kubernetes.cri.sandbox-id": OTHER,
        "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": "web-0",
    }  # fmt: skip
    node.task("k8s.io", BOX, says, {"io.kubernetes.pod.name": "web-0"})
    node.meta("k8s.io", OTHER, {"app": "web", "tier": "front"})
    path = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{BOX}.scope"
    node.cgroup(path)

    found = look(node)[path]

    assert (found.name, found.namespace, found.image) == ("nginx", "shop", "docker.io/library/nginx:1")
    assert {"app=web", "tier=front", "kubearmor.io/container.name=nginx", "io.kubernetes.pod.name=web-0"} <= found.labels


def test_containerd_container_with_a_name_for_an_id_is_found(node: FakeNode) -> None:
    node.task("default", "redis", {}, {"app": "cache"})
    node.cgroup("/default/redis")

    found = look(node)["/default/redis"]

    assert (found.kind, found.name, found.image) == (WorkloadKind.CONTAINER, "redis", "docker.io/library/redis:7")
    assert "app=cache" in found.labels


def test_container_that_no_engine_knows_is_known_by_its_id(node: FakeNode) -> None:
    node.cgroup(f"/docker/{BOX}")

    found = look(node)[f"/docker/{BOX}"]

    assert (found.name, found.namespace) == (BOX[:12], "default")
    assert "garrison/kind=container" in found.labels


def test_rootless_container_is_looked_up_in_its_users_store_alone(node: FakeNode) -> None:
    """A user who names a cgroup after root's container does not get that container's labels."""
    node.podman({BOX: ("root's", {"role": "root"})})
    node.podman({OTHER: ("hers", {"role": "alice"})}, storage="home/alice/.local/share/containers/storage")
    base = "/user.slice/user-1000.slice/user@1000.service/user.slice"
    node.cgroup(f"{base}/libpod-{BOX}.scope")
    node.cgroup(f"{base}/libpod-{OTHER}.scope")

    found = look(node)

    assert found[f"{base}/libpod-{BOX}.scope"].name == BOX[:12]
    assert found[f"{base}/libpod-{OTHER}.scope"].name == "hers"
    assert {"role=alice", "garrison/user=alice", "garrison/uid=1000"} <= found[f"{base}/libpod-{OTHER}.scope"].labels


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'{"ID": 7, "annotations": 7}', b"\xff\xfe", b"[" * 5000, b"{" + b" " * (2 << 20)]
)
def test_broken_files_of_an_engine_cost_the_labels_and_nothing_else(node: FakeNode, content: bytes) -> None:
    node.file(f"var/lib/docker/containers/{BOX}/config.v2.json", content)
    node.file("var/lib/containers/storage/libpod/bolt_state.db", content)
    node.file("var/lib/containers/storage/db.sql", content)
    node.file(f"run/containerd/io.containerd.runtime.v2.task/moby/{BOX}/config.json", content)
    node.cgroup(f"/system.slice/docker-{BOX}.scope")

    found = look(node)[f"/system.slice/docker-{BOX}.scope"]

    assert found.name == BOX[:12]
    assert found.labels == {
        "garrison/kind=container", f"garrison/container={BOX[:12]}", "garrison/slice=system.slice",
        f"kubearmor.io/container.name={BOX[:12]}",
    }  # fmt: skip


def test_label_of_a_path_or_a_command_stays_text(node: FakeNode) -> None:
    hostile = {"../../etc/passwd": "$(reboot)", "a": "x\x00y", "b": "\x1b[2J", "c": "; rm -rf /", "d\n": "e"}
    node.file(
        f"var/lib/docker/containers/{BOX}/config.v2.json",
        json.dumps({"ID": BOX, "Name": "/../../x", "Config": {"Image": "i\r\n", "Labels": hostile}}),
    )
    node.cgroup(f"/docker/{BOX}")

    found = look(node)[f"/docker/{BOX}"]

    assert {label for label in found.labels if not label.startswith(("garrison/", "kubearmor"))} == {
        "../../etc/passwd=$(reboot)", "c=; rm -rf /",
    }  # fmt: skip
    assert (found.name, found.image) == ("../../x", "")


# ---- limits ----------------------------------------------------------------------------------------------------------
def test_past_the_limit_what_runs_stays_and_the_status_says_so(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKLOADS_MAX", 10)
    for n in range(6):
        node.unit(f"idle{n}.service")
        node.cgroup(f"/user.slice/user-1000.slice/user@1000.service/app.slice/of-user{n}.service")
        node.cgroup(f"/system.slice/run{n}.service")
    watcher = WorkloadWatcher(cgroups=node.cgroups, root=node.root)

    watcher.tell(lambda _: None)

    names = [each.name for each in watcher.workloads]
    assert len(names) == 10
    assert {f"run{n}.service" for n in range(6)} <= set(names)
    assert not any(name.startswith("idle") for name in names)
    assert (watcher.status().healthy, watcher.status().counters["left_out"]) == (False, 6 + 1 + 6 + 1 - 4)
    assert "limit of 10" in watcher.status().detail


def test_user_with_very_many_cgroups_hides_nobody_elses(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKLOADS_OF_USER_MAX", 8)
    for n in range(50):
        node.cgroup(f"/user.slice/user-1000.slice/user@1000.service/a{n:02}.service")
    node.cgroup("/user.slice/user-1001.slice/user@1001.service/b.service")
    node.cgroup("/system.slice/z.service")
    watcher = WorkloadWatcher(cgroups=node.cgroups, root=node.root)

    watcher.tell(lambda _: None)

    names = {each.name for each in watcher.workloads}
    assert {"z.service", "b.service", "1001"} <= names
    assert len([name for name in names if name.startswith("a")]) < 10
    assert "beyond 8" in watcher.status().detail


def test_store_that_never_answers_is_left_and_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    patience, gate, asked = Patience(max_s=0.05), threading.Event(), []

    def hang() -> str:
        asked.append(1)
        gate.wait()
        return "late"

    assert patience.run(1000, hang) is None
    assert patience.run(1000, hang) is None
    assert patience.run(1001, lambda: "prompt") == "prompt"
    assert len(asked) == 1
    gate.set()
    assert "containers_of_user=1000 read=no" in caplog.text
