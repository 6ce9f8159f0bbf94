"""Who runs on the node, and cgroups as they are made.

Rules of this file:
- A workload whose combination of scopes this generation does not know counts as unknown: rules of every scope that refuse or
  watch hold in it. The enforcer makes a new generation then, if it can.
- Until it is told what runs, it takes what the agent before it knew.
Owns: what is known of workloads. Does not own: generations (``enforcer``), profiles, their table (``cgroup_table``).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from garrison.bpf.loader import BpfMap
from garrison.bpf.ring import RingReader
from garrison.common.errors import FrameError
from garrison.common.frames import RuleReport
from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.base import CgroupMade
from garrison.minion.enforcers.bpf_lsm.pins import Pins
from garrison.minion.enforcers.bpf_lsm.report import report_rules
from garrison.minion.enforcers.profiles import Placements, place_workloads, workload_scopes
from garrison.minion.workloads.model import Workload

__all__ = ["CGROUP_RECORD_BYTES", "Residents", "decode_cgroup", "missed_cgroups"]

_U32: Final = struct.Struct("=I")
_MISSED: Final = _U32.pack(1)  # CGROUPS_MISSED of enum workload_figure
_RECORD: Final = struct.Struct("=Q1024s")  # struct cgroup_made
CGROUP_RECORD_BYTES: Final = _RECORD.size


def decode_cgroup(raw: bytes) -> CgroupMade:
    """Return the cgroup in ``raw``.

    Raises:
        FrameError: It has another size.
    """
    if len(raw) != CGROUP_RECORD_BYTES:
        raise FrameError(f"cgroup record of {len(raw)} bytes, {CGROUP_RECORD_BYTES} expected")
    number, path = _RECORD.unpack(raw)
    return CgroupMade(number, path.partition(b"\0")[0].decode("utf-8", "surrogateescape"))


class Residents:
    """The node's workloads, and what rules make of them.

    Args:
        pins: Where they are kept for the next agent.
    """

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._told: tuple[Workload, ...] | None = None
        self._take: Callable[[CgroupMade], None] | None = None
        self._feed: _CgroupFeed | None = None

    @property
    def known(self) -> tuple[Workload, ...]:
        """What runs on the node, as far as it is known."""
        return self._pins.known_workloads() if self._told is None else self._told

    @contextlib.contextmanager
    def told(self, workloads: Sequence[Workload]) -> Iterator[bool]:
        """Take these from now on, unless the block fails; whether that is news."""
        before = self._told
        news = before is None or frozenset(workloads) != frozenset(before)
        self._told = tuple(workloads) if news else before
        try:
            yield news
        except BaseException:
            self._told = before
            raise

    def placed(self, rules: RuleSet) -> Placements:
        """Return what ``rules`` say of each workload; nothing when none of them is about workloads."""
        scopes = workload_scopes(rules.rules)
        return place_workloads(scopes, self.known) if scopes else {}

    def report(self, rules: RuleSet, shortage: str) -> tuple[RuleReport, ...]:
        """Return the compile report of ``rules`` on this node."""
        matched = (placement.profile or () for placement in self.placed(rules).values())
        return report_rules(rules, frozenset(scope for profile in matched for scope in profile), shortage)

    def keep(self) -> None:
        """Keep them for the next agent."""
        self._pins.keep_workloads(self.known)

    # ---- cgroups that are made -------------------------------------------------------------------------------------------
    def watch(self, take: Callable[[CgroupMade], None]) -> None:
        """Hand cgroups to ``take`` from when ``feed`` is called."""
        self._take = take

    def feed(self, maps: Mapping[str, BpfMap]) -> None:
        """Begin handing over, if there is somebody to hand to and something to read. Idempotent."""
        if self._take is not None and maps and self._feed is None:
            self._feed = _CgroupFeed(maps["cgroups_made"], maps["workload_figures"], self._take)

    def close(self) -> None:
        """Hand over what is left and end. Idempotent; holding no lock that whom it hands to may need."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None


def missed_cgroups(figures: BpfMap) -> int:
    """Return how many cgroups were made that nobody was told of."""
    number: int = _U32.unpack(figures.lookup(_MISSED) or bytes(4))[0]
    return number


class _CgroupFeed:
    """Hands over cgroups as they are made, from a thread of its own.

    Args:
        ring: Map ``cgroups_made``.
        figures: Map ``workload_figures``.
        take: Called with each; with number 0 when some were missed.
    """

    def __init__(self, ring: BpfMap, figures: BpfMap, take: Callable[[CgroupMade], None]) -> None:
        self._figures, self._take = figures, take
        self._missed = missed_cgroups(figures)  # of those before it who listens looks for himself
        self._reader = RingReader(ring, self._on_record, name="lsm-cgroups")

    def close(self) -> None:
        """Hand over what is left and end. Idempotent; not from ``take``."""
        self._reader.close()

    def _on_record(self, raw: bytes) -> None:
        self._take(decode_cgroup(raw))
        self._tell_missed()

    def _tell_missed(self) -> None:
        missed = missed_cgroups(self._figures)
        if missed != self._missed:
            self._missed = missed
            self._take(CgroupMade(0, ""))
