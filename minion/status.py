"""The node's state as one document, for people on the node: written by the agent, shown by ``garrison minion status``.

Rules of this file:
- The file is replaced atomically and is readable by root alone: it names rules and keys.
- A document whose agent is gone says so: readers compare ``pid`` and ``start_ticks`` with /proc.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import ConfigError
from garrison.common.frames import RuleReport
from garrison.common.status_file import read_status_file, replace_status_file

__all__ = ["STATUS_FILE", "BackendState", "NodeStatus", "TrialStatus", "read_status", "start_ticks", "write_status"]

STATUS_FILE: Final = "status.json"


class BackendState(msgspec.Struct, frozen=True, kw_only=True):
    """One enforcement backend or observer: whether it works, why not, and its counters."""

    name: str
    healthy: bool
    detail: str = ""
    counters: dict[str, int] = {}


class TrialStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that is enforced and not confirmed: its number, its bundle, and when the deadman acts (CLOCK_BOOTTIME, s)."""

    generation: int
    bundle: str
    deadline_boottime: float


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent knows of itself.

    Attributes:
        node: Node name.
        fingerprint: Of its CURVE key.
        tenant: Tenant joined, empty for none.
        pid: The agent's, in its own PID namespace.
        start_ticks: Start time of that pid, field 22 of /proc/PID/stat.
        since: Start, ns since 1970 UTC.
        link: ``connected`` or why not.
        generation: Enforced and confirmed generation, 0 for none.
        bundle: Digest of its bundle.
        version: The bundle's version.
        stale: Its signature has expired; it is enforced all the same.
        unacked: Events waiting for the master, by lane.
        spool: ``ok`` or why events cannot be kept.
        backends: Enforcement backends.
        observers: Observers.
        rules: Compile report of what is enforced.
        obstacle: Why not the newest stored generation is enforced: break-glass, safe mode, released, failed; empty when it is.
        trial: What is enforced instead of ``generation`` until it is confirmed or taken back.
    """

    node: str
    fingerprint: str
    tenant: str
    pid: int
    start_ticks: int
    since: int
    link: str
    generation: int
    bundle: str
    version: int
    stale: bool
    unacked: dict[str, int]
    spool: str
    backends: list[BackendState]
    observers: list[BackendState]
    rules: list[RuleReport]
    obstacle: str = ""
    trial: TrialStatus | None = None


def start_ticks(pid: int) -> int:
    """Return when ``pid`` started, in clock ticks since boot; 0 when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])  # the name may hold spaces and brackets; count from the last one


def write_status(runtime_dir: Path, status: NodeStatus) -> None:
    """Replace the status file; see ``replace_status_file``."""
    replace_status_file(runtime_dir / STATUS_FILE, status)


def read_status(runtime_dir: Path) -> tuple[NodeStatus, bool]:
    """Return the last status and whether the agent that wrote it still runs.

    Raises:
        ConfigError: No agent has written one here, or it cannot be read.
    """
    absent = ConfigError(f"no minion has run with {runtime_dir}", hint="start it: systemctl start garrison-minion")
    status = read_status_file(runtime_dir / STATUS_FILE, NodeStatus, absent=absent, hint="run this as root on the node")
    return status, start_ticks(status.pid) == status.start_ticks
