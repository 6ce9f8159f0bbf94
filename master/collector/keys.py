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
from collections.abc import Collection, Mapping

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
        via: The relay that it knocked at; empty for the master itself.
    """

    key: str
    fingerprint: KeyFingerprint
    address: str
    first_seen: int
    last_seen: int
    attempts: int = 1
    via: str = ""


class KeyRing:
    """Keys of accepted, retired, rejected and pending nodes.

    Args:
        store: Where decisions are kept. Methods that change something block until it is durable.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[str, PendingKey] = {}
        self._accepted: dict[str, NodeName] = {}
        self._known: dict[str, NodeName] = {}
        self._key_of: dict[str, str] = {}
        self._relays: dict[NodeName, list[NodeName]] = {}
        self._served: dict[NodeName, frozenset[NodeName]] = {}
        self._rejected: set[str] = set()
        self.reload()

    def reload(self) -> None:
        """Take the picture anew from the store."""
        rows = self._store.nodes()
        self._known = {row.key: row.name for row in rows}
        self._key_of = {row.name: row.key for row in rows}
        self._rejected = self._store.rejected_keys()
        self._accepted = {row.key: row.name for row in rows if row.state == ACCEPTED}
        self._relays = self._store.relays()
        self._settle_relays()

    def node_of(self, key: str) -> NodeName | None:
        """Return whose key this is, if it is accepted."""
        return self._accepted.get(key)

    def has_node(self, name: str) -> bool:
        """Return whether a node of this name is accepted."""
        return self._key_of.get(name) in self._accepted

    def key_of(self, name: str) -> str | None:
        """Return the accepted key of a node."""
        return self._key_of.get(name) if self.has_node(name) else None

    def is_relay(self, name: str) -> bool:
        """Return whether a node is a relay."""
        return name in self._served

    def served_by(self, relay: NodeName) -> frozenset[NodeName]:
        """Return the accepted nodes that a relay may speak for."""
        return self._served.get(relay, frozenset())

    def relays_of(self, node: str) -> list[NodeName]:
        """Return the relays that may speak for a node."""
        return sorted(relay for relay, nodes in self._served.items() if node in nodes)

    def knock(self, key: str, address: str) -> bool:
        """Return whether a connection under ``key`` is let in; remembers it as pending when it is unknown."""
        if key in self._accepted:
            return True
        self._note_pending(key, address, "")
        return False

    def knock_at(self, relay: NodeName, key: str, address: str) -> None:
        """Remember a key that knocked at a relay: pending, or of a node that the relay may not serve yet."""
        if self._accepted.get(key) not in self.served_by(relay):
            self._note_pending(check_public_key(key), address, relay)

    def _note_pending(self, key: str, address: str, via: str) -> None:
        if (key in self._known and not via) or key in self._rejected:
            return
        now = time.time_ns()
        held = self._pending.pop(key, None)
        if held is None:
            held = PendingKey(key=key, fingerprint=fingerprint(key.encode()), address=address, first_seen=now, last_seen=now)
            _log.info("key=pending fingerprint=%s address=%s", held.fingerprint, address)
            while len(self._pending) >= limits.PENDING_KEYS_MAX:
                del self._pending[next(iter(self._pending))]
        else:
            held.address, held.last_seen, held.attempts = address, now, held.attempts + 1
        held.via = via
        self._pending[key] = held  # last in order: the first is the one to forget

    def pending(self) -> list[PendingKey]:
        """Return keys that wait for a decision, the newest knock first."""
        return list(reversed(self._pending.values()))

    def accept(self, name: NodeName, key_or_fingerprint: str, *, is_relay: bool = False, via: str = "") -> bool:
        """Accept a key for a node; return whether that changed anything.

        Args:
            name: The node.
            key_or_fingerprint: Of its key.
            is_relay: It is a relay.
            via: A relay that may speak for it; when empty, the one that the key knocked at, if it did.

        Raises:
            ConfigError: No such key knocked, it is another node's, the node has another one, or ``via`` is no relay.
        """
        key = self._find(key_or_fingerprint)
        knocked = self._pending.get(key)
        via = via or (knocked.via if knocked else "")
        if via and (is_relay or not self.is_relay(via)):
            reason = "a relay cannot be behind a relay" if is_relay else f"{via[:63]} is no relay"
            raise ConfigError(reason, hint="garrison nodes lists relays; accept one with --relay")
        if via and len(self.served_by(NodeName(via)) | {name}) > limits.RELAY_NODES_MAX:
            raise ConfigError(f"relay {via} carries for {limits.RELAY_NODES_MAX} nodes already", hint="set up another relay")
        changed = bool(self.accept_all({name: key}))
        if is_relay or via:
            changed |= self._store.note_relay(name, is_relay=is_relay, via=NodeName(via) if via else None)
            self.reload()
        return changed

    def accept_all(self, wanted: Mapping[NodeName, str]) -> int:
        """Accept keys for nodes, all or none; return for how many that changed anything; raises as ``accept``."""
        keys = {name: self._find(key) for name, key in wanted.items()}
        changed = self._store.accept_nodes(keys)
        for name, key in keys.items():
            self._pending.pop(key, None)
            self._note_accepted(name, key)
            what = "accepted" if name in changed else "already-accepted"
            _log.info("node=%s key=%s fingerprint=%s", name, what, fingerprint(key.encode()))
        self._settle_relays()
        return len(changed)

    def _note_accepted(self, name: NodeName, key: str) -> None:
        # As the store now has it: a name's former key, which was retired, is forgotten with it.
        former = self._key_of.get(name, key)
        if former != key:
            self._known.pop(former, None)
        self._rejected.discard(key)
        self._known[key], self._key_of[name] = name, key
        self._accepted[key] = name

    def _settle_relays(self) -> None:
        self._served = {relay: frozenset(filter(self.has_node, nodes)) for relay, nodes in self._relays.items()}

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
        self.reload()
        return fingerprint(key.encode())

    def retire(self, name: str) -> bool:
        """Retire a node; return whether that changed anything.

        Raises:
            StoreError: There is no such node.
        """
        return bool(self.retire_all([name]))

    def lock_out(self, names: Collection[str]) -> None:
        """Let nodes in no more, in memory and at once; ``retire_all`` makes it last, ``reload`` takes it back."""
        for name in names:
            self._accepted.pop(self._key_of.get(name, ""), None)
        self._settle_relays()

    def retire_all(self, names: Collection[str]) -> int:
        """Retire nodes, all or none; return for how many that changed anything; raises as ``retire``."""
        changed = self._store.retire_nodes(names)
        self._relays = self._store.relays()  # a relay that is retired is none any more
        self.lock_out(names)
        for name in names:
            _log.info("node=%s key=%s", name, "retired" if name in changed else "already-retired")
        return len(changed)

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
