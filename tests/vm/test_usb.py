"""USB device rules on Debian's ordinary kernel: QEMU's devices, plugged in and out while rules come and go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from garrison.common.events import Event
from garrison.common.policy.devices import ANY, DeviceSpec
from garrison.common.policy.rules import Entity, Other, Posture, Postures, Rule, RuleSet, Verdict
from vm.lab import K61, USB, Background, Lab, Vm

_HOLDER, _ASK = "/opt/test/usb_holder.py", "/opt/test/ask.py"
_SOCKET, _EVENTS, _RUN = "/run/usb.sock", "/run/usb.events", "/run/garrison"
_ASKING = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.stdin.buffer.read() + b"\\n")
sys.stdout.write(s.makefile().readline())
"""
_RELEASE = f"""
from pathlib import Path
from garrison.minion.enforcers.usb import UsbEnforcer
UsbEnforcer(print, runtime_dir=Path("{_RUN}")).release()
"""
_PROBE = """
from pathlib import Path
from garrison.minion.enforcers.usb import UsbEnforcer
print(UsbEnforcer(print, runtime_dir=Path("/run")).probe())
"""
BLOCK, AUDIT, ALLOW = Verdict.BLOCK, Verdict.AUDIT, Verdict.ALLOW


def rule(verdict: Verdict, *spec: int, number: int = 1) -> Rule:
    target = Other("usb", msgspec.json.encode(DeviceSpec(*spec)).decode())
    return Rule(id=f"p/{number}", policy="p", entity=Entity.DEVICE, verdict=verdict, target=target)


class Node:
    """A VM with USB, and an enforcer in it."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self._holder: Background | None = None
        self._read = 0
        for name in ("holder.py", "usb_holder.py"):
            vm.put(f"/opt/test/{name}", Path(__file__).with_name(name).read_bytes())
        vm.put(_ASK, _ASKING)
        vm.put(_EVENTS, b"")
        vm.check("mkdir", "-p", _RUN)

    def start(self) -> None:
        self.vm.run("rm", "-f", _SOCKET)
        self._holder = self.vm.start("python3", _HOLDER, _SOCKET, _EVENTS, _RUN, log="/run/usb.log")
        self.vm.until(lambda: self.vm.run("test", "-S", _SOCKET).returncode == 0, "the enforcer", 30)

    def kill(self) -> None:
        assert self._holder
        self._holder.kill()
        self._holder.wait()

    def ask(self, do: str, **fields: Any) -> Any:
        answer = json.loads(self.vm.check("python3", _ASK, _SOCKET, stdin=json.dumps({"do": do, **fields})))
        assert "error" not in answer, answer
        return answer["done"]

    def hold(self, *rules: Rule, posture: Posture = Posture.AUDIT) -> list[str]:
        held = RuleSet(rules=rules, postures=Postures(device=posture))
        return [line["status"] for line in self.ask("apply", rules=msgspec.to_builtins(held))]

    def events(self) -> list[Event]:
        return [msgspec.json.decode(line, type=Event) for line in self.vm.get(_EVENTS).splitlines()]

    def told(self, count: int = 1) -> list[tuple[str, str, str]]:
        """Wait for so many more events; returns result, rule and class of each."""
        self.vm.until(lambda: len(self.events()) >= self._read + count, f"{count} events", 30)
        found, self._read = self.events()[self._read :], len(self.events())
        return [(event.result, event.rule, str(event.data.get("class_name", ""))) for event in found]

    def disks(self) -> set[str]:
        return {name for name in self.vm.check("ls", "/sys/block").split() if name.startswith("sd")}

    def bound(self) -> set[str]:
        """Return the drivers that interfaces of devices are bound to."""
        links = self.vm.run("sh", "-c", "readlink /sys/bus/usb/devices/*:*/driver").stdout.split()
        return {link.rpartition("/")[2] for link in links} - {"hub"}

    def defaults(self) -> set[str]:
        return set(self.vm.check("sh", "-c", "cat /sys/bus/usb/devices/usb*/authorized_default").split())

    def until_bound(self, *drivers: str) -> None:
        self.vm.until(lambda: self.bound() == set(drivers), f"{drivers}, not {self.bound()}", 60)

    def until_disk(self) -> None:
        self.vm.until(lambda: bool(self.disks()), "a disk", 60)

    def ever_had_a_disk(self) -> bool:
        return "Direct-Access" in self.vm.check("dmesg")


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab() as lab:
        node = Node(lab.boot("usb", USB))
        node.start()
        yield node


def test_stick_never_becomes_a_disk_under_a_block_rule_and_the_keyboard_passes(node: Node) -> None:
    assert node.hold(rule(BLOCK, 8)) == ["enforced"]

    node.vm.plug("usb-kbd", "kbd")
    node.vm.plug("usb-storage", "stick")

    assert node.told() == [("refused", "p/1", "MASS-STORAGE")]
    node.until_bound("usbhid")
    assert (node.disks(), node.ever_had_a_disk(), node.defaults()) == (set(), False, {"2"})

    node.ask("release")

    node.until_disk()
    assert (node.bound(), node.defaults()) == ({"usbhid", "usb-storage"}, {"1"})
    assert node.vm.run("dd", "if=/dev/sda", "of=/dev/null", "bs=1M", "count=1").returncode == 0


def test_stick_that_is_there_is_taken_away_by_a_rule_and_given_back_without_it(node: Node) -> None:
    node.vm.plug("usb-storage", "stick")
    node.until_disk()

    node.hold(rule(BLOCK, 8, 6, 80))
    node.vm.until(lambda: not node.disks(), "no disk", 30)
    assert node.told() == [("refused", "p/1", "MASS-STORAGE")]

    node.hold()
    node.until_disk()
    assert node.defaults() == {"1"}


def test_audit_rule_tells_and_lets_pass(node: Node) -> None:
    assert node.hold(rule(AUDIT, 8), rule(AUDIT, 3, number=2)) == ["audited", "audited"]

    node.vm.plug("usb-storage", "stick")
    node.until_disk()
    node.vm.plug("usb-tablet", "tablet")

    assert node.told(2) == [("passed", "p/1", "MASS-STORAGE"), ("passed", "p/2", "HID")]
    assert node.defaults() == {"1"}


def test_allow_list_lets_in_what_it_names_also_behind_a_hub(node: Node) -> None:
    node.hold(rule(ALLOW, 3), posture=Posture.BLOCK)

    node.vm.plug("usb-hub", "hub", port="1")
    node.vm.plug("usb-kbd", "kbd", port="1.1")
    node.vm.plug("usb-storage", "stick", port="1.2")

    assert sorted(node.told(2)) == [("passed", "p/1", "HUB"), ("refused", "p/1", "MASS-STORAGE")]
    node.until_bound("usbhid")
    assert not node.ever_had_a_disk()


def test_level_and_more_specific_rules_decide(node: Node) -> None:
    node.hold(rule(BLOCK, 8), rule(ALLOW, 8, ANY, ANY, 2, number=2))

    node.vm.plug("usb-storage", "near", port="2")
    assert node.told() == [("refused", "p/1", "MASS-STORAGE")]
    node.vm.plug("usb-hub", "hub", port="1")
    node.vm.plug("usb-storage", "far", port="1.1")

    node.until_disk()
    assert len(node.disks()) == 1


def test_killed_agent_leaves_new_devices_out_until_the_next_one_judges_them(node: Node) -> None:
    node.hold(rule(BLOCK, 8))
    node.vm.plug("usb-kbd", "kbd")
    node.until_bound("usbhid")

    node.kill()
    node.vm.plug("usb-tablet", "tablet")
    node.vm.plug("usb-storage", "stick")
    node.vm.until(lambda: node.vm.run("sh", "-c", "ls -d /sys/bus/usb/devices/*-3").returncode == 0, "three devices", 30)
    assert (node.bound(), node.disks()) == ({"usbhid"}, set())

    node.start()
    node.hold(rule(BLOCK, 8))
    assert node.told() == [("refused", "p/1", "MASS-STORAGE")]
    hids = "ls -d /sys/bus/usb/drivers/usbhid/*:*"
    node.vm.until(lambda: len(node.vm.run("sh", "-c", hids).stdout.split()) == 2, "keyboard and tablet", 30)
    assert not node.ever_had_a_disk()


def test_orderly_end_lets_new_devices_in_and_keeps_out_what_was_refused(node: Node) -> None:
    node.hold(rule(BLOCK, 8))
    node.vm.plug("usb-storage", "stick")
    node.told()

    node.ask("close")
    node.kill()
    node.vm.plug("usb-kbd", "kbd")

    node.until_bound("usbhid")
    assert (node.disks(), node.defaults()) == (set(), {"1"})

    node.vm.check("python3", "-c", _RELEASE)
    node.until_disk()


def test_device_that_root_lets_in_again_is_refused_again(node: Node) -> None:
    node.hold(rule(BLOCK, 8))
    node.vm.plug("usb-storage", "stick")
    node.told()

    node.vm.check("sh", "-c", "for file in /sys/bus/usb/devices/*-1/authorized; do echo 1 > $file; done")

    node.vm.until(lambda: node.vm.check("sh", "-c", "cat /sys/bus/usb/devices/*-1/authorized").strip() == "0", "refusal", 30)
    node.vm.until(lambda: not node.disks(), "no disk", 30)


def test_kernel_without_usb_says_so(lab: Lab) -> None:
    vm = lab.boot("no-usb", K61)
    vm.put("/root/probe.py", _PROBE)

    assert "ok=True, reason='this kernel has no USB'" in vm.check("python3", "/root/probe.py")
