"""Policy on trial: enforced at once, kept or taken back, whoever dies or goes away meanwhile; and each is told."""

from __future__ import annotations

import pytest

from garrison.common.errors import BundleError, KernelError, QuarantinedError
from garrison.minion.arming import DeadmanRecord
from garrison.minion.break_glass import Glass
from garrison.minion.duty import Duty
from garrison.minion.enforcers.base import MapWrite
from garrison.minion.enforcers.stack import EnforcerStack
from garrison.minion.trial import OnTrialEnd
from unit.minion.duty_node import Node, harmless, switch, two_generations


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


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
