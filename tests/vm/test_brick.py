"""A bad policy never bricks a node: whatever it denies and whatever happens meanwhile, the node is back with the one before.

One machine with systemd, both units, the kernel enforcer and a master; each test leaves it as it found it, and that is checked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vm.lab import Lab, Machine, Vm, VmError
from vm.test_boot import PROTECT_SECRET, SECRET, SYSTEMD, Edge, moves_pins
from vm.test_main_job import Master, until

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

MEANT = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: {name}, annotations: {{garrison/i-mean-it: "true"}}}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  {what}
  action: Block
"""
PYTHON = "/usr/bin/python3.11"
DEADMAN = "/srv/early/code/garrison/minion/deadman.py"
LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
EVERYTHING = "{matchDirectories: [{dir: /, recursive: true}]}"
CAPABILITIES = ("bpf", "perfmon", "sys_admin", "kill", "net_admin", "ipc_lock", "sys_resource", "dac_override", "setuid")
DENIALS = {
    "all-programs": f"process: {EVERYTHING}",
    "all-files": f"file: {EVERYTHING}",
    "all-network": "network: {matchProtocols: [{protocol: tcp}, {protocol: udp}, {protocol: icmp}, {protocol: raw}]}",
    "all-three": f"process: {EVERYTHING}\n  file: {EVERYTHING}\n  network: {{matchProtocols: [{{protocol: tcp}}]}}",
    "agent": f"process: {{matchPaths: [{{path: {PYTHON}}}]}}\n  file: {{matchPaths: [{{path: {PYTHON}}}]}}",
    "libc": f"file: {{matchPaths: [{{path: {LIBC}}}]}}",
    "deadman": f"file: {{matchPaths: [{{path: {DEADMAN}}}]}}",
}
NO_CAPABILITIES = MEANT.format(
    name="no-capabilities",
    what=f"capabilities: {{matchCapabilities: [{', '.join(f'{{capability: {name}}}' for name in CAPABILITIES)}]}}",
)
# Shows that it is enforced, and does no harm: it lingers on trial as long as the node can make no new connection.
MARK = ("cat", "/etc/secret/mark")
MARKED = MEANT.format(name="mark", what="file: {matchPaths: [{path: /etc/secret/mark}]}")
NO_SHELLS = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: no-shells}
spec:
  selector: {matchLabels: {role: remote}}
  process: {matchPaths: [{path: /bin/bash}]}
  action: Block
"""
# New connections to the master are dropped, also after a boot, as long as /etc/cut is there.
CUT = """
[Unit]
DefaultDependencies=no
Before=sysinit.target garrison-minion.service
ConditionPathExists=/etc/cut
[Service]
Type=oneshot
ExecStart=/usr/sbin/nft 'table inet cut {{ chain out {{ {hook}; tcp dport {port} tcp flags & (syn|ack) == syn drop; }}; }}'
[Install]
WantedBy=sysinit.target
"""
_ENDED = frozenset({"reverted", "quarantined", "failed"})  # failed: it did not even get so far as a trial
RECORD = "/run/garrison/deadman.json"
STEPS = {
    "noted": 'grep -q \'"trial":{{"generation":{number},[^}}]*"over":false\' /var/lib/garrison/minion/bundles/state.json',
    "armed": 'grep -q \'"generation": {number}, .*"state": "armed"\' /run/garrison/deadman.json',
    "applied": "! cat /etc/secret/mark",
}


class Brick(Edge):
    """A node that bad policies are tried on."""

    def apply_bad(self, *policies: str, confirm: str = "timeout: 20s") -> int:
        """Assign policies that are not waited for; returns their generation."""
        work = self.master.work
        (work / "states/policies/all.yaml").write_text("---".join((PROTECT_SECRET, *policies)))
        (work / "states/top.yml").write_text(
            "policies:\n- {files: [policies/*.yaml], hosts: all, mode: enforce}\n" + f"confirm:\n- {{hosts: all, {confirm}}}\n"
        )
        where = ("--states", str(work / "states"), "--keys", str(work / "keys"), "--inventory", str(work / "hosts.ini"))
        self.master.cli("apply", *where)
        return int(self.node()["assigned_generation"])

    def tries(self, look: Callable[[], Any]) -> Any:
        """The answer of ``look``; nothing while the policy keeps the lab's own channel from working."""
        try:
            return look()
        except (VmError, json.JSONDecodeError):
            return None

    def deadman(self) -> dict[str, Any]:
        return json.loads(self.vm.get(RECORD))

    def until_on_trial(self, number: int) -> None:
        def is_on_trial() -> bool:
            found = self.deadman()
            return (found["generation"], found["state"]) == (number, "armed") and self.refuses(MARK)

        until(lambda: self.tries(is_on_trial), f"generation {number} is on trial", 120)

    def agent_pid(self) -> str:
        return self.vm.check("systemctl", "show", "--value", "--property", "MainPID", "garrison-minion").strip()

    def cut(self) -> None:
        """From now on the node makes no new connection to its master, whatever happens; the one that it has goes on."""
        self.vm.check("touch", "/etc/cut")
        self.vm.check("systemctl", "start", "cut")

    def heal(self) -> None:
        """Undo ``cut``. Idempotent."""
        self.vm.check("rm", "-f", "/etc/cut")
        self.vm.run("nft", "delete", "table", "inet", "cut")

    def is_over(self, number: int) -> bool:
        """Whether ``number`` was on trial and is not any more; an agent that died before it armed is none of that."""
        done = self.vm.run("cat", RECORD)
        record = json.loads(done.stdout) if done.returncode == 0 else {}
        return bool(record.get("generation") == number and record["state"] != "armed")

    def at_step(self, step: str, number: int, then: str) -> Any:
        """Do ``then`` in the guest, with $PID for the agent, in the moment that ``step`` is reached."""
        script = f"PID={self.agent_pid()}; until {STEPS[step].format(number=number)} 2>/dev/null >&2; do :; done; {then}"
        return self.vm.start("sh", "-c", script, log="/tmp/step.log")

    def assert_back(self, number: int) -> str:
        """The end was told, the old policy holds, the node answers by SSH and to its master; returns why the end came."""
        until(lambda: self.tries(lambda: self.refuses(SECRET) and not self.refuses(MARK)), "the old policy holds", 240)
        self.heal()
        why = str(until(lambda: self.ends(number), "the end is told", 240)[-1]["error"])
        assert self.refuses(SECRET)
        assert not self.refuses(MARK)
        done = subprocess.run(self.vm.ssh_argv("hostname"), check=False, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == "edge-1", done.stderr
        until(lambda: self.node()["state"] == "online", "its master hears it", 120)
        until(lambda: self.tries(lambda: self.agent_is("active")), "the agent runs", 120)
        assert "edge-1" in self.master.cli("run", "edge-1", "--", "hostname")
        node = until(lambda: self.node() if self.node()["apply_state"] in _ENDED else None, "the master shows it", 120)
        assert node["generation"] < number
        return why

    def ends(self, number: int) -> list[dict[str, Any]]:
        found = [e["data"] for e in self.master.events("--kind", "apply")]
        return [data for data in found if data["state"] in _ENDED and data["generation"] == number]


@pytest.fixture(scope="module", params=[SYSTEMD, Machine("6.12")], ids=["6.1", "6.12"])
def made(request: pytest.FixtureRequest) -> Iterator[Brick]:
    with tempfile.TemporaryDirectory() as work, Lab() as lab:
        master = Master(Path(work))
        try:
            brick = Brick(lab.boot("edge-1", request.param, reach_host=True), master)
            brick.install()
            brick.vm.put("/etc/secret/mark", "seen\n")
            brick.vm.put(
                "/etc/systemd/system/cut.service", CUT.format(hook="type filter hook output priority 0", port=master.port)
            )
            brick.vm.check("systemctl", "enable", "cut")
            assert not brick.refuses(SECRET)
            brick.apply(PROTECT_SECRET)
            yield brick
        finally:
            master.close()


@pytest.fixture
def brick(made: Brick) -> Brick:
    made.vm.check("garrison", "minion", "confirm")  # boots that tests cut short are no failed ones
    made.vm.until(lambda: made.refuses(SECRET), "the old policy holds")
    assert not made.refuses(MARK)
    made.until_online()
    return made


@pytest.fixture
def lonely(brick: Brick) -> Iterator[Brick]:
    """A node that cannot confirm anything with its master."""
    brick.cut()
    yield brick
    brick.heal()


@pytest.mark.parametrize("what", DENIALS.values(), ids=DENIALS.keys())
def test_policy_that_denies_what_the_node_needs_is_taken_back(brick: Brick, what: str) -> None:
    number = brick.apply_bad(MEANT.format(name="bad", what=what))

    until(lambda: brick.ends(number), "it is over", 240)
    brick.assert_back(number)


def test_policy_that_nobody_confirms_is_taken_back_in_time(lonely: Brick) -> None:
    number = lonely.apply_bad(MARKED)
    lonely.until_on_trial(number)
    shown = lonely.vm.check("garrison", "enforcer", "status")
    assert f"generation {number} " in shown
    assert "armed" in shown
    until(lambda: lonely.tries(lambda: lonely.is_over(number)), "it is over", 120)

    why = lonely.assert_back(number)

    assert "not confirmed in time" in why


@pytest.mark.parametrize("signal_name", ["KILL", "STOP"])
@pytest.mark.parametrize("step", STEPS)
def test_agent_that_is_killed_or_stopped_at_any_step_leaves_the_old_policy(lonely: Brick, step: str, signal_name: str) -> None:
    number = int(lonely.node()["assigned_generation"]) + 1
    before = lonely.agent_pid()
    watcher = lonely.at_step(step, number, f"kill -{signal_name} $PID")

    assert lonely.apply_bad(MARKED) == number

    until(lambda: lonely.tries(lambda: not watcher.running()), f"the step {step}", 120)
    until(lambda: lonely.tries(lambda: lonely.agent_pid() not in {"0", before}), "another agent runs", 180)
    lonely.assert_back(number)


@pytest.mark.parametrize("step", STEPS)
def test_power_that_goes_at_any_step_leaves_the_old_policy_and_a_second_time_ends_the_matter(lonely: Brick, step: str) -> None:
    vm = lonely.vm
    number = int(lonely.node()["assigned_generation"]) + 1
    for time in ("first", "second"):
        lonely.at_step(step, number, "echo b > /proc/sysrq-trigger")  # a reset: nothing is synced
        if time == "first":
            assert lonely.apply_bad(MARKED) == number
        else:
            lonely.heal()  # it is offered again
        vm.await_down()
        vm.power_on()
        assert lonely.refuses(SECRET), "the confirmed policy, from early boot on"
        assert not lonely.refuses(MARK)

    assert "2 times" in lonely.assert_back(number)


def test_reboot_in_order_during_a_trial_counts_for_nothing(lonely: Brick) -> None:
    number = lonely.apply_bad(MARKED, confirm="timeout: 60s")
    lonely.until_on_trial(number)

    lonely.vm.reboot()

    assert lonely.refuses(SECRET)
    lonely.heal()
    until(lambda: lonely.node()["generation"] == number, "it is tried again, and confirmed", 120)
    assert lonely.refuses(MARK)
    lonely.apply(PROTECT_SECRET)


def test_clock_that_jumps_by_a_year_moves_no_deadline(lonely: Brick) -> None:
    vm = lonely.vm
    number = lonely.apply_bad(MARKED)
    lonely.until_on_trial(number)
    deadline = lonely.deadman()["deadline_boottime"]
    for jump in ("+1 year", "-2 years"):
        vm.check("date", "--set", jump)
        assert lonely.deadman()["state"] == "armed", jump
    assert lonely.deadman()["deadline_boottime"] == deadline
    vm.check("date", "--set", "+1 year")

    until(lambda: lonely.tries(lambda: lonely.is_over(number)), "taken back", 120)
    lonely.assert_back(number)


def test_full_disk_does_not_keep_the_old_policy_from_coming_back(lonely: Brick) -> None:
    vm = lonely.vm
    number = lonely.apply_bad(MARKED)
    lonely.until_on_trial(number)
    vm.run("sh", "-c", "dd if=/dev/zero of=/var/lib/garrison/filler bs=1M; sync", timeout_s=300)
    assert vm.run("sh", "-c", "echo x > /var/lib/garrison/x && sync /var/lib/garrison/x").returncode != 0, "it is full"

    until(lambda: lonely.tries(lambda: lonely.refuses(SECRET) and not lonely.refuses(MARK)), "taken back", 120)

    vm.check("rm", "/var/lib/garrison/filler")
    lonely.assert_back(number)


def test_read_only_disk_does_not_keep_the_old_policy_from_coming_back_nor_the_next_boot_from_it(lonely: Brick) -> None:
    vm = lonely.vm
    number = lonely.apply_bad(MARKED, confirm="timeout: 30s")
    lonely.until_on_trial(number)
    vm.check("sh", "-c", "sync; echo u > /proc/sysrq-trigger")
    vm.until(lambda: vm.run("touch", "/var/lib/garrison/x").returncode != 0, "it is read-only")

    until(lambda: lonely.tries(lambda: lonely.refuses(SECRET) and not lonely.refuses(MARK)), "taken back", 120)

    vm.cut_power()
    vm.power_on()
    assert lonely.refuses(SECRET)
    assert not lonely.refuses(MARK)
    lonely.heal()
    # The verdict could not be kept, and a machine that went down is one more try: this policy does no harm.
    until(lambda: lonely.node()["generation"] == number, "it is tried once more, and confirmed", 120)
    lonely.apply(PROTECT_SECRET)


def test_no_memory_and_a_stopped_agent_leave_the_deadman_to_act(lonely: Brick) -> None:
    vm = lonely.vm
    number = lonely.apply_bad(MARKED)
    lonely.until_on_trial(number)
    vm.check("kill", "-STOP", lonely.agent_pid())
    hog = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    for n in range(3):
        # The lab's own channel is never killed for memory, and what it starts inherits that.
        vm.start("sh", "-c", 'echo 900 > /proc/self/oom_score_adj; exec python3 -c "$0"', hog, log=f"/tmp/hog-{n}")

    why = lonely.assert_back(number)

    assert "nobody confirmed it" in why


def test_deadman_acts_without_any_capability(lonely: Brick) -> None:
    number = lonely.apply_bad(MARKED, NO_CAPABILITIES)
    lonely.until_on_trial(number)
    lonely.vm.check("kill", "-STOP", lonely.agent_pid())

    until(lambda: lonely.tries(lambda: lonely.is_over(number)), "the deadman acts", 120)

    assert lonely.deadman()["errors"] == []
    assert "nobody confirmed it" in lonely.assert_back(number)


def test_deadman_acts_although_the_enforcer_refuses_attempts_at_the_agent(brick: Brick) -> None:
    vm = brick.vm
    settings = vm.get("/etc/garrison/minion.toml").decode()
    vm.put("/etc/garrison/minion.toml", f'{settings}tamper = "block"\n')
    vm.check("systemctl", "restart", "garrison-minion")
    vm.until(lambda: not moves_pins(vm), "the enforcer to be protected", 60)
    before = brick.agent_pid()
    until(lambda: link_is_up(vm, before), "that agent's link is up", 120)
    brick.cut()
    number = brick.apply_bad(MARKED)
    brick.until_on_trial(number)
    assert vm.run("kill", "-STOP", before).returncode != 0
    vm.check("systemctl", "kill", "--signal=STOP", "garrison-minion")  # process 1 may

    until(lambda: brick.tries(lambda: brick.is_over(number)), "the deadman acts", 120)

    assert brick.deadman()["errors"] == []
    until(lambda: brick.tries(lambda: brick.agent_pid() not in {"0", before}), "another agent runs", 180)
    assert "nobody confirmed it" in brick.assert_back(number)
    vm.put("/etc/garrison/minion.toml", settings)
    vm.check("systemctl", "restart", "garrison-minion")


def link_is_up(vm: Vm, pid: str) -> bool:
    """Whether the agent with this number has its link."""
    status = json.loads(vm.run("garrison", "minion", "status", "--json").stdout or "{}")
    return (status.get("pid"), status.get("link")) == (int(pid), "connected")


def test_node_refuses_a_policy_for_a_label_that_only_it_knows_to_be_on_sshd(brick: Brick) -> None:
    vm = brick.vm
    vm.put("/etc/systemd/system/ssh.service.d/labels.conf", "[X-Garrison]\nLabels=role=remote\n")
    vm.until(lambda: "role=remote" in vm.check("garrison", "minion", "workloads", "--json"), "the label is known", 60)

    number = brick.apply_bad(NO_SHELLS)

    why = until(lambda: brick.ends(number), "it is over", 240)[-1]
    assert (why["state"], "in ssh.service" in why["error"]) == ("failed", True), why
    brick.assert_back(number)
    vm.check("rm", "/etc/systemd/system/ssh.service.d/labels.conf")


def test_harmless_policy_is_confirmed_and_holds_after_a_power_cut(brick: Brick) -> None:
    brick.apply(PROTECT_SECRET, MARKED)
    assert brick.refuses(MARK)
    assert brick.deadman()["state"] == "disarmed"
    brick.vm.check("sync")

    brick.vm.cut_power()
    brick.vm.power_on()

    assert brick.refuses(MARK)
    brick.until_online()
    brick.apply(PROTECT_SECRET)
    assert not brick.refuses(MARK)


def test_master_that_dies_costs_the_new_policy_and_a_node_that_may_be_alone_keeps_it(lonely: Brick) -> None:
    number = lonely.apply_bad(MARKED)
    lonely.until_on_trial(number)
    os.kill(lonely.master.process.pid, signal.SIGSTOP)
    lonely.heal()
    try:
        until(lambda: lonely.tries(lambda: lonely.is_over(number)), "taken back", 120)
        assert not lonely.refuses(MARK)
    finally:
        os.kill(lonely.master.process.pid, signal.SIGCONT)
    lonely.assert_back(number)

    lonely.cut()
    number = lonely.apply_bad(MARKED, confirm="timeout: 60s, offline: true")
    until(lambda: lonely.tries(lambda: lonely.is_over(number)), "decided by the node itself", 120)
    assert lonely.deadman()["state"] == "disarmed"
    assert lonely.refuses(MARK)
    until(lambda: lonely.node()["apply_state"] == "applied", "the master is told", 120)
    lonely.heal()
    lonely.apply(PROTECT_SECRET)
