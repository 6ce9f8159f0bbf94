"""Settings of the master: where it keeps its data, where nodes and operators reach it, when silence means something.

Rules of this file:
- Settings say where and how often. Which nodes exist and what they enforce is in the store, never here.
- ``docs/master.md`` lists every setting; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from garrison.common.events import Lane
from garrison.common.settings import DaemonSettings
from garrison.master.store import Retention

__all__ = ["DEFAULT_CONFIG", "MasterSettings", "RetentionDays"]

DEFAULT_CONFIG: Final = Path("/etc/garrison/master.toml")
_SOCKET_PATH_MAX_BYTES: Final = 107  # sun_path of sockaddr_un, less the final NUL


_Days = Annotated[int, Field(ge=0, le=36_500)]


class RetentionDays(BaseModel):
    """Days for which events are kept, by lane; 0 for ever."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alert: _Days = 730
    shell: _Days = 365
    error: _Days = 90
    state: _Days = 365
    metric: _Days = 30


class MasterSettings(DaemonSettings):
    """All settings of ``garrison master``. Each is also ``GARRISON_MASTER_<NAME>`` in the environment.

    Attributes:
        directory: Keys, trust, store; made by ``garrison init``.
        listen: Where nodes connect: ``tcp://ADDRESS:PORT``, ``*`` for all addresses.
        socket: Unix socket of the API, mode 0600; ``api.sock`` in ``directory`` when not given.
        late_after_s: Silence after which a node is ``late``.
        offline_after_s: Silence after which a node is ``offline``.
        retention_days: Days for which events are kept, by lane; 0 for ever.
        events_max_bytes: Space of all events; 0 for no cap.
        log_level: What goes to standard error.
    """

    model_config = SettingsConfigDict(env_prefix="GARRISON_MASTER_")

    directory: Path = Path("/var/lib/garrison/master")
    listen: Annotated[str, Field(pattern=r"^tcp://(\*|[^\s/:]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})$")] = "tcp://*:4515"
    socket: Path | None = None
    late_after_s: Annotated[float, Field(ge=1, le=86_400)] = 20.0
    offline_after_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    retention_days: RetentionDays = RetentionDays()
    events_max_bytes: Annotated[int, Field(ge=0, le=1 << 53)] = 64 << 30
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def socket_path(self) -> Path:
        """Where the API listens."""
        return self.socket or self.directory / "api.sock"

    @property
    def retention(self) -> Retention:
        """How long events are kept."""
        days = {lane: int(getattr(self.retention_days, lane.name.lower())) for lane in Lane}
        return Retention(days=days, max_bytes=self.events_max_bytes)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offline_after_s <= self.late_after_s:
            raise ValueError("offline_after_s must be longer than late_after_s")
        if len(str(self.socket_path.absolute()).encode()) > _SOCKET_PATH_MAX_BYTES:
            raise ValueError(f"the socket's path is longer than {_SOCKET_PATH_MAX_BYTES} bytes; name a shorter one with --socket")
        return self
