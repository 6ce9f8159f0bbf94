"""What every enforcement backend does, and nothing about how.

Rules of this file:
- ``probe`` really loads and attaches, once, and remembers why not.
- ``compile`` is pure: the report can be shown before anything is applied.
- ``apply`` is all or nothing: on error the previous generation still enforces.
- A backend never decides what a rule means; ``garrison.common.policy.match`` does, and tests hold backends to it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence

import msgspec

from garrison.common.events import Event
from garrison.common.frames import RuleReport
from garrison.common.policy.rules import RuleSet
from garrison.minion.workloads.model import Workload

__all__ = ["CgroupMade", "Emit", "Enforcer", "EnforcerStatus", "MapWrite", "Probe"]

Emit = Callable[[Event], None]
"""Takes an event without ``node``, ``epoch`` and ``seq``; never blocks, may be called from any thread."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a backend works here.

    Attributes:
        ok: It was loaded and attached for real.
        reason: Why not, or which part of it does not; empty when everything works.
        hint: Remedy, or the kernel's own words; empty when there are none.
    """

    ok: bool
    reason: str = ""
    hint: str = ""


class MapWrite(msgspec.Struct, frozen=True):
    """A write to a kernel map, by a descriptor that is open: what a process can do that may do nothing else."""

    fd: int
    key: bytes
    value: bytes


class CgroupMade(msgspec.Struct, frozen=True):
    """A cgroup that has just been made.

    Attributes:
        cgroup_id: Its number; 0 when some were missed: look at all of them then.
        path: Below the mount of cgroup v2; empty when some were missed.
    """

    cgroup_id: int
    path: str


class EnforcerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend is doing.

    Attributes:
        backend: Its name.
        healthy: It enforces what was last applied.
        detail: One line for a person when it does not.
        counters: Figures by name: decisions, blocks, audits, dropped events, late answers, restarts.
    """

    backend: str
    healthy: bool
    detail: str = ""
    counters: Mapping[str, int] = {}


class Enforcer(abc.ABC):
    """One way to make rules hold."""

    name: str

    @abc.abstractmethod
    def probe(self) -> Probe:
        """Try it for real on this kernel; the answer is cached for the life of the process."""

    @abc.abstractmethod
    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return what this backend would make of each rule that it knows, without side effects.

        Returns:
            At most one report per rule. A rule that is left out is none of this backend's business.
        """

    @abc.abstractmethod
    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Enforce ``rules`` instead of what was enforced before, atomically.

        Returns:
            The compile report, now true.

        Raises:
            BackendUnsupportedError: ``probe`` said no.
            KernelError: The kernel refused; the previous rules still hold.
            CompileError: The rules cannot be expressed; the previous rules still hold.
        """

    @abc.abstractmethod
    def status(self) -> EnforcerStatus:
        """Return counters and health; cheap, called every few seconds."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop enforcing and release everything. Idempotent."""

    def hold(self) -> Sequence[MapWrite]:
        """Keep what is enforced now, so that ``go_back`` can bring it back whatever is applied meanwhile; until ``keep``.

        Returns:
            What another process can write to bring it back without this one; nothing where enforcement ends with this process.

        Raises:
            KernelError: The kernel refused; nothing is kept.
        """
        return ()

    def go_back(self, rules: RuleSet) -> None:
        """Enforce what was enforced when ``hold`` was called, which is ``rules``; raises as ``apply``."""
        self.apply(rules)

    def keep(self) -> None:  # noqa: B027 - most backends keep nothing
        """Let go of what ``hold`` kept: what is enforced now stays. Idempotent."""

    def set_workloads(self, workloads: Sequence[Workload]) -> None:  # noqa: B027 - most backends tell no workloads apart
        """Take these for all workloads of the node, from the next operation on. Any thread, any time; nothing new costs nothing.

        Raises:
            KernelError: The kernel refused; the previous ones still hold.
        """

    def watch_cgroups(self, take: Callable[[CgroupMade], None]) -> None:  # noqa: B027 - most backends see none
        """Call ``take`` with each cgroup that is made from now on, from a thread of the backend's own, while rules are held."""

    def release(self) -> None:  # noqa: B027 - most backends leave nothing behind
        """Take away what ``close`` leaves in force. A later ``apply`` starts anew. Idempotent.

        Raises:
            OSError: The kernel refused; some of it may still be in force.
        """
