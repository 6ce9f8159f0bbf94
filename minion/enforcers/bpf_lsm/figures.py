"""What the kernel counted since the programs were loaded."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from garrison.bpf.loader import BpfMap
from garrison.common.policy.rules import Rule
from garrison.minion.enforcers.bpf_lsm.events import COUNTERS
from garrison.minion.enforcers.bpf_lsm.residents import missed_cgroups
from garrison.minion.enforcers.bpf_lsm.subject_events import SUBJECT_COUNTERS

__all__ = ["read_figures"]

_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_LOST_KEY: Final = struct.Struct("=II")


def read_figures(maps: Mapping[str, BpfMap], rule_of: Callable[[int, int], Rule | None]) -> dict[str, int]:
    """Return figures by name; events that were lost as ``lost.RULE``.

    Args:
        maps: All maps of the programs.
        rule_of: Generation and number → rule, as long as it is remembered.
    """
    total: Counter[str] = Counter()
    for index, name in enumerate(COUNTERS):
        total[name] = maps["counters"].lookup_sum(_U32.pack(index))
    for index, name in enumerate(SUBJECT_COUNTERS):
        total[name] = maps["subject_counters"].lookup_sum(_U32.pack(index))
    total["cgroups_missed"] = missed_cgroups(maps["workload_figures"])
    lost = maps["lost"]
    for key in list(lost.keys()):
        generation, number = _LOST_KEY.unpack(key)
        rule = rule_of(generation, number)
        name = "tamper" if not generation else rule.id if rule else f"generation-{generation}"
        total[f"lost.{name}"] += _U64.unpack(lost.lookup(key) or bytes(8))[0]
    return dict(total)
