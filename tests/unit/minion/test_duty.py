"""What a node holds: the last good generation, or what boot counter, break-glass and people say instead; and each is told."""

from __future__ import annotations

import json

import pytest

from garrison.common.errors import BundleError, CompileError, KernelError
from garrison.common.policy.rules import Posture, Postures
from garrison.minion import boot, release_note
from garrison.minion.boot import BootLog, BootRecord, Footing
from garrison.minion.break_glass import Glass
from garrison.minion.workloads.model import Workload, WorkloadKind
from unit.minion.duty_node import Node, harmless, policy, switch, two_generations


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


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
