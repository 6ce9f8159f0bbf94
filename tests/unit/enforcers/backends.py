"""A backend that does what the contract says over a list instead of a kernel, and fails when told to."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.common.errors import KernelError
from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Entity, RuleSet
from garrison.minion.enforcers.base import Enforcer, EnforcerStatus, Probe
from garrison.minion.workloads.model import Workload

__all__ = ["ListBackend"]


class ListBackend(Enforcer):
    """Reports each rule of ``statuses``' entities with that status."""

    def __init__(self, name: str, statuses: dict[Entity, str], *, works: bool = True) -> None:
        self.name, self.statuses, self.works = name, statuses, works
        self.held = RuleSet()
        self.applied = 0
        self.fails = 0
        self.closed = False
        self.workloads: tuple[Workload, ...] = ()
        self.takes_workloads = True

    def probe(self) -> Probe:
        return Probe(ok=self.works, reason="" if self.works else "not here")

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        return tuple(
            RuleReport(rule=r.id, status=self.statuses[r.entity], reason="because")
            for r in rules.rules
            if r.entity in self.statuses
        )

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        self.applied += 1
        if self.fails:
            self.fails -= 1
            raise KernelError(12, f"apply by {self.name}")
        self.held = rules
        return self.compile(rules)

    def set_workloads(self, workloads: Sequence[Workload]) -> None:
        if not self.takes_workloads:
            raise KernelError(28, f"tell {self.name}")
        self.workloads = tuple(workloads)

    def status(self) -> EnforcerStatus:
        return EnforcerStatus(backend=self.name, healthy=True)

    def close(self) -> None:
        self.closed = True
