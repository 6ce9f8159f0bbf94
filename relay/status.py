"""The relay's state as one document, for people at the site: written by the relay, shown by ``garrison relay status``.

Rules of this file:
- The file is replaced atomically and readable by root alone. A document whose relay is gone says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import ConfigError
from garrison.common.status_file import read_status_file, replace_status_file
from garrison.minion.spool import SpoolStats
from garrison.minion.status import start_ticks

__all__ = ["RelayStatus", "read_status", "write_status"]

_FILE: Final = "status.json"


class RelayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay knows of itself.

    Attributes:
        name: Its name.
        fingerprint: Of its CURVE key.
        tenant: Tenant joined.
        pid: Its process.
        start_ticks: Start time of that pid, field 22 of /proc/PID/stat.
        since: Start, ns since 1970 UTC.
        listen: Where nodes connect.
        uplink: ``connected`` or why not.
        nodes: Nodes that it may serve.
        connected: Those of them that are connected.
        spool: Figures of its spool; ``pending`` counts batches.
        taken_events: Events taken from nodes.
        refused: Messages refused for their signature.
        fetched_blobs: Bundles and files fetched from the master.
        fetched_bytes: Their size.
        served_chunks: Pieces of them given to nodes.
    """

    name: str
    fingerprint: str
    tenant: str
    pid: int
    start_ticks: int
    since: int
    listen: str
    uplink: str
    nodes: list[str]
    connected: list[str]
    spool: SpoolStats
    taken_events: int
    refused: int
    fetched_blobs: int
    fetched_bytes: int
    served_chunks: int


def write_status(runtime_dir: Path, status: RelayStatus) -> None:
    """Replace the status file; see ``replace_status_file``."""
    replace_status_file(runtime_dir / _FILE, status)


def read_status(runtime_dir: Path) -> tuple[RelayStatus, bool]:
    """Return the last status and whether the relay that wrote it still runs.

    Raises:
        ConfigError: No relay has written one here, or it cannot be read.
    """
    absent = ConfigError(f"no relay has run with {runtime_dir}", hint="start it: systemctl start garrison-relay")
    status = read_status_file(runtime_dir / _FILE, RelayStatus, absent=absent, hint="run this as root at the relay")
    return status, start_ticks(status.pid) == status.start_ticks
