"""Which key is whose: the picture that every connection and every message is checked against.

Rules of this file:
- Identity is the CURVE key. Accepted keys are in the store; this is their copy in memory, changed after the store was.
- Fail-closed: a key that is not accepted gets in nowhere. It is remembered as pending, in memory only: nodes knock again within
  ``RECONNECT_MAX_S``, and strangers must not be able to make the master write.
- When more keys knock than are remembered, the one that was silent longest is forgotten.
"""

from __future__ import annotations

import logging
import time

import msgspec

from garrison.common import limits
from garrison.common.errors import ConfigError
from garrison.common.names import KeyFingerprint, NodeName, fingerprint
from garrison.common.trust.curve import check_public_key
from garrison.master.store import Store
from garrison.master.store.nodes import ACCEPTED

__all__ = ["KeyRing", "PendingKey"]

_log = logging.getLogger(__name__)


class PendingKey(msgspec.Struct, kw_only=True):
    """A key that knocked and was not let in.

    Attributes:
        key: Z85 CURVE public key.
        fingerprint: Of ``key``; what the node shows.
        address: Where it last came from.
        first_seen: ns since 1970 UTC.
        last_seen: ns since 1970 UTC.
        attempts: How often.
    """

    key: str
    fingerprint: KeyFingerprint
    address: str
    first_seen: int
    last_seen: int
    attempts: int = 1


class KeyRing:
    """Keys of accepted, retired, rejected and pending nodes.

    Args:
        store: Where decisions are kept. Methods that change something block until it is durable.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[str, PendingKey] = {}
        self._accepted: dict[str, NodeName] = {}
        self._known: dict[str, str] = {}
        self._names: set[NodeName] = set()
        self._rejected: set[str] = set()
        self._reload()

    def _reload(self) -> None:
        rows = self._store.nodes()
        self._known = {row.key: row.name for row in rows}
        self._rejected = self._store.rejected_keys()
        self._accepted = {row.key: row.name for row in rows if row.state == ACCEPTED}
        self._names = set(self._accepted.values())

    def node_of(self, key: str) -> NodeName | None:
        """Return whose key this is, if it is accepted."""
        return self._accepted.get(key)

    def has_node(self, name: str) -> bool:
        """Return whether a node of this name is accepted."""
        return name in self._names

    def knock(self, key: str, address: str) -> bool:
        """Return whether a connection under ``key`` is let in; remembers it as pending when it is unknown."""
        if key in self._accepted:
            return True
        if key in self._known or key in self._rejected:
            return False
        now = time.time_ns()
        held = self._pending.pop(key, None)
        if held is None:
            held = PendingKey(key=key, fingerprint=fingerprint(key.encode()), address=address, first_seen=now, last_seen=now)
            _log.info("key=pending fingerprint=%s address=%s", held.fingerprint, address)
            while len(self._pending) >= limits.PENDING_KEYS_MAX:
                del self._pending[next(iter(self._pending))]
        else:
            held.address, held.last_seen, held.attempts = address, now, held.attempts + 1
        self._pending[key] = held  # last in order: the first is the one to forget
        return False

    def pending(self) -> list[PendingKey]:
        """Return keys that wait for a decision, the newest knock first."""
        return list(reversed(self._pending.values()))

    def accept(self, name: NodeName, key_or_fingerprint: str) -> bool:
        """Accept a key for a node; return whether that changed anything.

        Raises:
            ConfigError: No such key knocked, it is another node's, or the node has another one.
        """
        key = self._find(key_or_fingerprint)
        changed = self._store.accept_node(name, key)
        self._pending.pop(key, None)
        self._reload()
        _log.info("node=%s key=%s fingerprint=%s", name, "accepted" if changed else "already-accepted", fingerprint(key.encode()))
        return changed

    def reject(self, key_or_fingerprint: str) -> KeyFingerprint:
        """Never show a pending key again; return its fingerprint.

        Raises:
            ConfigError: No such key knocked, or it is an accepted node's.
        """
        key = self._find(key_or_fingerprint)
        if key in self._known:
            raise ConfigError(f"the key is that of node {self._known[key]}", hint=f"garrison nodes retire {self._known[key]}")
        self._store.reject_key(key)
        self._pending.pop(key, None)
        self._reload()
        return fingerprint(key.encode())

    def retire(self, name: str) -> bool:
        """Retire a node; return whether that changed anything.

        Raises:
            StoreError: There is no such node.
        """
        changed = self._store.retire_node(name)
        self._reload()
        _log.info("node=%s key=%s", name, "retired" if changed else "already-retired")
        return changed

    def _find(self, text: str) -> str:
        if text.startswith("SHA256:"):
            for key in (*self._pending, *self._known, *self._rejected):
                if fingerprint(key.encode()) == text:
                    return key
            raise ConfigError(
                f"no key with the fingerprint {text[:60]} has knocked",
                hint="compare with `garrison minion key` on the node and `garrison nodes pending` here; nodes knock every 30 s",
            )
        return check_public_key(text)
