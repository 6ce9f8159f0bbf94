"""The whole backend on a folder that looks like sysfs, and its ear at the real kernel."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fakes.usb import HUB, KEYBOARD, STICK, FakeUsb, descriptors
from garrison.common.errors import KernelError
from garrison.common.events import Event
from garrison.common.policy.devices import DeviceSpec
from garrison.common.policy.rules import Entity, Other, Posture, Postures, Rule, RuleSet, RuleStatus, Verdict
from garrison.minion.enforcers.usb import UsbEnforcer
from garrison.minion.enforcers.usb.sysfs import UsbTree
from garrison.minion.enforcers.usb.uevents import UeventSocket

BLOCK, AUDIT, ALLOW = Verdict.BLOCK, Verdict.AUDIT, Verdict.ALLOW


def rule(verdict: Verdict, *spec: int, number: int = 1) -> Rule:
    target = Other("usb", msgspec.json.encode(DeviceSpec(*spec)).decode())
    return Rule(id=f"p/{number}", policy="p", entity=Entity.DEVICE, verdict=verdict, target=target)


class Node:
    """A machine, its enforcer, and what that told."""

    def __init__(self, root: Path, usb: FakeUsb) -> None:
        self.usb, self._runtime = usb, root / "run"
        self._runtime.mkdir(exist_ok=True)
        self._told = threading.Condition()
        self.events: list[Event] = []
        self.enforcer = self.agent()

    def agent(self) -> UsbEnforcer:
        return UsbEnforcer(self._take, runtime_dir=self._runtime, tree=self.usb.tree, listen=self.usb.listen)

    def _take(self, event: Event) -> None:
        with self._told:
            self.events.append(event)
            self._told.notify_all()

    def hold(self, *rules: Rule, posture: Posture = Posture.AUDIT) -> list[str]:
        held = RuleSet(rules=rules, postures=Postures(device=posture))
        return [line.status for line in self.enforcer.apply(held)]

    def told(self, count: int) -> list[tuple[str, str, str]]:
        """Wait for so many events in all; returns place, verdict and result of each."""
        with self._told:
            assert self._told.wait_for(lambda: len(self.events) >= count, 10), self.events
            return [(str(event.data["path"]), event.verdict, event.result) for event in self.events]

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until what the thread does shows; the folder tells nobody of changes."""
        met = threading.Event()
        for _ in range(1000):
            if true():
                return
            met.wait(0.01)
        raise AssertionError("it did not come")

    @property
    def record(self) -> Path:
        return self._runtime / "usb.json"

    def crash(self) -> None:
        """End the agent as a kill does: nothing is put back; the next one begins anew."""
        self.enforcer = self.agent()


@pytest.fixture
def usb(tmp_path) -> FakeUsb:
    return FakeUsb(tmp_path)


@pytest.fixture
def node(tmp_path, usb) -> Iterator[Node]:
    node = Node(tmp_path, usb)
    yield node
    node.enforcer.close()


def test_new_device_waits_is_judged_and_let_in_or_left_out(node, usb):
    assert node.hold(rule(BLOCK, 8)) == [RuleStatus.ENFORCED]
    assert (usb.default(), usb.default_of_new_buses()) == (2, 2)

    usb.plug("1-1", descriptors(STICK))
    usb.plug("1-2", descriptors(KEYBOARD))

    assert node.told(1) == [("1-1", "block", "refused")]
    node.until(lambda: usb.authorized("1-2"))
    assert not usb.authorized("1-1")


def test_devices_that_are_there_are_judged_hubs_before_what_is_behind_them(node, usb):
    usb.plug("1-1", descriptors(HUB, device=HUB))
    usb.plug("1-1.4", descriptors(STICK))

    node.hold(rule(BLOCK))

    assert node.told(2) == [("1-1", "audit", "passed"), ("1-1.4", "block", "refused")]
    assert (usb.authorized("1-1"), usb.authorized("1-1.4")) == (True, False)
    assert all(event.data["present"] for event in node.events)


def test_last_rule_taken_away_puts_everything_back(node, usb):
    usb.plug("1-1", descriptors(STICK))
    node.hold(rule(BLOCK, 8))
    assert not usb.authorized("1-1")

    node.hold()

    assert (usb.authorized("1-1"), usb.default(), usb.default_of_new_buses()) == (True, 1, -1)
    assert not node.record.exists()


def test_rules_that_refuse_nothing_leave_the_defaults_alone(node, usb):
    assert node.hold(rule(AUDIT, 8)) == [RuleStatus.AUDITED]

    usb.plug("1-1", descriptors(STICK))

    assert node.told(1) == [("1-1", "audit", "passed")]
    assert usb.default() == 1


def test_block_rule_that_becomes_an_audit_rule_lets_in_what_it_refused(node, usb):
    usb.plug("1-1", descriptors(STICK))
    node.hold(rule(BLOCK, 8))

    node.hold(rule(AUDIT, 8))

    assert (usb.authorized("1-1"), usb.default()) == (True, 1)


def test_rules_applied_again_tell_nothing_again(node, usb):
    usb.plug("1-1", descriptors(STICK))

    node.hold(rule(BLOCK, 8))
    node.hold(rule(BLOCK, 8))

    assert len(node.events) == 1


def test_device_plugged_in_again_is_told_again(node, usb):
    node.hold(rule(BLOCK, 8))
    usb.plug("1-1", descriptors(STICK))
    node.told(1)

    usb.unplug("1-1")
    usb.plug("1-1", descriptors(STICK))

    assert len(node.told(2)) == 2


def test_message_that_was_lost_has_every_device_looked_at(node, usb):
    node.hold(rule(BLOCK, 8))
    usb.plug("1-1", descriptors(STICK), silent=True)

    usb.lose()

    assert node.told(1) == [("1-1", "block", "refused")]
    assert node.enforcer.status().counters["overruns"] == 1


def test_agent_that_died_leaves_the_door_shut_and_the_next_one_judges_who_waits(node, usb):
    node.hold(rule(BLOCK, 8))
    node.crash()
    usb.plug("1-1", descriptors(STICK), silent=True)
    usb.plug("1-2", descriptors(KEYBOARD), silent=True)
    assert not usb.authorized("1-2")

    node.hold(rule(BLOCK, 8))

    assert (usb.authorized("1-1"), usb.authorized("1-2")) == (False, True)
    node.hold()
    assert (usb.authorized("1-1"), usb.default()) == (True, 1)


def test_release_by_another_process_puts_back_what_a_dead_agent_left(node, usb):
    usb.plug("1-1", descriptors(STICK))
    node.hold(rule(BLOCK, 8))
    node.crash()
    usb.plug("1-2", descriptors(KEYBOARD), silent=True)

    node.enforcer.release()

    assert (usb.authorized("1-1"), usb.authorized("1-2"), usb.default(), usb.default_of_new_buses()) == (True, True, 1, -1)
    assert not node.record.exists()


def test_orderly_end_opens_the_door_and_keeps_out_what_was_refused(node, usb):
    usb.plug("1-1", descriptors(STICK))
    node.hold(rule(BLOCK, 8))

    node.enforcer.close()

    usb.plug("1-2", descriptors(KEYBOARD))
    assert (usb.default(), usb.authorized("1-1"), usb.authorized("1-2")) == (1, False, True)
    node.crash()
    node.hold(rule(AUDIT, 3))
    assert usb.authorized("1-1")


def test_device_that_somebody_else_keeps_out_is_never_let_in(node, usb):
    usb.plug("1-1", descriptors(KEYBOARD))
    usb.set_authorized("1-1", allowed=False)

    node.hold(rule(BLOCK, 8))
    usb.plug("1-2", descriptors(KEYBOARD))
    node.until(lambda: usb.authorized("1-2"))
    usb.set_authorized("1-2", allowed=False)
    node.hold(rule(BLOCK, 8), rule(AUDIT, 9, number=2))

    assert (usb.authorized("1-1"), usb.authorized("1-2")) == (False, False)
    node.enforcer.release()
    assert (usb.authorized("1-1"), usb.authorized("1-2")) == (False, False)


def test_bus_whose_door_somebody_else_keeps_is_only_refused_on(tmp_path):
    usb = FakeUsb(tmp_path, default=0)
    node = Node(tmp_path, usb)
    usb.plug("1-1", descriptors(STICK))
    usb.plug("1-3", descriptors(STICK))
    usb.set_authorized("1-3", allowed=True)

    node.hold(rule(BLOCK, 8))
    usb.plug("1-2", descriptors(KEYBOARD), silent=True)
    usb.lose()

    node.until(lambda: node.enforcer.status().counters.get("left") == 1)
    assert [usb.authorized(name) for name in ("1-1", "1-2", "1-3")] == [False, False, False]
    assert (usb.default(), node.enforcer.status().counters["foreign_buses"]) == (0, 1)
    node.hold()
    assert [usb.authorized(name) for name in ("1-1", "1-2", "1-3")] == [False, False, True]
    assert usb.default() == 0
    node.enforcer.close()


def test_new_bus_has_its_door_shut(node, usb):
    node.hold(rule(BLOCK, 8))

    usb.bus("usb2")
    usb.say("add", "usb2")

    node.until(lambda: usb.default("usb2") == 2)
    node.enforcer.release()
    assert usb.default("usb2") == 1


def test_door_that_somebody_opened_is_shut_again_with_the_next_device(node, usb):
    node.hold(rule(BLOCK, 8))
    usb.set_default(1)

    usb.plug("1-1", descriptors(STICK))

    node.until(lambda: usb.default() == 2)
    node.until(lambda: not usb.authorized("1-1"))


def test_what_the_machine_runs_from_stays_and_so_do_the_hubs_before_it(node, usb):
    for name in ("1-1", "1-2"):
        usb.plug(name, descriptors(HUB, device=HUB))
        usb.plug(f"{name}.1", descriptors(STICK))
    usb.carry("1-1/1-1.1")

    node.hold(rule(BLOCK, 8), rule(BLOCK, 9, number=2))

    assert [usb.authorized(name) for name in ("1-1", "1-1.1", "1-2", "1-2.1")] == [True, True, False, False]
    assert "file system" in str(node.events[0].data["spared"])


def test_what_the_kernel_does_not_do_is_told_and_others_are_judged_all_the_same(node, usb):
    usb.plug("1-1", descriptors(STICK))
    usb.plug("1-2", descriptors(STICK))
    usb.cannot_be_opened("1-1")

    node.hold(rule(BLOCK, 8))

    status = node.enforcer.status()
    assert (status.healthy, status.counters["failed"], usb.authorized("1-2")) == (False, 1, False)
    assert "1-1" in status.detail


def test_record_that_cannot_be_written_leaves_the_previous_rules(node, usb, tmp_path):
    usb.plug("1-1", descriptors(STICK))
    node.hold(rule(AUDIT, 3))
    (tmp_path / "run").rmdir()

    with pytest.raises(KernelError):
        node.hold(rule(BLOCK, 8))

    assert (usb.authorized("1-1"), usb.default()) == (True, 1)
    (tmp_path / "run").mkdir()
    node.hold(rule(BLOCK, 8))
    assert not usb.authorized("1-1")


def test_strings_of_a_device_reach_an_event_escaped(node, usb):
    usb.plug("1-1", descriptors(STICK), product=b"\x1b]0;x\x07\nroot")

    node.hold(rule(BLOCK, 8))

    assert node.events[0].data["title"] == "\\x1b]0;x\\x07\\nroot"


def test_kernel_without_usb_can_do_none_of_it(tmp_path):
    tree = UsbTree(tmp_path, mounts=tmp_path / "mounts", modules=tmp_path / "modules")
    enforcer = UsbEnforcer(print, runtime_dir=tmp_path, tree=tree)

    (line,) = enforcer.compile(RuleSet(rules=(rule(BLOCK, 8),)))

    assert (line.status, line.reason) == (RuleStatus.IMPOSSIBLE, "this kernel has no USB")


def test_module_that_may_bring_usb_later_counts(tmp_path):
    folder = tmp_path / "modules" / os.uname().release
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/drivers/usb/core/usbcore.ko: kernel/drivers/usb/common/usb-common.ko\n")

    assert UsbTree(tmp_path, mounts=tmp_path / "mounts", modules=tmp_path / "modules").why_missing() == ""


@pytest.mark.root
def test_only_the_kernel_is_heard():
    said = b"add@/devices/x/usb1/1-1\0ACTION=add\0DEVPATH=/devices/x/usb1/1-1\0SUBSYSTEM=usb\0DEVTYPE=usb_device\0"
    ear = UeventSocket()
    liar = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
    try:
        liar.bind((0, 0))
        for group in (1, 2):
            liar.sendto(said, (0, group))

        news = ear.read()

        assert (news.uevents, news.forged) == ((), 1)
    finally:
        ear.close()
        liar.close()
