"""A node with its duty, whose backend, deadman and master are in memory."""

from __future__ import annotations

from pathlib import Path

from garrison.common.errors import KernelError
from garrison.common.events import Event
from garrison.common.policy.rules import Entity, Mode, Postures
from garrison.common.trust.bundle import NodeShare
from garrison.minion.arming import DeadmanRecord, boottime
from garrison.minion.boot import BootLog, BootRecord
from garrison.minion.break_glass import Glass
from garrison.minion.bundles import BundleStore
from garrison.minion.duty import Duty
from garrison.minion.enforcers.base import MapWrite
from garrison.minion.enforcers.stack import EnforcerStack
from garrison.minion.trial import OnTrialEnd
from garrison.minion.workloads.model import Workload
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


async def two_generations(node: Node) -> None:
    duty = node.start()
    switch(duty, await node.staged(harmless("one")))
    switch(duty, await node.staged(harmless("two")))
    assert node.held() == {"two"}
