"""Takes one sample of the node's resources: figures with their units in the names.

Rules of this file:
- A part that cannot be read is left out and named; the others are still taken.
- Small: it is sent all day long. What is always 0 or follows from other figures is not in it.
- At most ``EVENT_DATA_MAX_KEYS`` figures; disks, interfaces and sensors beyond their own limits are counted, not listed.
- Only local file systems are asked for their size: a dead network mount would hold the thread for ever.
Owns: what is in a sample. Does not own: when one is taken (``resources``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

import psutil

from garrison.common import limits
from garrison.common.events import Scalar
from garrison.minion.observers._pressure import read_pressure

__all__ = ["Sampler"]

Figures = dict[str, Scalar | list[Scalar]]

# What nodes have by the dozen and nobody reads singly: the ends of container networks.
_SKIPPED_INTERFACES: Final = ("lo", "veth", "cali", "cni", "lxc", "br-", "docker", "virbr")


class Sampler:
    """Takes samples; keeps the counters of the one before, since rates are differences.

    Attributes:
        failed: Part → why it could not be read in the last sample.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self._cpu: Any = psutil.cpu_times()
        self._net: dict[str, Any] = {}
        self._net_at = 0.0

    def sample(self) -> Figures:
        """Return the figures of now; ``cpu_percent`` is the mean since the sample before."""
        figures: Figures = {}
        failed: dict[str, str] = {}
        parts: dict[str, Callable[[], Figures]] = {
            "cpu": self._cpu_figures,
            "memory": _memory,
            "pressure": lambda: dict(read_pressure()),
            "system": _system,
            "network": self._network,
            "disks": _disks,
            "temperatures": _temperatures,
        }
        for name, part in parts.items():
            try:
                figures |= part()
            except (OSError, psutil.Error, RuntimeError) as err:
                failed[name] = str(err)
        self.failed = failed  # in one step: another thread reads it
        return _bounded(figures)

    def _cpu_figures(self) -> Figures:
        before, self._cpu = self._cpu, psutil.cpu_times()
        spent = {name: max(0.0, getattr(self._cpu, name) - getattr(before, name)) for name in self._cpu._fields}
        # guest time is contained in user time: counting it again would make 100 % unreachable
        whole = sum(value for name, value in spent.items() if name not in {"guest", "guest_nice"})
        idle = spent["idle"] + spent.get("iowait", 0.0)
        return {
            "cpu_percent": round(100 * (whole - idle) / whole, 1) if whole else 0.0,
            "cpu_iowait_percent": round(100 * spent.get("iowait", 0.0) / whole, 1) if whole else 0.0,
            "cpu_count": os.cpu_count() or 0,
            "load_1m": round(os.getloadavg()[0], 2),
        }

    def _network(self) -> Figures:
        now, counters = time.monotonic(), psutil.net_io_counters(pernic=True, nowrap=False)
        before, seconds = self._net, now - self._net_at
        self._net, self._net_at = counters, now
        traffic = {name: c.bytes_recv + c.bytes_sent for name, c in counters.items() if not name.startswith(_SKIPPED_INTERFACES)}
        wanted = sorted((name for name in traffic if traffic[name]), key=lambda name: (-traffic[name], name))
        figures: Figures = {}
        for name in wanted[: limits.SAMPLE_INTERFACES_MAX]:
            if name not in before or seconds <= 0:
                continue
            for figure, field in (("rx", "bytes_recv"), ("tx", "bytes_sent"), ("rx_drops", "dropin"), ("tx_drops", "dropout")):
                # An interface made anew begins at 0 again: no negative rates.
                rate = max(0, getattr(counters[name], field) - getattr(before[name], field)) / seconds
                if "drops" not in figure:
                    figures[f"net.{name}.{figure}_bytes_per_s"] = round(rate, 1)
                elif rate:  # said only when there are any
                    figures[f"net.{name}.{figure}_per_s"] = round(rate, 2)
        if len(wanted) > limits.SAMPLE_INTERFACES_MAX:
            figures["net_not_listed"] = len(wanted) - limits.SAMPLE_INTERFACES_MAX
        return figures


def _memory() -> Figures:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    figures: Figures = {
        "mem_total_bytes": memory.total,
        "mem_used_bytes": memory.used,
        "mem_available_bytes": memory.available,
        "swap_total_bytes": swap.total,
    }
    if swap.total:
        figures |= {"swap_used_bytes": swap.used, "swap_in_bytes_total": swap.sin, "swap_out_bytes_total": swap.sout}
    return figures


def _system() -> Figures:
    return {"uptime_s": round(time.clock_gettime(time.CLOCK_BOOTTIME), 1), "process_count": len(psutil.pids())}


def _disks() -> Figures:
    # "/" first and always: on an overlay or tmpfs root the list of block devices does not have it.
    mounts = {"/": ""}
    for partition in psutil.disk_partitions(all=False):
        if partition.mountpoint != "/" and partition.device not in mounts.values():
            mounts[partition.mountpoint] = partition.device
    figures: Figures = {}
    for path in list(mounts)[: limits.SAMPLE_DISKS_MAX]:
        try:
            stat = os.statvfs(path)
        except OSError:  # unmounted between the two calls
            continue
        mount = path.encode("utf-8", "replace").decode()  # names of mount points may be any bytes
        figures[f"disk.{mount}.total_bytes"] = stat.f_blocks * stat.f_frsize
        figures[f"disk.{mount}.used_bytes"] = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        figures[f"disk.{mount}.available_bytes"] = stat.f_bavail * stat.f_frsize
        if stat.f_files:
            figures[f"disk.{mount}.inodes_used_percent"] = round(100 * (stat.f_files - stat.f_ffree) / stat.f_files, 1)
    if len(mounts) > limits.SAMPLE_DISKS_MAX:
        figures["disk_not_listed"] = len(mounts) - limits.SAMPLE_DISKS_MAX
    return figures


def _temperatures() -> Figures:
    chips = psutil.sensors_temperatures()
    hottest = {name: max(s.current for s in sensors) for name, sensors in chips.items() if sensors}
    return {f"temp.{name}.celsius": round(value, 1) for name, value in sorted(hottest.items())[: limits.SAMPLE_SENSORS_MAX]}


def _bounded(figures: Figures) -> Figures:
    room = limits.EVENT_DATA_MAX_KEYS - 2  # "source" and the count of what was left out
    if len(figures) <= room:
        return figures
    return {**dict(list(figures.items())[:room]), "figures_not_listed": len(figures) - room}
