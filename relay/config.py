"""Settings of a relay: where it keeps its data, where its nodes and its master are, how much it holds.

Rules of this file:
- Settings say where and how much. Which nodes a relay may serve is the master's to say, never theirs.
- ``docs/relay.md`` lists every setting; a test compares the two.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from garrison.common.settings import DaemonSettings

__all__ = ["DEFAULT_CONFIG", "RelaySettings"]

DEFAULT_CONFIG: Final = Path("/etc/garrison/relay.toml")


class RelaySettings(DaemonSettings):
    """All settings of ``garrison relay``. Each is also ``GARRISON_RELAY_<NAME>`` in the environment.

    Attributes:
        directory: Key, spool, lists, cache. Made with mode 0700.
        runtime_dir: The status file; a tmpfs.
        join: Join file from the master; taken over into ``directory`` at the first start and not needed again.
        name: Name of the relay, pinned at the first start; its master accepts it under that name.
        listen: Where nodes connect: ``tcp://ADDRESS:PORT``, ``*`` for all addresses.
        late_after_s: A silent node is asked whether it is there after half of this.
        spool_max_bytes: Size of the spool, shared out over the lanes: what the site may gather while it is cut off.
        log_level: What goes to standard error.
    """

    model_config = SettingsConfigDict(env_prefix="GARRISON_RELAY_")

    directory: Path = Path("/var/lib/garrison/relay")
    runtime_dir: Path = Path("/run/garrison-relay")
    join: Path | None = None
    name: str = ""
    listen: Annotated[str, Field(pattern=r"^tcp://(\*|[^\s/:]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})$")] = "tcp://*:4515"
    late_after_s: Annotated[float, Field(ge=1, le=86_400)] = 20.0
    spool_max_bytes: Annotated[int, Field(ge=4 << 20)] = 4 << 30
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def wanted_name(self) -> str:
        """The configured name, or this machine's short hostname in lower case."""
        return self.name or socket.gethostname().split(".")[0].lower()
