"""Rows of ``garrison top``: what the newest resource sample of a node says, and which node is worst off. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

__all__ = ["Usage", "sort_worst_first", "usage_of", "usages"]

_DISK: Final = re.compile(r"disk\.(?P<mount>.+)\.used_bytes")
_RX: Final = re.compile(r"net\..+\.rx_bytes_per_s")
_TX: Final = re.compile(r"net\..+\.tx_bytes_per_s")
_STATE_RANK: Final = {"offline": 3, "late": 2, "online": 1}


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One node's resources; ``None`` for what its sample does not say.

    Attributes:
        name: Node name.
        state: ``online``, ``late``, ``offline``; empty when unknown.
        age_s: Age of the sample, seconds.
        cpu_percent: Mean over its interval.
        load_per_cpu: One-minute load by number of CPUs.
        mem_percent: Memory that is not available.
        swap_percent: Swap in use.
        disk_percent: Fullest file system.
        disk_mount: Where that is mounted.
        pressure_percent: Worst of the ``some`` figures of CPU, memory and I/O over ten seconds.
        rx_bytes_per_s: Received, over all interfaces.
        tx_bytes_per_s: Sent.
        uptime_s: Since boot.
    """

    name: str
    state: str = ""
    age_s: float | None = None
    cpu_percent: float | None = None
    load_per_cpu: float | None = None
    mem_percent: float | None = None
    swap_percent: float | None = None
    disk_percent: float | None = None
    disk_mount: str = ""
    pressure_percent: float | None = None
    rx_bytes_per_s: float | None = None
    tx_bytes_per_s: float | None = None
    uptime_s: float | None = None

    @property
    def worst(self) -> float:
        """The figure nearest to its limit, percent."""
        figures = (self.cpu_percent, self.mem_percent, self.disk_percent, self.pressure_percent)
        return max((figure for figure in figures if figure is not None), default=0.0)


def usages(nodes: Iterable[Mapping[str, Any]], samples: Iterable[Mapping[str, Any]], *, now_ns: int | None = None) -> list[Usage]:
    """Return a row for each node that has a name, with its sample or without, the worst first.

    Args:
        nodes: Of ``/v1/nodes``: ``name`` and ``state``.
        samples: Of ``/v1/resources``: metric events, ``node``, ``ts`` and ``data``.
        now_ns: Wall clock; the present when not given.
    """
    by_node = {str(sample.get("node", "")): sample for sample in samples}
    now_ns = time.time_ns() if now_ns is None else now_ns
    found = [
        usage_of(str(node["name"]), str(node.get("state", "")), by_node.get(str(node["name"])), now_ns)
        for node in nodes
        if node.get("name") and node.get("state") != "retired"
    ]
    return sort_worst_first(found)


def usage_of(name: str, state: str, sample: Mapping[str, Any] | None, now_ns: int) -> Usage:
    """Return one row. Figures that are missing, or are no numbers, are left out: samples come from nodes."""
    if sample is None:
        return Usage(name=name, state=state)
    raw = sample.get("data")
    data = {k: float(v) for k, v in raw.items() if _is_number(v)} if isinstance(raw, Mapping) else {}
    disks = {found["mount"]: _percent(data, used, f"disk.{found['mount']}.total_bytes") for used, found in _matches(_DISK, data)}
    mount, fullest = max(((m, p) for m, p in disks.items() if p is not None), key=lambda pair: pair[1], default=("", None))
    available, total, load, cpus = (data.get(k) for k in ("mem_available_bytes", "mem_total_bytes", "load_1m", "cpu_count"))
    pressures = [value for key, value in data.items() if key.startswith("psi_") and key.endswith("_some_avg10")]
    ts = sample.get("ts")
    return Usage(
        name=name,
        state=state,
        age_s=round(max(0.0, (now_ns - ts) / 1e9), 1) if isinstance(ts, int) else None,
        cpu_percent=data.get("cpu_percent"),
        load_per_cpu=round(load / cpus, 2) if load is not None and cpus else None,
        mem_percent=round(100 * (1 - available / total), 1) if available is not None and total else None,
        swap_percent=_percent(data, "swap_used_bytes", "swap_total_bytes"),
        disk_percent=fullest,
        disk_mount=mount,
        pressure_percent=max(pressures, default=None),
        rx_bytes_per_s=_sum(data, _RX),
        tx_bytes_per_s=_sum(data, _TX),
        uptime_s=data.get("uptime_s"),
    )


def sort_worst_first(rows: Iterable[Usage]) -> list[Usage]:
    """Return rows by state (offline, late, online), then by the figure nearest to its limit, then by name."""
    return sorted(rows, key=lambda row: (-_STATE_RANK.get(row.state, 0), -row.worst, row.name))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _matches(pattern: re.Pattern[str], data: Mapping[str, float]) -> list[tuple[str, re.Match[str]]]:
    return [(key, found) for key in data if (found := pattern.fullmatch(key))]


def _sum(data: Mapping[str, float], pattern: re.Pattern[str]) -> float | None:
    values = [data[key] for key, _ in _matches(pattern, data)]
    return sum(values) if values else None


def _percent(data: Mapping[str, float], used: str, total: str) -> float | None:
    return round(100 * data[used] / data[total], 1) if used in data and data.get(total) else None
