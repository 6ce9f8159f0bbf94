"""What a node is due, from the store: its marks, pieces of content, whether what it has on trial is what it was assigned.

Rules of this file:
- Methods block on the store: they are for threads.
- A node may read its own share; a relay what its nodes may read.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.common.frames import Assignment, Chunk, ChunkRequest, Confirmed, ConfirmRequest, Hello, Refused
from garrison.common.names import Digest, NodeName
from garrison.master.collector.keys import KeyRing
from garrison.master.collector.sessions import acked_by
from garrison.master.store import Store

__all__ = ["Desk", "Dues", "Facts"]

_log = logging.getLogger(__name__)


class Desk(Protocol):
    """What the collector needs to know about bundles and assignments. Called in threads."""

    def frame_for(self, node: NodeName) -> Assignment | None:
        """Return the newest assignment of a node, ready to send."""

    def may_read(self, node: NodeName, digest: Digest) -> bool:
        """Return whether a node is due this content."""


class Facts(NamedTuple):
    """For a welcome: marks by lane, the assigned generation, and the highest number that came, by whatever way."""

    acked: dict[int, int]
    generation: int
    seen: int


class Dues:
    """Answers for nodes.

    Args:
        store: Where everything is.
        keys: Which nodes a relay may speak for.
        desk: Bundles and assignments.
    """

    def __init__(self, store: Store, keys: KeyRing, desk: Desk) -> None:
        self._store, self._keys, self._desk = store, keys, desk

    def facts(self, node: NodeName, hello: Hello) -> Facts:
        """Return what a welcome says; what the store lacks of what the node was acked is recorded.

        Raises:
            StoreError: The store cannot answer.
        """
        assigned = self._store.assignment(node)
        if not self._keys.relays_of(node):  # else it may be with a relay still
            self._note_acked(node, hello)
        seen = self._store.highest(node, hello.epoch)
        return Facts(self._store.acked(node, hello.epoch), assigned.generation if assigned else 0, seen)

    def _note_acked(self, node: NodeName, hello: Hello) -> None:
        for lane, lost in self._store.note_acked(node, hello.epoch, acked_by(hello)).items():
            many = f"{lost.missing}" if lost.missing >= 0 else "an unknown number of"
            _log.error(
                "restored from an older copy: node %s had been acked up to %d of lane %s, this store has up to %d; "
                "%s events of epoch %s are missing",
                *(node, lost.last_seq, lane.name.lower(), lost.held_seq, many, hello.epoch),
            )

    def chunk(self, node: NodeName, request: ChunkRequest) -> Chunk:
        """Return a piece of content, or that it is not there for this node."""
        _log.debug("node=%s chunk=%s offset=%d", node, request.digest[:12], request.offset)
        try:
            data = self._content(node, Digest(request.digest))
        except GarrisonError as err:
            _log.error("node=%s digest=%s content=unread error=%s", node, request.digest, err)
            data = None
        if data is None or not 0 <= request.offset <= len(data):
            return Chunk(digest=request.digest, offset=0, total=-1)
        piece = data[request.offset : request.offset + limits.CHUNK_BYTES]
        return Chunk(digest=request.digest, offset=request.offset, total=len(data), data=piece)

    def _content(self, node: NodeName, digest: Digest) -> bytes | None:
        readers = self._keys.served_by(node) if self._keys.is_relay(node) else (node,)
        return self._store.blob(digest) if any(self._desk.may_read(one, digest) for one in readers) else None

    def confirm(self, node: NodeName, request: ConfirmRequest) -> Confirmed | Refused:
        """Return whether what a node has on trial is what it was assigned.

        Raises:
            StoreError: The store cannot answer.
        """
        assigned = self._store.assignment(node)
        if assigned is None or (assigned.generation, assigned.bundle) != (request.generation, request.bundle):
            has = f"generation {assigned.generation} ({assigned.bundle[:12]})" if assigned else "nothing"
            reason = f"{node} is assigned {has}, not generation {request.generation} ({request.bundle[:12]})"
            _log.warning("node=%s confirm=refused reason=%s", node, reason)
            return Refused(code="confirm", reason=reason)
        _log.info("node=%s confirm=yes generation=%d", node, request.generation)
        return Confirmed(nonce=request.nonce)
