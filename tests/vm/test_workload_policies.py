"""Signed policies that select by label, on a node with systemd and Podman: they hold in what they select, and nowhere else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.lab import Lab, Machine, Vm
from vm.test_main_job import GARRISON, ROOT, Master, join, until

pytestmark = pytest.mark.long

KERNELS = [pytest.param(Machine(kernel, memory_mib=1024), id=kernel) for kernel in ("6.1", "6.12")]
IMAGE = """
set -e
mkdir -p /opt/image/bin && cd /opt/image && cp /bin/busybox bin/
for name in sh cat rmdir sleep; do ln -sf busybox bin/$name; done
echo hello > secret
tar -c . > /opt/image.tar && podman import -q /opt/image.tar lab:1
echo hello > /secret
"""
TOP = "policies:\n- files: [policies/*.yaml]\n  hosts: edge\n  mode: enforce\n"
POLICY = """apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: %s, namespace: default}
spec:
  selector: {matchLabels: {%s}}
  file: {matchPaths: [{path: /secret}]}
  syscalls: {matchSyscalls: [{syscall: [rmdir]}]}
  action: Block
"""
POLICIES = {"web": "app: web", "one-unit": "garrison/unit: named.service", "bob": "garrison/user: bob"}


class Site:
    """A master here, and a node that holds ``POLICIES``."""

    def __init__(self, master: Master, vm: Vm, work: Path) -> None:
        self.master, self.vm, self.work = master, vm, work

    def apply(self) -> None:
        """Sign and assign the policies, and wait until the node holds them."""
        states = self.work / "states"
        (states / "policies").mkdir(parents=True)
        (states / "top.yml").write_text(TOP)
        for name, selector in POLICIES.items():
            (states / "policies" / f"{name}.yaml").write_text(POLICY % (name, selector))
        where = ("--states", str(states), "--keys", str(self.work / "keys"), "--inventory", str(ROOT / "inventory"))
        self.master.cli("apply", *where, "--limit", "edge-1", "--wait", "60")

    def container(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a container whose first program reads the secret."""
        return self.vm.run("podman", "run", "--rm", "--network=none", *options, "lab:1", "cat", "/secret", timeout_s=120)

    def unit(self, name: str, more: str = "") -> subprocess.CompletedProcess[str]:
        """Start a unit whose program reads the secret."""
        self.vm.put(f"/etc/systemd/system/{name}", f"[Service]\nType=oneshot\nExecStart=/bin/cat /secret\n{more}")
        self.vm.check("systemctl", "daemon-reload")
        shown = ("garrison", "minion", "workloads", "--json")
        until(lambda: f'"{name}"' in self.vm.check(*shown), f"{name} is known")
        return self.vm.run("systemctl", "start", name)

    def login(self, user: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Have a user log in and read the secret, or do something else."""
        argv = self.vm.ssh_argv(*(argv or ("cat", "/secret")), user=user)
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module", params=KERNELS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose node can do everything, until its policies are applied at the end of this fixture."""
    assert Path(GARRISON).exists()
    work = tmp_path_factory.mktemp("site")
    with Lab() as lab:
        master = Master(work)
        try:
            vm = lab.boot("edge-1", request.param, reach_host=True)
            vm.check("sh", "-c", IMAGE, timeout_s=300)
            join(master, vm)
            made = Site(master, vm, work)
            for control in (made.container("--label", "app=web"), made.unit("named.service"), made.login("bob")):
                assert control.returncode == 0, control.stderr
            made.apply()
            yield made
        finally:
            master.close()


def test_policy_holds_in_a_labelled_container_from_its_first_program_on(site: Site) -> None:
    refused, other = site.container("--label", "app=web", "--name", "web"), site.container("--label", "app=db")

    assert refused.returncode != 0
    assert "Operation not permitted" in refused.stderr
    assert (other.returncode, other.stdout) == (0, "hello\n")
    assert site.vm.check("cat", "/secret") == "hello\n"

    def alert() -> dict[str, object] | None:
        found = [event for event in site.master.events("--kind", "alert") if event["policy"] == "web"]
        return next((event for event in found if event["data"].get("container.name") == "web"), None)

    event = until(alert, "the alert names the container")
    assert event["data"]["container.labels"] == ["app=web"]
    assert event["data"]["container.image"] == "localhost/lab:1"


def test_policy_holds_in_a_container_that_ran_before_and_for_programs_started_in_it_later(site: Site) -> None:
    site.vm.check(
        "podman", "run", "-d", "--network=none", "--name", "long", "--label", "app=web", "lab:1", "sleep", "900", timeout_s=120
    )

    refused = site.vm.run("podman", "exec", "long", "cat", "/secret", timeout_s=120)

    assert refused.returncode != 0
    assert "Operation not permitted" in refused.stderr
    shown = json.loads(site.vm.check("garrison", "minion", "workloads", "--json", "--kind", "container"))
    assert {each["name"]: each["policies"] for each in shown["workloads"]} == {"long": ["web"]}
    site.vm.check("podman", "rm", "-f", "-t", "0", "long", timeout_s=120)


def test_policy_holds_in_a_unit_by_name_and_by_the_label_in_its_file(site: Site) -> None:
    assert site.unit("named.service").returncode != 0
    assert site.unit("labelled.service", "[X-Garrison]\nLabels=app=web\n").returncode != 0
    assert site.unit("other.service", "[X-Garrison]\nLabels=app=db\n").returncode == 0


def test_policy_holds_in_a_users_login_and_in_nobody_elses(site: Site) -> None:
    bob, alice = site.login("bob"), site.login("alice")

    assert bob.returncode != 0
    assert "Operation not permitted" in bob.stderr
    assert (alice.returncode, alice.stdout) == (0, "hello\n")


def test_calls_are_told_of_what_the_policies_select_and_of_nothing_else(site: Site) -> None:
    site.vm.run("rmdir", "/no/host")
    site.login("alice", "rmdir", "/no/alice")
    for label in ("db", "web"):  # what is not selected first: what is told of it would be told before
        argv = ("podman", "run", "--rm", "--network=none", "--label", f"app={label}", "lab:1", "rmdir", f"/no/{label}")
        site.vm.run(*argv, timeout_s=120)
    site.unit("other.service", "ExecStartPre=-/bin/rmdir /no/other\n")
    site.unit("named.service", "ExecStartPre=-/bin/rmdir /no/named\n")
    site.login("bob", "rmdir", "/no/bob")

    def told() -> dict[str, str]:
        found = site.master.events("--kind", "alert")
        return {e["object"]: e["policy"] for e in found if e["operation"] == "syscall" and e["object"].startswith("rmdir /no/")}

    until(lambda: "rmdir /no/bob" in told(), "the last is told")
    assert told() == {"rmdir /no/web": "web", "rmdir /no/named": "one-unit", "rmdir /no/bob": "bob"}
