"""Settings of the minion: where it keeps its data, which master it belongs to, what it watches.

Rules of this file:
- Settings say where and how often, never what is enforced: that comes signed, from the bundle.
- ``docs/minion.md`` lists every setting; a test compares the two.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from garrison.common.settings import DaemonSettings
from garrison.minion.enforcers.bpf_lsm.options import EventRate, LsmOptions, Tamper

__all__ = ["DEFAULT_CONFIG", "MinionSettings"]

DEFAULT_CONFIG: Final = Path("/etc/garrison/minion.toml")


class MinionSettings(DaemonSettings):
    """All settings of ``garrison minion``. Each is also ``GARRISON_MINION_<NAME>`` in the environment.

    Attributes:
        directory: Keys, bundles, spool, job journal. Made with mode 0700.
        runtime_dir: Sockets and the status file; a tmpfs.
        join: Join file from the master; taken over into ``directory`` at the first start and not needed again.
        node: Node name; pinned at the first start.
        cgroup: cgroup v2 directory whose processes obey network rules; the mount's root when not given.
        backends: Enforcement backends to try, best first.
        tamper: What becomes of others' attempts at the kernel enforcer and the agent: ``block``, ``audit``, ``off``.
        event_rate: Events that each rule may tell in a second; those above are counted. 0: no limit.
        event_burst: Events that each rule may tell at once.
        resource_interval_s: Seconds between resource samples.
        self_interval_s: Seconds between the agent's reports on itself.
        shell_scope: ``login``: commands of login sessions and terminals; ``all``: every command.
        error_files: Log files whose error lines are collected, besides the journal and the kernel log.
        spool_max_bytes: Size of the spool, shared out over the lanes.
        log_level: What goes to standard error.
    """

    model_config = SettingsConfigDict(env_prefix="GARRISON_MINION_")

    directory: Path = Path("/var/lib/garrison/minion")
    runtime_dir: Path = Path("/run/garrison")
    join: Path | None = None
    node: str = ""
    cgroup: Path | None = None
    backends: tuple[Literal["bpf_lsm", "fanotify", "cgroup_net", "nftables", "usb", "syscalls", "audit"], ...] = (
        "bpf_lsm",
        "fanotify",
        "cgroup_net",
        "nftables",
        "usb",
        "syscalls",
        "audit",
    )
    tamper: Literal["off", "audit", "block"] = "audit"
    event_rate: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    event_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    resource_interval_s: Annotated[float, Field(ge=1, le=86_400)] = 30.0
    self_interval_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    shell_scope: Literal["login", "all"] = "login"
    error_files: tuple[Path, ...] = ()
    spool_max_bytes: Annotated[int, Field(ge=4 << 20)] = 512 << 20
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def lsm_options(self) -> LsmOptions:
        """The settings of the kernel enforcer."""
        rate = EventRate(per_s=self.event_rate, burst=self.event_burst)
        return LsmOptions(tamper=Tamper[self.tamper.upper()], rate=rate)

    @property
    def wanted_name(self) -> str:
        """The configured node name, or this machine's short hostname in lower case."""
        return self.node or socket.gethostname().split(".")[0].lower()
