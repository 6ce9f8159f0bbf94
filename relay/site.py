"""What a relay was told of its site: which nodes it may serve, and the assignments it holds for them. On disk, so offline too.

Rules of this file:
- Only the master adds or removes nodes; the list replaces the one before, durably, before anybody is served by it.
- Fail-closed: a key that is not on the list gets in nowhere. It is remembered, in memory only, and told to the master.
- Assignments are kept as they came; only a newer one replaces one. Whether they are right is for the node to verify.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from garrison.common import limits
from garrison.common.errors import ConfigError
from garrison.common.names import NodeName, node_name
from garrison.common.relay_frames import Knock, RelayAssignment, RelayNodes
from garrison.common.trust.curve import check_public_key
from garrison.common.trust.durable import write_durably

__all__ = ["Site"]

_NODES_FILE: Final = "nodes.json"
_ASSIGNMENTS: Final = "assignments"

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Site:
    """A relay's nodes.

    Args:
        directory: The relay's; made already.

    Raises:
        ConfigError: What was kept there cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._file, self._assignments_dir = directory / _NODES_FILE, directory / _ASSIGNMENTS
        self._assignments_dir.mkdir(mode=0o700, exist_ok=True)
        self._keys: dict[str, NodeName] = {}
        self._knocks: dict[str, Knock] = {}
        self._assignments: dict[NodeName, RelayAssignment] = {}
        if self._file.exists():
            self._take(_read(self._file, RelayNodes))
        for path in self._assignments_dir.glob("*.msgpack"):
            held = _read(path, RelayAssignment, msgpack=True)
            self._assignments[NodeName(held.node)] = held

    # ---- nodes -------------------------------------------------------------------------------------------------------
    @property
    def names(self) -> list[NodeName]:
        """Nodes that may be served."""
        return sorted(self._keys.values())

    def node_of(self, key: str) -> NodeName | None:
        """Return whose key this is, if it may be served."""
        return self._keys.get(key)

    def knock(self, key: str, address: str) -> bool:
        """Return whether a connection under ``key`` is let in; remembers it when it is not."""
        if key in self._keys:
            return True
        if key not in self._knocks and len(self._knocks) >= limits.PENDING_KEYS_MAX:
            del self._knocks[next(iter(self._knocks))]
        self._knocks[key] = Knock(key=key, address=address)
        return False

    def take_knocks(self) -> list[Knock]:
        """Return the keys that knocked since the last call."""
        knocks, self._knocks = list(self._knocks.values()), {}
        return knocks

    def set_nodes(self, told: RelayNodes) -> list[NodeName]:
        """Take the master's list over, durably; return the nodes that are not to be served any more.

        Raises:
            ConfigError: A name or key in it is none; the list before stays.
            KernelError: It cannot be written; the list before stays.
        """
        for one in told.nodes:
            node_name(one.node)
            check_public_key(one.key)
        before = dict(self._keys)
        write_durably(self._file, msgspec.json.encode(told))
        self._take(told)
        kept = self._keys.items()
        gone = [name for key, name in before.items() if (key, name) not in kept]
        for name in gone:
            self._assignments.pop(name, None)
            self._path(name).unlink(missing_ok=True)
        _log.info("nodes=%d gone=%d", len(self._keys), len(gone))
        return gone

    def _take(self, told: RelayNodes) -> None:
        self._keys = {one.key: NodeName(one.node) for one in told.nodes}

    # ---- assignments -------------------------------------------------------------------------------------------------
    def assignment(self, node: NodeName) -> RelayAssignment | None:
        """Return the newest assignment held for a node."""
        return self._assignments.get(node)

    def keep_assignment(self, told: RelayAssignment) -> bool:
        """Keep an assignment, durably; return whether it is newer than what was held.

        Raises:
            ConfigError: It is for no node.
            KernelError: It cannot be written.
        """
        node = node_name(told.node)
        held = self._assignments.get(node)
        if node not in self._keys.values() or (held is not None and held.generation >= told.generation):
            return False
        write_durably(self._path(node), msgspec.msgpack.encode(told))
        self._assignments[node] = told
        return True

    def _path(self, node: NodeName) -> Path:
        return self._assignments_dir / f"{node}.msgpack"


def _read(path: Path, kind: type[_T], *, msgpack: bool = False) -> _T:
    try:
        raw = path.read_bytes()
        return msgspec.msgpack.decode(raw, type=kind) if msgpack else msgspec.json.decode(raw, type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} cannot be read: {err}", hint="remove it: the master sends its content again") from err
