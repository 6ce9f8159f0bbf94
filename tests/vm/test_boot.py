"""Life around enforcement on a machine with systemd: before the agent, after it, without it, and when it must let go.

Every promise has its control: the same operation is seen to work on the same machine without the policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vm.lab import Lab, Machine, Vm
from vm.test_main_job import Master, until

pytestmark = pytest.mark.long

SYSTEMD = Machine("6.1")
SECRET = ("cat", "/etc/secret/api.key")
ENCODER = ("sh", "-c", "base64 /etc/hostname")
UNITS = Path(__file__).resolve().parents[2] / "minion"
# The lab brings the code when it has a command channel, which is late: the same disks, mounted at boot in a place of their own.
FSTAB = "/dev/vdb /srv/early/site ext4 ro,noatime 0 0\n/dev/vdc /srv/early/code ext4 ro,noatime 0 0\n"
DROP_IN = """
[Unit]
RequiresMountsFor=/srv/early/site /srv/early/code
[Service]
Environment=PYTHONPATH=/srv/early/code:/srv/early/site
ExecStart=
ExecStart=/usr/local/bin/garrison minion {command}
"""
POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: {name}}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  {what}
  action: Block
"""
PROTECT_SECRET = POLICY.format(name="secret", what="file: {matchPaths: [{path: /etc/secret/api.key}]}")
NO_ENCODER = POLICY.format(name="no-encoder", what="process: {matchPaths: [{path: /usr/bin/base64}]}")


BY_UNIT = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: shop}
spec:
  selector: {matchLabels: {garrison/unit: shop.service}}
  file: {matchPaths: [{path: /etc/secret/api.key}]}
  action: Block
"""
# Done before the agent is started; what it leaves running tries again when it is told.
EARLY_UNIT = """
[Unit]
DefaultDependencies=no
After=garrison-enforce.service
Before=garrison-minion.service sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'cat /etc/secret/api.key > /run/{name}.early 2>&1; \
 (until [ -e /run/again ]; do sleep 0.2; done; cat /etc/secret/api.key > /run/{name}.late 2>&1; touch /run/{name}.done) & :'
[Install]
WantedBy=sysinit.target
"""


class Edge:
    """A node with both units installed, and its master."""

    def __init__(self, vm: Vm, master: Master) -> None:
        self.vm, self.master = vm, master

    def install(self) -> None:
        """Install units, join, be accepted; the agent runs then."""
        vm, master = self.vm, self.master
        vm.put("/etc/secret/api.key", "not for everybody\n")
        vm.put("/etc/garrison/join.json", (master.directory / "join.json").read_bytes(), 0o600)
        vm.put("/etc/garrison/minion.toml", 'join = "/etc/garrison/join.json"\nnode = "edge-1"\n')
        vm.check("sh", "-c", "mkdir -p /srv/early/site /srv/early/code; cat >> /etc/fstab", stdin=FSTAB)
        for name, command in (("garrison-minion", ""), ("garrison-enforce", "enforce")):
            vm.put(f"/etc/systemd/system/{name}.service", (UNITS / f"{name}.service").read_bytes())
            vm.put(f"/etc/systemd/system/{name}.service.d/lab.conf", DROP_IN.format(command=command))
        vm.check("systemctl", "daemon-reload")
        vm.check("systemctl", "enable", "garrison-minion", "garrison-enforce")
        shown = json.loads(vm.check("garrison", "minion", "key", "--json"))["fingerprint"]
        vm.check("systemctl", "start", "garrison-minion")
        until(lambda: shown in master.cli("nodes", "pending", "--json"), "the node knocks")
        master.cli("nodes", "accept", "edge-1", "--key", shown)
        self.until_online()

    def until_online(self) -> None:
        until(lambda: self.node()["state"] == "online", "the node is on line")

    def node(self) -> dict[str, Any]:
        return json.loads(self.master.cli("nodes", "--json"))["nodes"][0]

    def apply(self, *policies: str, wait: bool = True) -> None:
        """Assign ``policies``."""
        work = self.master.work
        (work / "states/policies").mkdir(parents=True, exist_ok=True)
        (work / "states/policies/all.yaml").write_text("---".join(policies))
        (work / "states/top.yml").write_text("policies:\n- files: [policies/*.yaml]\n  hosts: all\n  mode: enforce\n")
        (work / "hosts.ini").write_text("edge-1\n")
        where = ("--states", str(work / "states"), "--keys", str(work / "keys"), "--inventory", str(work / "hosts.ini"))
        self.master.cli("apply", *where, *(("--wait", "60") if wait else ()))

    def refuses(self, what: tuple[str, ...]) -> bool:
        done = self.vm.run(*what)
        assert done.returncode == 0 or "not permitted" in done.stderr, done.stderr
        return done.returncode != 0

    def status(self) -> dict[str, Any]:
        return json.loads(self.vm.run("garrison", "minion", "status", "--json").stdout)

    def kernel(self) -> dict[str, Any]:
        return json.loads(self.vm.check("garrison", "enforcer", "status", "--json"))

    def record(self) -> dict[str, Any]:
        return json.loads(self.vm.get("/var/lib/garrison/minion/boot.json"))

    def tamper(self, state: str) -> list[dict[str, Any]]:
        return [e for e in self.master.events("--kind", "tamper") if e.get("data", {}).get("state") == state]

    def early(self) -> list[dict[str, Any]]:
        return [e for e in self.master.events("--kind", "agent") if e["data"]["state"] == "early-enforcement"]

    def agent_is(self, state: str) -> bool:
        return self.vm.run("systemctl", "is-active", "garrison-minion").stdout.strip() == state


@pytest.fixture
def edge(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[Edge]:
    master = Master(tmp_path)
    made = Edge(lab.boot("edge-1", getattr(request, "param", SYSTEMD), reach_host=True), master)
    made.install()
    yield made
    master.close()


def test_policy_holds_without_the_agent_from_before_the_network_until_it_is_released(edge: Edge) -> None:
    vm = edge.vm
    assert not edge.refuses(SECRET), "without policy it can be read"
    edge.apply(PROTECT_SECRET)
    assert edge.refuses(SECRET)

    # The agent is killed, and nobody starts it again.
    vm.put("/run/systemd/system/garrison-minion.service.d/once.conf", "[Service]\nRestart=no\n")
    vm.check("systemctl", "daemon-reload")
    vm.check("systemctl", "kill", "--signal=KILL", "garrison-minion")
    vm.until(lambda: edge.agent_is("failed"), "the agent is dead")
    assert edge.refuses(SECRET)

    # A boot without the agent.
    vm.check("systemctl", "disable", "garrison-minion")
    vm.check("sync")
    vm.cut_power()
    vm.power_on()
    assert edge.agent_is("inactive")
    assert edge.refuses(SECRET)
    assert "attached" in vm.check("garrison", "enforcer", "status")
    kernel = edge.kernel()
    assert kernel["enforcing"]
    assert kernel["versions"][0]["counters"]["blocks"] >= 1
    early, network = (moment(vm, unit) for unit in ("garrison-enforce.service", "network-pre.target"))
    assert 0 < early < network
    assert early < moment(vm, "sysinit.target")

    # Released by hand: only when somebody means it, and the agent tells it and enforces again.
    assert vm.run("garrison", "enforcer", "release", stdin="no\n").returncode == 3
    assert edge.refuses(SECRET)
    vm.check("garrison", "enforcer", "release", "--yes")
    assert not edge.refuses(SECRET)
    assert not edge.kernel()["enforcing"]
    vm.check("systemctl", "start", "garrison-minion")
    vm.until(lambda: edge.refuses(SECRET), "the agent enforces again")
    told = until(lambda: edge.tamper("released"), "the release is told")
    assert told[0]["severity"] == 9
    assert told[0]["data"]["uid"] == 0
    assert until(edge.early, "early enforcement is told")[-1]["data"]["outcome"] == "enforced"
    assert vm.run("garrison", "enforcer", "release", "--yes").returncode == 3, "not under a running agent"
    assert edge.refuses(SECRET)


def test_protected_enforcement_is_released_only_by_order_of_the_authors(edge: Edge) -> None:
    vm = edge.vm
    edge.apply(PROTECT_SECRET)
    assert moves_pins(vm), "unprotected, root can"
    settings = vm.get("/etc/garrison/minion.toml").decode()
    vm.put("/etc/garrison/minion.toml", f'{settings}tamper = "block"\n')
    vm.check("systemctl", "restart", "garrison-minion")
    vm.until(lambda: not moves_pins(vm), "the pins to be protected", 60)

    # Who can write the file changes nothing by it: not for the running agent.
    vm.put("/etc/garrison/minion.toml", settings)
    assert not moves_pins(vm)
    until(lambda: ("unpin", "EPERM") in attempts(edge), "it is told")
    vm.put("/etc/garrison/minion.toml", f'{settings}tamper = "block"\n')

    vm.check("systemctl", "stop", "garrison-minion")
    for how in ((), order(edge, "edge-2"), order(edge, "edge-1", spoil=True)):
        assert vm.run("garrison", "enforcer", "release", "--yes", *how).returncode == 3
        assert edge.refuses(SECRET)
    assert vm.run("setpriv", "--reuid=1000", "garrison", "enforcer", "release", "--yes").returncode == 2
    vm.check("garrison", "enforcer", "release", "--yes", *order(edge, "edge-1"))
    assert not edge.refuses(SECRET)
    vm.check("systemctl", "start", "garrison-minion")
    assert until(lambda: edge.tamper("released"), "the release is told")[-1]["data"]["ordered"] is True

    # A restart with a weaker setting is obeyed, and told.
    vm.until(lambda: not moves_pins(vm), "the pins to be protected again", 60)
    vm.put("/etc/garrison/minion.toml", settings)
    vm.check("systemctl", "restart", "garrison-minion")
    assert until(lambda: edge.tamper("lowered"), "the weaker setting is told")[-1]["severity"] == 9


def attempts(edge: Edge) -> set[tuple[str, str]]:
    """What was tried at the enforcer, and what came of it."""
    return {(e["operation"], e["result"]) for e in edge.master.events("--kind", "tamper")}


def moves_pins(vm: Vm) -> bool:
    """Whether root can move the pins away; moves them back."""
    return vm.run("sh", "-ec", "cd /sys/fs/bpf; mv garrison other; mv other garrison").returncode == 0


def order(edge: Edge, node: str, *, spoil: bool = False) -> tuple[str, ...]:
    """Have the author sign an order for ``node``; returns the arguments that show it."""
    signed = edge.master.cli("enforcer", "order", node, "--keys", str(edge.master.work / "keys"))
    if spoil:
        document = json.loads(signed)
        document["signed"]["expires"] = "2100-01-01T00:00:00Z"
        signed = json.dumps(document)
    edge.vm.put("/root/order", signed)
    return "--order", "/root/order"


def test_early_enforcement_killed_at_any_moment_is_made_good_by_the_next_one(edge: Edge) -> None:
    vm = edge.vm
    edge.apply(PROTECT_SECRET)
    vm.check("systemctl", "disable", "--now", "garrison-minion")
    vm.check("sync")
    for seconds in ("0.5", "1", "2", "3", "4"):
        vm.check("garrison", "enforcer", "release", "--yes")
        assert not edge.refuses(SECRET)
        vm.run("timeout", "-s", "KILL", seconds, "garrison", "minion", "enforce")  # with its child

        vm.check("garrison", "minion", "enforce")

        assert edge.refuses(SECRET), f"after a kill at {seconds} s"

    vm.start("garrison", "minion", "enforce", log="/dev/null")
    vm.cut_power()
    vm.power_on()
    assert edge.refuses(SECRET)


@pytest.mark.parametrize("edge", [SYSTEMD, Machine("6.12")], ids=["6.1", "6.12"], indirect=True)
def test_rule_for_a_unit_holds_in_it_from_the_first_moment_of_a_boot_before_any_agent_and_after(edge: Edge) -> None:
    vm = edge.vm
    for name in ("shop", "other"):
        vm.put(f"/etc/systemd/system/{name}.service", EARLY_UNIT.format(name=name))
        vm.check("systemctl", "enable", name)
    edge.apply(BY_UNIT)
    vm.check("sync")
    vm.cut_power()
    vm.power_on()
    vm.until(lambda: edge.agent_is("active"), "the agent runs")

    early = {name: moment(vm, f"{name}.service") for name in ("shop", "other")}
    assert all(0 < each < moment(vm, "garrison-minion.service") for each in early.values()), "both were done before the agent was"
    assert "not permitted" in vm.get("/run/shop.early").decode()
    assert vm.get("/run/other.early") == b"not for everybody\n"
    told = until(edge.early, "early enforcement is told")[-1]["data"]
    assert (told["outcome"], told["detail"]) == ("enforced", "")

    vm.check("touch", "/run/again")  # for processes that were there before the agent
    vm.until(lambda: all(vm.run("test", "-e", f"/run/{name}.done").returncode == 0 for name in early), "they tried again")
    assert "not permitted" in vm.get("/run/shop.late").decode()
    assert vm.get("/run/other.late") == b"not for everybody\n"
    assert not edge.refuses(SECRET), "the node itself may"


def moment(vm: Vm, unit: str) -> int:
    """When ``unit`` became active, microseconds since the kernel's start."""
    return int(vm.check("systemctl", "show", "--value", "--property", "ActiveEnterTimestampMonotonic", unit))


def test_three_failed_boots_lead_to_safe_mode_and_a_person_leads_out_of_it(edge: Edge) -> None:
    vm = edge.vm
    edge.apply(PROTECT_SECRET)
    edge.apply(PROTECT_SECRET, NO_ENCODER)
    vm.check("systemctl", "disable", "--now", "garrison-minion")  # from here on no boot becomes healthy
    vm.check("sync")
    assert edge.refuses(SECRET)
    assert edge.refuses(ENCODER)

    for _ in range(3 - (not edge.record()["healthy"])):
        vm.cut_power()
        vm.power_on()
        assert edge.record()["footing"] == "sound"
        assert edge.refuses(ENCODER)
    vm.reboot()

    assert edge.record()["footing"] == "previous"
    assert edge.refuses(SECRET), "the generation before"
    assert not edge.refuses(ENCODER), "not the newest"

    vm.reboot()

    assert not edge.refuses(SECRET)
    assert not edge.refuses(ENCODER)
    vm.check("systemctl", "start", "garrison-minion")
    until(lambda: edge.node()["state"] == "online", "it can be reached")
    assert "safe mode: nothing" in edge.status()["obstacle"]
    assert until(lambda: edge.tamper("safe-mode"), "it is told")[-1]["severity"] == 9
    until(lambda: "safe mode" in edge.master.cli("nodes"), "the master shows it")
    assert not edge.refuses(SECRET), "the assignment that is doubted was offered again, and not taken"

    vm.check("garrison", "minion", "confirm")

    vm.until(lambda: edge.refuses(SECRET) and edge.refuses(ENCODER), "the newest generation holds again")
    vm.until(lambda: not edge.status()["obstacle"], "nothing stands in its way")
    until(lambda: edge.node()["generation"] == edge.node()["assigned_generation"], "the master knows")
    assert edge.record()["footing"] == "sound"


def test_new_assignment_that_applies_leads_out_of_safe_mode(edge: Edge) -> None:
    vm = edge.vm
    edge.apply(PROTECT_SECRET)
    vm.check("systemctl", "stop", "garrison-minion")
    record = edge.record() | {"footing": "nothing", "failed": 3}
    vm.put("/var/lib/garrison/minion/boot.json", json.dumps(record), 0o600)
    vm.check("systemctl", "start", "garrison-minion")
    vm.until(lambda: not edge.refuses(SECRET), "nothing is enforced")
    edge.until_online()

    edge.apply(PROTECT_SECRET, NO_ENCODER)

    assert edge.refuses(SECRET)
    assert edge.refuses(ENCODER)
    assert edge.record()["footing"] == "sound"
    vm.until(lambda: not edge.status()["obstacle"], "nothing stands in its way")


def test_broken_glass_ends_enforcement_until_it_is_whole_again(edge: Edge) -> None:
    vm = edge.vm
    edge.apply(PROTECT_SECRET)
    assert edge.refuses(SECRET)

    vm.put("/etc/garrison/break-glass", 'reason = "ticket 4711"\n')

    vm.until(lambda: not edge.refuses(SECRET), "nothing is enforced")
    vm.until(lambda: not edge.kernel()["versions"], "nothing is left in the kernel")
    assert "ticket 4711" in vm.until(lambda: edge.status()["obstacle"], "it stands in the status")
    assert until(lambda: edge.tamper("break-glass"), "it is told")[0]["severity"] == 9
    until(lambda: "ticket 4711" in edge.master.cli("nodes"), "the master shows it")
    edge.apply(PROTECT_SECRET, NO_ENCODER, wait=False)
    until(lambda: "put off" in edge.node()["apply_error"], "what is assigned now has to wait")
    assert not edge.refuses(ENCODER)

    vm.check("rm", "/etc/garrison/break-glass")

    vm.until(lambda: edge.refuses(SECRET), "the last good policy holds again")
    vm.until(lambda: edge.refuses(ENCODER), "what had to wait holds too")
    until(lambda: edge.node()["apply_state"] == "applied", "the master knows")

    # By the kernel's command line, with early enforcement and agent.
    vm.reboot(replace(SYSTEMD, cmdline=("garrison.enforce=0",)))
    vm.until(lambda: edge.agent_is("active"), "the agent runs")
    assert not edge.refuses(SECRET)
    assert "garrison.enforce=0" in vm.until(lambda: edge.status()["obstacle"], "it stands in the status")
    vm.reboot(SYSTEMD)
    assert edge.refuses(SECRET)
