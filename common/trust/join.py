"""The join file: what a node needs to know its master. Made by ``garrison init``, carried by hand, pinned by the node.

Rules of this file:
- It holds no secret, but whoever can change it on its way chooses the node's master: it is written 0600.
- Every field is checked here, so that a half-copied file is an error on the first day and not a node that never connects.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import ConfigError, SignatureError
from garrison.common.names import node_name
from garrison.common.trust.curve import check_public_key
from garrison.common.trust.durable import write_durably
from garrison.common.trust.metadata import RootChain

__all__ = ["JOIN_VERSION", "JoinFile", "check_endpoint", "check_tenant", "load_join", "save_join"]

JOIN_VERSION: Final = 1
_ENDPOINT: Final = re.compile(
    r"tcp://(?:\[(?P<v6>[0-9a-fA-F:.%a-z]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})", re.ASCII
)
_PORT_MAX: Final = 65_535
_HINT: Final = "copy join.json of the master's directory again"


class JoinFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a node needs to know its master.

    Attributes:
        v: Version of the format.
        tenant: Whose nodes these are; signed into every bundle and assignment.
        masters: Where the master, or a relay, listens, ``tcp://host:port``, tried in order.
        server_key: CURVE public key of who listens there, Z85.
        bundle_root: Root metadata that names the authors' keys.
        assignment_root: Root metadata that names the master's assignment key.
        master_key: The master's CURVE public key, Z85, when a relay listens there; else empty.
    """

    v: int
    tenant: str
    masters: tuple[str, ...]
    server_key: str
    bundle_root: str
    assignment_root: str
    master_key: str = ""

    @property
    def by_relay(self) -> bool:
        """Whether the node's connections are with a relay, which it trusts with nothing but carrying."""
        return bool(self.master_key)

    @property
    def master(self) -> str:
        """The master's CURVE public key, Z85."""
        return self.master_key or self.server_key

    def is_same_master(self, other: JoinFile) -> bool:
        """Tell whether both files lead to one master, maybe on different ways."""
        mine, its = ((j.tenant, j.master, j.bundle_root, j.assignment_root) for j in (self, other))
        return mine == its

    def check(self) -> None:
        """Check every field.

        Raises:
            ConfigError: The first that is wrong.
        """
        if self.v != JOIN_VERSION:
            raise ConfigError(f"version {self.v} of the format is not understood", hint="update garrison on this machine")
        check_tenant(self.tenant)
        if not 1 <= len(self.masters) <= limits.JOIN_MASTERS_MAX:
            raise ConfigError(f"{len(self.masters)} masters are named; 1 to {limits.JOIN_MASTERS_MAX} are possible")
        for endpoint in self.masters:
            check_endpoint(endpoint)
        check_public_key(self.server_key)
        if self.master_key:
            check_public_key(self.master_key)
            if self.master_key == self.server_key:
                raise ConfigError("master_key is for relays: a relay has a key of its own", hint=_HINT)
        for name, root in (("bundle_root", self.bundle_root), ("assignment_root", self.assignment_root)):
            try:
                RootChain.start(root.encode())
            except SignatureError as err:
                raise ConfigError(f"{name} cannot be used", hint=_HINT) from err


def check_tenant(text: str) -> str:
    """Return ``text`` when it can name a tenant: what can name a node can.

    Raises:
        ConfigError: It cannot.
    """
    try:
        return node_name(text)
    except ConfigError as err:
        raise ConfigError(f"{text[:80]!r} is no name of a tenant", hint=err.hint) from None


def check_endpoint(text: str) -> str:
    """Return ``text`` when it is ``tcp://host:port``.

    Raises:
        ConfigError: It is not.
    """
    found = _ENDPOINT.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= _PORT_MAX:
        raise ConfigError(f"{text[:200]!r} is no address of a master", hint="write tcp://HOST:PORT, IPv6 as tcp://[ADDRESS]:PORT")
    return text


def load_join(path: Path) -> JoinFile:
    """Return the join file at ``path``, checked.

    Raises:
        ConfigError: Absent, unreadable, not JSON of the right shape, or a field is wrong.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limits.JOIN_FILE_MAX_BYTES + 1)
    except OSError as err:
        raise ConfigError(f"the join file {path} cannot be read: {err.strerror}", hint=_HINT) from err
    if len(data) > limits.JOIN_FILE_MAX_BYTES:
        raise ConfigError(f"the join file {path} is over {limits.JOIN_FILE_MAX_BYTES} bytes", hint=_HINT)
    try:
        join = msgspec.json.decode(data, type=JoinFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(f"{path} is no join file: {err}", hint=_HINT) from err
    try:
        join.check()
    except ConfigError as err:
        raise ConfigError(f"the join file {path} is wrong", hint=err.hint) from err
    return join


def save_join(join: JoinFile, path: Path) -> None:
    """Write a join file durably, mode 0600, replacing what is there.

    Raises:
        ConfigError: A field is wrong.
        KernelError: It cannot be written.
    """
    join.check()
    write_durably(path, msgspec.json.format(msgspec.json.encode(join), indent=2) + b"\n")
