"""What a node holds: the last good generation, or what boot counter, break-glass and people say instead; and each is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from garrison.common.errors import BundleError, CompileError, KernelError, QuarantinedError
from garrison.common.events import Event
from garrison.common.policy.rules import Entity, Mode, Posture, Postures
from garrison.common.trust.bundle import NodeShare
from garrison.minion import boot, release_note
from garrison.minion.arming import DeadmanRecord, boottime
from garrison.minion.boot import BootLog, BootRecord, Footing
from garrison.minion.break_glass import Glass
from garrison.minion.bundles import BundleStore
from garrison.minion.duty import Duty
from garrison.minion.enforcers.base import MapWrite
from garrison.minion.enforcers.stack import EnforcerStack
from garrison.minion.trial import OnTrialEnd
from garrison.minion.workloads.model import Workload, WorkloadKind
from unit.enforcers.backends import ListBackend
from unit.trust.world import EDGE, NOW, PRINT, Depot, World

EVERYTHING = dict.fromkeys(Entity, "enforced")


def policy(name: str, spec: str, annotations: str = "") -> bytes:
    return f"""\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: {name}{annotations}}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  {spec}
""".encode()


def harmless(name: str) -> bytes:
    return policy(name, f"process: {{matchPaths: [{{path: /opt/{name}}}]}}\n  action: Block")


class LastingBackend(ListBackend):
    """Keeps its rules over ``close``, as the kernel enforcer does."""

    def __init__(self) -> None:
        super().__init__("lasting", EVERYTHING)
        self.released = 0

    def hold(self):
        return (MapWrite(7, b"key", b"before"),)

    def release(self) -> None:
        self.released += 1
        self.held = type(self.held)()


class FakeDeadman:
    """Keeps the contract of ``Armed`` without a process."""

    def __init__(self, **order) -> None:
        self.order, self.alive, self.ended, self.acts = order, True, "", ""
        self.deadline = boottime() + order["timeout_s"]

    def disarm(self, digest) -> bool:
        if not self.alive or digest != self.order["digest"]:
            return False
        self.alive, self.ended = False, "disarmed"
        return True

    def stand_down(self, why) -> None:
        self.alive, self.ended = False, f"stood down: {why}"

    def go_back(self, why) -> None:
        self.acts = f"acts: {why}"


class Node:
    """A node's data directory with a master in memory; ``start`` is a start of its agent."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.world, self.depot = directory, World(), Depot()
        self.backend, self.glass, self.events = LastingBackend(), Glass(), list[Event]()
        self.store = BundleStore(directory / "bundles", self.world.join(), EDGE, PRINT, clock=lambda: NOW)
        self.version = 0
        self.deadmen: list[FakeDeadman] = []
        self.workloads: list[Workload] = []
        self.no_deadman = ""
        self.record: DeadmanRecord | None = None
        self.settled: OnTrialEnd | None = None

    def arm(self, **order) -> FakeDeadman:
        if self.no_deadman:
            raise KernelError(0, self.no_deadman)
        self.deadmen.append(FakeDeadman(**order))
        return self.deadmen[-1]

    def start(self, boot_id: str = "this-boot", healthy_s: float = 1e9) -> Duty:
        duty = Duty(
            self.directory,
            boot_id,
            store=self.store,
            stack=EnforcerStack([self.backend]),
            emit=self.events.append,
            workloads=lambda: self.workloads,
            arm=self.arm,
            glass=lambda: self.glass,
            healthy_s=healthy_s,
        )
        self.settled = duty.settle(self.record)
        duty.take_up()
        return duty

    async def staged(self, *documents: bytes, postures: Postures | None = None):
        self.version += 1
        files = {f"policies/{number}.yaml": text for number, text in enumerate(documents)}
        share = NodeShare(files=dict.fromkeys(files, Mode.ENFORCE), labels={}, postures=postures or Postures())
        bundle = self.world.bundle(self.version, files, nodes={EDGE: share})
        self.depot.add(bundle)
        return await self.store.stage(self.world.frame(self.world.assign(bundle, self.version)), self.depot.fetch)

    def held(self) -> set[str]:
        return {rule.policy for rule in self.backend.held.rules}

    def told(self, kind: str) -> list[str]:
        return [str(event.data["state"]) for event in self.events if event.kind == kind]

    def say(self, **record) -> None:
        BootLog(self.directory).change(lambda _: BootRecord(**record))


def switch(duty: Duty, staged) -> None:
    """A trial that is confirmed at once."""
    duty.begin(staged)
    duty.keep("by the test")


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


async def two_generations(node: Node) -> None:
    duty = node.start()
    switch(duty, await node.staged(harmless("one")))
    switch(duty, await node.staged(harmless("two")))
    assert node.held() == {"two"}


# ---- starting ----------------------------------------------------------------------------------------------------------
async def test_start_enforces_the_newest_generation(node):
    await two_generations(node)
    node.backend.held = type(node.backend.held)()

    duty = node.start()

    assert node.held() == {"two"}
    assert duty.obstacle == ""


@pytest.mark.parametrize(("footing", "held"), [(Footing.SOUND, {"two"}), (Footing.PREVIOUS, {"one"}), (Footing.NOTHING, set())])
async def test_footing_says_which_generation_is_enforced_and_safe_mode_is_told(node, footing, held):
    await two_generations(node)
    node.say(boot="next", footing=footing)

    duty = node.start("next")

    assert node.held() == held
    assert bool(duty.obstacle) == (footing is not Footing.SOUND)
    assert node.told("tamper") == ([] if footing is Footing.SOUND else ["safe-mode"])


async def test_safe_mode_with_one_generation_only_enforces_nothing(node):
    switch(node.start(), await node.staged(harmless("one")))
    node.say(boot="next", footing=Footing.PREVIOUS)

    assert "nothing is enforced" in node.start("next").obstacle
    assert node.held() == set()


async def test_boot_is_counted_before_the_kernel_is_touched(node):
    await two_generations(node)

    def die(_):
        raise SystemExit(boot.BootLog(node.directory).read().boot)

    node.backend.apply = die

    with pytest.raises(SystemExit, match="deadly"):
        node.start("deadly")


async def test_boot_becomes_healthy_when_it_has_turned_long_enough(node):
    await two_generations(node)
    duty = node.start("next", healthy_s=0)
    assert not BootLog(node.directory).read().healthy

    duty.look()

    assert BootLog(node.directory).read() == BootRecord(boot="next", failed=1, healthy=True)


async def test_boot_whose_policy_could_not_be_applied_does_not_become_healthy(node):
    await two_generations(node)
    node.backend.fails = 1
    duty = node.start("next", healthy_s=0)
    duty.look()

    assert "apply by lasting" in duty.obstacle
    assert node.told("apply")[-1] == "failed"
    assert not BootLog(node.directory).read().healthy


async def test_boot_that_cannot_be_counted_is_told_and_policy_is_enforced(node):
    await two_generations(node)
    (node.directory / "boot.json").unlink()
    (node.directory / "boot.json").mkdir()

    node.start("next")

    assert node.held() == {"two"}
    assert node.told("agent") == ["degraded"]


# ---- safe mode ends ----------------------------------------------------------------------------------------------------
async def test_confirmation_brings_the_newest_generation_back(node):
    await two_generations(node)
    node.say(boot="next", footing=Footing.NOTHING)
    duty = node.start("next")
    assert duty.look() is False

    BootLog(node.directory).change(boot.confirmed)

    assert duty.look() is True
    assert node.held() == {"two"}
    assert duty.obstacle == ""
    assert node.told("apply")[-1] == "applied"


async def test_doubted_generation_is_not_taken_again_and_a_new_one_ends_safe_mode(node):
    duty = node.start()
    switch(duty, await node.staged(harmless("one")))
    doubted = await node.staged(harmless("two"))
    switch(duty, doubted)
    node.say(boot="next", footing=Footing.PREVIOUS)
    duty = node.start("next")

    with pytest.raises(BundleError, match="safe mode"):
        switch(duty, doubted)
    assert node.held() == {"one"}

    switch(duty, await node.staged(harmless("three")))
    assert node.held() == {"three"}
    assert duty.obstacle == ""
    assert BootLog(node.directory).read().footing is Footing.SOUND


# ---- break-glass, release ----------------------------------------------------------------------------------------------
async def test_broken_glass_takes_enforcement_away_and_whole_glass_brings_it_back(node):
    await two_generations(node)
    duty = node.start()
    node.glass = Glass(broken=True, why="by hand")

    assert duty.look() is True
    assert node.held() == set()
    assert node.backend.released == 1
    assert duty.generation is None
    assert "by hand" in duty.obstacle
    with pytest.raises(BundleError, match="by hand"):
        switch(duty, await node.staged(harmless("three")))
    assert duty.look() is False

    node.glass = Glass()
    assert duty.look() is True
    assert node.held() == {"two"}
    assert duty.obstacle == ""
    assert node.told("tamper") == ["break-glass", "break-glass-over"]
    assert [event.severity for event in node.events if event.kind == "tamper"] == [9, 5]


async def test_start_with_broken_glass_enforces_nothing_and_counts_no_boot(node):
    await two_generations(node)
    before = BootLog(node.directory).read()
    node.glass = Glass(broken=True, why="by hand")

    duty = node.start("next", healthy_s=0)
    duty.look()

    assert node.held() == set()
    assert BootLog(node.directory).read() == before


async def test_glass_that_does_not_count_is_told_once(node):
    node.glass = Glass(why="not root's")
    duty = node.start()
    duty.look()

    assert node.told("tamper") == ["break-glass-ignored"]


async def test_release_is_told_by_the_next_start_which_enforces_again(node):
    await two_generations(node)
    release_note.leave(node.directory)
    node.backend.release()

    node.start()

    assert node.held() == {"two"}
    assert node.told("tamper") == ["released"]
    node.start()
    assert node.told("tamper") == ["released"], "once"


async def test_release_under_a_running_agent_is_told_and_ends_with_a_new_generation(node):
    await two_generations(node)
    duty = node.start()
    release_note.leave(node.directory)

    assert duty.look() is True
    assert "released" in duty.obstacle
    assert node.held() == set()

    switch(duty, await node.staged(harmless("three")))
    assert (node.held(), duty.obstacle) == ({"three"}, "")


# ---- never deny --------------------------------------------------------------------------------------------------------
SSHD = "process: {matchPaths: [{path: /usr/sbin/sshd}]}\n  action: Block"
NO_TCP = "network: {matchProtocols: [{protocol: tcp}]}\n  action: Block"
ONLY_LS = "process: {matchPaths: [{path: /usr/bin/ls}]}\n  action: Allow"
MEANT = ', annotations: {garrison/i-mean-it: "true"}'


@pytest.mark.parametrize("spec", [SSHD, NO_TCP, "process: {matchDirectories: [{dir: /, recursive: true}]}\n  action: Block"])
async def test_policy_that_would_lock_the_node_out_fails_and_the_previous_one_stays(node, spec):
    await two_generations(node)
    duty = node.start()

    with pytest.raises(CompileError, match="what it needs to be recovered"):
        switch(duty, await node.staged(policy("bad", spec)))

    assert node.held() == {"two"}
    assert node.store.current().number == 2


async def test_policy_for_a_label_of_sshds_unit_fails_where_the_unit_has_that_label(node):
    bad = policy("bad", NO_TCP).replace(b"KubeArmorHostPolicy", b"KubeArmorPolicy")
    bad = bad.replace(b'nodeSelector: {matchLabels: {kubearmor.io/hostname: "*"}}', b"selector: {matchLabels: {role: remote}}")
    duty = node.start()
    switch(duty, await node.staged(bad))
    labels = frozenset({"role=remote", "garrison/kind=unit"})
    node.workloads = [
        Workload(
            kind=WorkloadKind.UNIT, name="ssh.service", namespace="default", labels=labels, cgroup="/system.slice/ssh.service"
        )
    ]

    with pytest.raises(CompileError, match=r"recovered: .*, in ssh\.service"):
        switch(duty, await node.staged(bad, policy("more", ONLY_LS)))

    assert node.held() == {"bad"}


async def test_policy_that_means_it_is_applied(node):
    duty = node.start()

    switch(duty, await node.staged(policy("bad", SSHD, MEANT)))

    assert node.held() == {"bad"}


async def test_allow_list_whose_posture_blocks_is_a_lockout_and_one_that_audits_is_none(node):
    duty = node.start()

    with pytest.raises(CompileError, match="recovered"):
        switch(duty, await node.staged(policy("list", ONLY_LS), postures=Postures(file=Posture.BLOCK)))
    switch(duty, await node.staged(policy("list", ONLY_LS)))

    assert node.held() == {"list"}


async def test_what_cannot_be_committed_is_taken_back(node, monkeypatch):
    await two_generations(node)
    duty = node.start()

    def full(_):
        raise KernelError(28, "write state.json")

    staged = await node.staged(harmless("three"))
    monkeypatch.setattr(node.store, "commit", full)

    with pytest.raises(KernelError):
        switch(duty, staged)
    assert node.held() == {"two"}
    assert duty.trial is None
    assert json.loads((node.directory / "bundles/state.json").read_bytes().partition(b"\n")[2])


# ---- on trial ----------------------------------------------------------------------------------------------------------
async def on_trial(node: Node) -> Duty:
    await two_generations(node)
    duty = node.start()
    duty.begin(await node.staged(harmless("three")))
    return duty


async def test_what_is_on_trial_is_enforced_under_a_deadman_and_not_current(node):
    duty = await on_trial(node)

    assert node.held() == {"three"}
    assert node.store.current().number == duty.generation.number == 2
    assert duty.trial.generation.number == 3
    order = node.deadmen[-1].order
    assert (order["generation"], order["digest"], order["writes"]) == (
        3,
        duty.trial.generation.bundle,
        (MapWrite(7, b"key", b"before"),),
    )
    assert node.told("apply")[-1] == "pending"


async def test_what_is_kept_is_committed_after_the_deadman_is_gone(node):
    duty = await on_trial(node)

    duty.keep("by the test")

    assert node.deadmen[-1].ended == "disarmed"
    assert node.store.current().number == duty.generation.number == 3
    assert node.store.on_trial is None
    assert duty.trial is None


async def test_what_is_given_up_is_taken_back_quarantined_and_told(node):
    duty = await on_trial(node)
    bundle = duty.trial.generation.bundle

    end = duty.give_up("no ssh")

    assert node.held() == {"two"}
    assert node.store.current().number == 2
    assert end == OnTrialEnd(3, bundle, "no ssh")
    assert node.deadmen[-1].ended == "stood down: no ssh"
    assert node.told("apply")[-1] == "reverted"
    node.version -= 1
    with pytest.raises(QuarantinedError, match="no ssh"):
        await node.staged(harmless("three"))
    switch(duty, await node.staged(harmless("four")))
    assert node.held() == {"four"}, "the next one is taken"


async def test_nothing_is_tried_without_a_deadman(node):
    await two_generations(node)
    duty = node.start()
    node.no_deadman = "no memory for it"

    with pytest.raises(KernelError, match="no memory"):
        duty.begin(await node.staged(harmless("three")))

    assert node.held() == {"two"}
    assert duty.trial is None
    node.no_deadman = ""
    switch(duty, await node.staged(harmless("four")))
    assert node.held() == {"four"}


async def test_deadman_that_acted_first_wins(node):
    duty = await on_trial(node)
    node.deadmen[-1].alive = False

    with pytest.raises(KernelError, match="disarm"):
        duty.keep("too late")

    assert node.store.current().number == 2
    assert node.held() == {"two"}


async def test_agent_that_cannot_go_back_has_the_deadman_act(node):
    duty = await on_trial(node)
    node.backend.fails = 1

    duty.give_up("no ssh")

    assert node.deadmen[-1].ended.startswith("stood down")
    assert node.deadmen[-1].acts.startswith("acts: no ssh")


async def test_trial_is_refused_while_one_is_going_on(node):
    duty = await on_trial(node)

    with pytest.raises(BundleError, match="generation 3 is on trial"):
        duty.begin(await node.staged(harmless("four")))

    assert node.held() == {"three"}


async def test_trial_whose_note_cannot_be_written_does_not_begin(node, monkeypatch):
    await two_generations(node)
    duty = node.start()

    def full(_):
        raise KernelError(28, "write state.json")

    staged = await node.staged(harmless("three"))
    monkeypatch.setattr(node.store._disk, "write_state", full)

    with pytest.raises(KernelError):
        duty.begin(staged)
    assert node.held() == {"two"}
    assert node.deadmen[2:] == []


async def test_quarantine_that_cannot_be_written_holds_in_memory_and_the_kernel_is_first(node, monkeypatch):
    duty = await on_trial(node)

    def full(_):
        assert node.held() == {"two"}, "the kernel was first"
        raise KernelError(28, "write state.json")

    monkeypatch.setattr(node.store._disk, "write_state", full)

    duty.give_up("no ssh")

    assert node.held() == {"two"}
    assert duty.trial is None


async def test_broken_glass_ends_a_trial_without_a_verdict(node):
    duty = await on_trial(node)
    node.glass = Glass(broken=True, why="by hand")

    duty.look()

    assert node.held() == set()
    assert duty.trial is None
    assert node.deadmen[-1].ended.startswith("stood down")
    assert node.store.on_trial.over
    with pytest.raises(BundleError, match="nothing is on trial"):
        duty.keep("too late")


async def test_agent_that_is_told_to_end_leaves_the_confirmed_rules_and_the_trial_may_be_repeated(node):
    duty = await on_trial(node)

    duty.close()

    assert node.held() == {"two"}
    duty = node.start()
    assert node.settled is None
    node.version -= 1
    duty.begin(await node.staged(harmless("three")))
    assert node.store.on_trial.tries == 1, "it did not count"


def left(node: Node, **facts) -> DeadmanRecord:
    trial = node.store.on_trial
    return DeadmanRecord(
        **{"generation": trial.generation, "digest": trial.bundle, "boot": trial.boot, "state": "reverted", **facts}
    )


async def test_agent_that_died_during_a_trial_has_its_generation_quarantined_for_what_the_deadman_says(node):
    await on_trial(node)
    node.record = left(node, why="nobody confirmed it within 5 s", errors=("the agent does not end",))

    node.start()

    assert node.settled == OnTrialEnd(3, node.settled.bundle, "nobody confirmed it within 5 s; the agent does not end")
    assert node.held() == {"two"}
    node.version -= 1
    with pytest.raises(QuarantinedError, match="nobody confirmed it"):
        await node.staged(harmless("three"))


async def test_agent_that_died_without_a_word_of_the_deadman_has_its_generation_quarantined(node):
    await on_trial(node)
    node.record = left(node, state="armed")

    node.start()

    assert node.settled.why == "the agent ended before it was confirmed"


async def test_machine_that_went_down_during_a_trial_tries_once_more_and_no_third_time(node):
    await on_trial(node)

    duty = node.start("the-next-boot")

    assert node.held() == {"two"}
    assert node.settled is None
    assert node.told("apply")[-1] == "interrupted"
    node.version -= 1
    duty.begin(await node.staged(harmless("three")))
    node.start("and-the-next")
    assert node.held() == {"two"}
    assert "2 times" in node.settled.why
    node.version -= 1
    with pytest.raises(QuarantinedError):
        await node.staged(harmless("three"))


async def test_early_enforcement_goes_by_what_was_confirmed_and_leaves_the_trial_alone(node):
    await on_trial(node)
    node.backend.held = type(node.backend.held)()
    early = Duty(
        node.directory, "the-next-boot", store=node.store, stack=EnforcerStack([node.backend]), emit=node.events.append,
        glass=Glass,
    )  # fmt: skip

    early.take_up()

    assert node.held() == {"two"}
    assert not node.store.on_trial.over


async def test_links_that_change_during_a_trial_are_followed_afterwards(node):
    duty = await on_trial(node)
    applied = node.backend.applied

    assert duty._stack._apply_again() is False
    assert node.backend.applied == applied
    duty.keep("by the test")
    assert duty._stack._apply_again() is True
    assert node.backend.applied == applied + 1
