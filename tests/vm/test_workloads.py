"""A node with systemd and Podman: containers of root and of a user, units and logins are known by label, and in time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vm.lab import Lab, Machine, Vm

pytestmark = pytest.mark.long

SYSTEMD = Machine("6.1", memory_mib=1024)
IMAGE = """
set -e
mkdir -p /opt/image/bin && cd /opt/image && cp /bin/busybox bin/
for name in sh cat sleep true; do ln -sf busybox bin/$name; done
tar -c . > /opt/image.tar && podman import -q /opt/image.tar lab:1
"""
# Prints a line when a container is first told of with its labels: its name, when that was, when its cgroup was made (since boot).
TELLER = r"""
import os, time
from garrison.minion.workloads.watcher import WorkloadWatcher
seen = set()
def told(workloads):
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for each in workloads:
        if each.kind == "container" and "app=gap" in each.labels and each.cgroup not in seen:
            seen.add(each.cgroup)
            made = os.stat("/sys/fs/cgroup" + each.cgroup).st_ctime - time.time() + now
            print(each.name, now, made, flush=True)
watcher = WorkloadWatcher()
watcher.tell(told)
watcher.start(lambda event: None)
print("ready", flush=True)
time.sleep(1e6)
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Vm]:
    """A node whose agent runs, with an image for root's Podman."""
    with Lab() as lab:
        vm = lab.boot("edge-1", SYSTEMD)
        vm.check("sh", "-c", IMAGE, timeout_s=300)
        vm.start("garrison", "minion", "--node", "edge-1", "--backends", "audit", log="/tmp/minion.log")
        vm.until(lambda: vm.run("test", "-e", "/run/garrison/workloads.json").returncode == 0, "the agent's first look", 120)
        yield vm


def workloads(vm: Vm, **wanted: str) -> list[dict[str, Any]]:
    """Return what ``garrison minion workloads`` shows with these fields."""
    found = json.loads(vm.check("garrison", "minion", "workloads", "--json"))["workloads"]
    return [each for each in found if all(each[key] == value for key, value in wanted.items())]


def known(vm: Vm, look: Callable[[dict[str, Any]], bool], what: str, **wanted: str) -> dict[str, Any]:
    """Return the workload with these fields once it looks as wanted."""
    return vm.until(lambda: next((each for each in workloads(vm, **wanted) if look(each)), None), what, 120)


def number(vm: Vm, cgroup: str) -> int:
    return int(vm.check("stat", "-c", "%i", f"/sys/fs/cgroup{cgroup}"))


def by_ssh(vm: Vm, user: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a login session, as people do."""
    return subprocess.run(vm.ssh_argv("sh", "-c", command, user=user), check=False, capture_output=True, text=True, timeout=300)


def test_container_of_roots_podman_is_known_by_its_labels(node: Vm) -> None:
    argv = ("--name", "web", "--label", "app=web", "--label", "tier=front", "--label", "garrison/unit=fake")
    node.check("podman", "run", "-d", "--network=none", *argv, "lab:1", "sleep", "1000", timeout_s=120)
    other = node.check("podman", "run", "-d", "--network=none", "--name", "db", "lab:1", "sleep", "1000", timeout_s=120).strip()

    web = known(node, lambda each: bool(each["cgroup_id"]), "web", name="web", kind="container")

    assert {"app=web", "tier=front", "kubearmor.io/container.name=web", "garrison/engine=podman"} <= set(web["labels"])
    assert "garrison/unit=fake" not in web["labels"]
    assert (web["image"], web["namespace"]) == ("localhost/lab:1", "default")
    assert web["cgroup_id"] == number(node, web["cgroup"])
    shown = node.check("podman", "inspect", "-f", "{{.State.CgroupPath}}", "web").strip()
    assert shown in {
        web["cgroup"],
        f"{web['cgroup']}/container",
    }
    db = known(node, lambda each: bool(each["cgroup_id"]), "db", name="db", kind="container")
    assert other in db["cgroup"]
    assert not {"app=web", "tier=front"} & set(db["labels"])

    node.check("podman", "rm", "-f", "-t", "0", "web", "db", timeout_s=120)
    node.until(lambda: not workloads(node, kind="container"), "both are gone", 120)


def test_container_is_known_wherever_it_is_put_and_only_while_it_runs(node: Vm) -> None:
    node.check("podman", "create", "--name", "plain", "lab:1", "true", timeout_s=120)
    node.check(
        "podman",
        "run",
        "-d",
        "--network=none",
        "--cgroup-parent",
        "shop.slice",
        "--name",
        "placed",
        "lab:1",
        "sleep",
        "99",
        timeout_s=120,
    )

    placed = known(node, lambda each: True, "placed", name="placed", kind="container")

    assert placed["cgroup"].startswith("/shop.slice/")
    assert "garrison/slice=shop.slice" in placed["labels"]
    assert not workloads(node, name="plain", kind="container"), "a container that does not run has no cgroup"
    node.check("podman", "rm", "-f", "-t", "0", "placed", "plain", timeout_s=120)


def test_container_of_a_user_is_known_with_the_user(node: Vm) -> None:
    done = by_ssh(
        node,
        "alice",
        "podman import -q /opt/image.tar lab:1 && podman run -d --network=none --name mine --label app=hers lab:1 sleep 1000",
    )
    assert done.returncode == 0, done.stderr

    mine = known(node, lambda each: "app=hers" in each["labels"], "alice's container", kind="container")

    assert mine["name"] == "mine"
    assert mine["cgroup"].startswith("/user.slice/user-1000.slice/")
    assert {"garrison/user=alice", "garrison/uid=1000", "garrison/engine=podman"} <= set(mine["labels"])
    assert mine["cgroup_id"] == number(node, mine["cgroup"])
    alice = known(node, lambda each: bool(each["cgroup_id"]), "alice herself", kind="user", name="alice")
    assert alice["cgroup_id"] == number(node, "/user.slice/user-1000.slice")
    by_ssh(node, "alice", "podman rm -f -t 0 mine")


def test_user_is_known_before_and_after_logging_in(node: Vm) -> None:
    before = known(node, lambda each: True, "bob", kind="user", name="bob")
    session = subprocess.Popen(node.ssh_argv("sleep", "1000", user="bob"))
    try:
        after = known(node, lambda each: bool(each["cgroup_id"]), "bob's session", kind="user", name="bob")
        assert after["cgroup_id"] == number(node, "/user.slice/user-1001.slice")
    finally:
        session.kill()
        session.wait()
    assert before["cgroup"] == after["cgroup"] == "/user.slice/user-1001.slice"
    assert before["labels"] == after["labels"]


def test_unit_has_the_labels_of_its_file_and_systemd_minds_them_not(node: Vm) -> None:
    unit = "[Service]\nExecStart=/bin/sleep 1000\nSlice=shop-web.slice\n[X-Garrison]\nLabels=app=web tier=front\n"
    node.put("/etc/systemd/system/shop.service", unit)
    idle = known(node, lambda each: "app=web" in each["labels"], "the unit before it runs", name="shop.service")
    assert idle["cgroup_id"] == 0
    assert "shop" not in node.run("systemd-analyze", "verify", "/etc/systemd/system/shop.service").stderr

    node.check("systemctl", "daemon-reload")
    node.check("systemctl", "start", "shop.service")
    running = known(node, lambda each: bool(each["cgroup_id"]), "the unit when it runs", name="shop.service")

    shown = node.check("systemctl", "show", "-P", "ControlGroup", "shop.service").strip()
    assert running["cgroup"] == idle["cgroup"] == shown
    assert running["cgroup_id"] == number(node, shown)
    assert running["labels"] == idle["labels"]


def test_every_service_that_runs_is_known_and_no_other_counts_as_running(node: Vm) -> None:
    def agree() -> bool:
        shown = node.check("systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend")
        running = {line.split()[0] for line in shown.splitlines()} - {"user@0.service", "user@1000.service", "user@1001.service"}
        held = {each["name"] for each in workloads(node, kind="unit") if each["cgroup_id"]}
        return running <= held

    node.until(agree, "systemd's and our list to agree", 60)


def test_templates_instance_is_predicted_where_systemd_puts_it(node: Vm) -> None:
    node.put("/etc/systemd/system/two-part@.service", "[Service]\nExecStart=/bin/sleep 1000\n[X-Garrison]\nLabels=app=t\n")
    node.check("systemctl", "daemon-reload")
    node.check("systemctl", "start", "two-part@x.service")

    running = known(node, lambda each: bool(each["cgroup_id"]), "the instance", name="two-part@x.service")

    assert running["cgroup"] == "/system.slice/system-two\\x2dpart.slice/two-part@x.service"
    assert {"app=t", "garrison/template=two-part@.service"} <= set(running["labels"])


def test_labels_are_told_before_a_containers_first_program_starts(node: Vm) -> None:
    """Nothing holds the container up for it: the figures say by how much the race is won."""
    node.put("/tmp/teller.py", TELLER)
    teller = node.start("python3", "/tmp/teller.py", log="/tmp/teller.log")
    node.until(lambda: "ready" in teller.output(), "the watcher")
    rows = []
    for n in range(8):
        argv = (
            "podman",
            "run",
            "--rm",
            "--network=none",
            "--name",
            f"gap{n}",
            "--label",
            "app=gap",
            "lab:1",
            "cat",
            "/proc/uptime",
        )
        started = float(node.check(*argv, timeout_s=120).split()[0])
        node.until(lambda n=n: f"gap{n} " in teller.output(), "it is told")
        line = next(line for line in teller.output().splitlines() if line.startswith(f"gap{n} "))
        told, made = map(float, line.split()[1:])
        rows.append((round((told - made) * 1000), round((started - told) * 1000)))
    teller.kill()
    print(f"\nms from cgroup to enforcers told, and on to the first program's own start (negative: too late): {rows}")  # noqa: T201
    assert len(rows) == 8
