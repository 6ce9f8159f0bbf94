"""The desk: takes signed bundles in, says which node gets which, hands both out to whom they are for.

Rules of this file:
- A bundle is taken in when its authors signed it, it is this tenant's, its version rises and all of its files are there. A
  refused one leaves no trace.
- A new generation is signed only for a node whose share differs from what it is assigned, whose assignment it would not follow
  or is about to expire, or for whom a repeat was asked. So a repeated apply is nothing.
- A generation is one more than the highest that this master assigned or the node ever reported: a restored master goes on.
- A node may read the metadata of its assigned bundle and the files of its own share, nothing else.
Owns: these decisions. Does not own: durability (the store), delivery (the collector), what a policy means.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Protocol

import msgspec
from tuf.api.metadata import Targets

from garrison.common import frames
from garrison.common.errors import BundleError, SignatureError
from garrison.common.names import Digest, NodeName, digest_of
from garrison.common.policy.rules import Mode, Postures
from garrison.common.trust.assignment import build_assignment, read_assignment
from garrison.common.trust.bundle import BundleContent, NodeShare, read_targets
from garrison.common.trust.keyset import MasterTrust
from garrison.common.trust.metadata import verify_targets
from garrison.common.trust.verify import verify_blob, verify_bundle
from garrison.master.records import NodeBrief, StoredAssignment, StoredBundle

__all__ = [
    "RENEW_BEFORE",
    "Accepted",
    "AssignedFile",
    "BundleRequest",
    "Current",
    "CurrentNode",
    "Desk",
    "DeskStore",
    "MasterTrust",
    "Outcome",
]

RENEW_BEFORE: Final = timedelta(days=30)  # an assignment that ends sooner is replaced by an apply that changes nothing else
_CACHED_BUNDLES: Final = (
    8  # parsed bundles kept: staged changes leave nodes on a few at a time; 10,000 nodes take some 20 MB each
)


class DeskStore(Protocol):
    """What the desk needs of the master's store. Calls may come from any thread."""

    def newest_bundle(self) -> StoredBundle | None:
        """Return the bundle with the highest version."""

    def bundle_metadata(self, digest: Digest) -> bytes | None:
        """Return a bundle's metadata."""

    def put_bundle(self, digest: Digest, version: int, metadata: bytes, files: Mapping[Digest, bytes], at_ns: int) -> None:
        """Keep a bundle and its files, durably. Idempotent."""

    def blob(self, digest: Digest) -> bytes | None:
        """Return a bundle's metadata or a file, by digest."""

    def assignment(self, node: NodeName) -> StoredAssignment | None:
        """Return a node's newest assignment."""

    def assignments(self) -> dict[NodeName, StoredAssignment]:
        """Return the newest assignment of every node that has one."""

    def put_assignments(self, new: Sequence[StoredAssignment]) -> None:
        """Keep assignments, durably, all or none."""

    def node_states(self) -> Mapping[NodeName, NodeBrief]:
        """Return all accepted nodes."""


class AssignedFile(msgspec.Struct, frozen=True):
    """A policy file on a node: its content's digest and its mode."""

    digest: Digest
    mode: Mode


class CurrentNode(msgspec.Struct, frozen=True, kw_only=True):
    """What an accepted node is assigned.

    Attributes:
        generation: 0 for nothing.
        version: The assigned bundle's version.
        expires: End of the assignment's validity.
        renew: It ends within ``RENEW_BEFORE``: the next apply replaces it.
        files: By path in the states folder.
        labels: As signed.
        postures: As signed.
    """

    generation: int = 0
    version: int = 0
    expires: datetime | None = None
    renew: bool = False
    files: dict[str, AssignedFile] = {}
    labels: dict[str, str] = {}
    postures: Postures = Postures()


class Current(msgspec.Struct, frozen=True, kw_only=True):
    """What is assigned now: the left side of every diff.

    Attributes:
        tenant: Whose nodes.
        version: Highest bundle version taken in, 0 for none.
        digest: That bundle, empty for none.
        authors: Ids of the author keys this master knows.
        threshold: How many of them must sign.
        nodes: Every accepted node.
    """

    tenant: str
    version: int
    digest: str
    authors: list[str]
    threshold: int
    nodes: dict[NodeName, CurrentNode]


class Outcome(msgspec.Struct, frozen=True):
    """What an apply did for a node: ``assigned`` a new generation; it was ``already`` so; the bundle has ``nothing`` for it."""

    state: Literal["assigned", "already", "nothing"]
    generation: int


class BundleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/bundles``, in msgpack.

    Attributes:
        metadata: Signed metadata.
        files: Content by digest.
        limit: Only these nodes get an assignment; ``None`` for all that the bundle names.
        again: These get a new generation even if nothing changed for them.
    """

    metadata: bytes
    files: dict[Digest, bytes]
    limit: list[NodeName] | None = None
    again: list[NodeName] = []


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was taken in, and what that did for each concerned node."""

    version: int
    digest: Digest
    nodes: dict[NodeName, Outcome]


class Desk:
    """Bundles in, assignments out.

    Args:
        store: Keeps all of it.
        trust: What this master trusts and signs with.
        clock: Wall clock, UTC.
    """

    def __init__(
        self,
        store: DeskStore,
        trust: MasterTrust,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._trust, self._clock = store, trust, clock
        self._accepting = threading.Lock()
        self._cache_lock, self._cache = threading.Lock(), OrderedDict[Digest, BundleContent]()

    # ---- in ------------------------------------------------------------------------------------------------------------
    def accept(
        self,
        metadata: bytes,
        files: Mapping[Digest, bytes],
        limit: Collection[NodeName] | None = None,
        *,
        again: Collection[NodeName] = (),
    ) -> Accepted:
        """Take a bundle in and assign it to the nodes whose share changed.

        Args:
            metadata: Signed metadata.
            files: Content by digest; what the store has need not be there.
            limit: Only these nodes get an assignment; ``None`` for all that the bundle names.
            again: These get a new generation even if nothing changed: it failed there and the operator wants another try.

        Raises:
            SignatureError: Not signed by enough of the authors this master knows.
            BundleError: Malformed, of another tenant, expired, not newer than what is held, or a file is missing or wrong.
            StoreError: It cannot be kept; nothing was assigned.
        """
        with self._accepting:
            now = self._clock()
            content = verify_bundle(self._trust.authors, metadata, tenant=self._trust.tenant, now=now)
            digest = digest_of(metadata)
            self._refuse_older(content, digest)
            self._refuse_incomplete(content, files)
            self._store.put_bundle(digest, content.version, metadata, files, time.time_ns())
            outcomes, new = self._assign(
                content, StoredBundle(digest=digest, version=content.version, metadata=metadata), limit, again, now
            )
            if new:
                self._store.put_assignments(new)
        return Accepted(version=content.version, digest=digest, nodes=outcomes)

    def _refuse_older(self, content: BundleContent, digest: Digest) -> None:
        newest = self._store.newest_bundle()
        if newest is None or newest.digest == digest:  # the same bundle again: a request whose answer was lost
            return
        if content.version <= newest.version:
            raise BundleError(
                f"bundle version {content.version} is not above {newest.version}, which this master holds",
                hint="somebody else applied meanwhile: look at the diff, then apply again",
            )

    def _refuse_incomplete(self, content: BundleContent, files: Mapping[Digest, bytes]) -> None:
        entries = {entry.digest: (path, entry) for path, entry in content.files.items()}
        foreign = files.keys() - entries.keys()
        if foreign:
            raise BundleError(f"{len(foreign)} files came along that the bundle does not name")
        for digest, (path, entry) in entries.items():
            data = files.get(digest)
            if data is None:
                data = self._store.blob(digest)
            if data is None:
                raise BundleError(f"the content of {path} did not come along")
            verify_blob(path, entry, data)

    def _assign(
        self,
        content: BundleContent,
        bundle: StoredBundle,
        limit: Collection[NodeName] | None,
        again: Collection[NodeName],
        now: datetime,
    ) -> tuple[dict[NodeName, Outcome], list[StoredAssignment]]:
        outcomes: dict[NodeName, Outcome] = {}
        new: list[StoredAssignment] = []
        held_by_node = self._store.assignments()
        for node, brief in sorted(self._store.node_states().items()):
            share = content.nodes.get(node)
            if share is None or (limit is not None and node not in limit):
                continue
            held = held_by_node.get(node)
            if held is None and not share.files:
                outcomes[node] = Outcome("nothing", 0)
            elif held is not None and node not in again and self._is_current(held, brief, content, share, now):
                outcomes[node] = Outcome("already", held.generation)
            else:
                signed = self._sign(brief, held, content, bundle)
                outcomes[node] = Outcome("assigned", signed.generation)
                new.append(signed)
        return outcomes, new

    def _is_current(
        self, held: StoredAssignment, brief: NodeBrief, content: BundleContent, share: NodeShare, now: datetime
    ) -> bool:
        found = self._assigned(held, brief)
        if found is None:
            return False
        old, old_share, expires = found
        if (old_share.labels, old_share.postures) != (share.labels, share.postures) or old.parts(old_share) != content.parts(
            share
        ):
            return False
        return not (expires - now < RENEW_BEFORE and content.expires > expires)

    def _sign(
        self, brief: NodeBrief, held: StoredAssignment | None, content: BundleContent, bundle: StoredBundle
    ) -> StoredAssignment:
        generation = max(held.generation if held else 0, brief.reported_generation) + 1
        signed = build_assignment(
            tenant=self._trust.tenant,
            node=brief.name,
            fingerprint=brief.fingerprint,
            generation=generation,
            bundle=bundle.digest,
            bundle_bytes=len(bundle.metadata),
            bundle_version=content.version,
            # As long as what it assigns: the master's key adds no date of its own, so an idle fleet needs no renewals.
            expires=content.expires,
            signer=self._trust.signer,
        )
        return StoredAssignment(
            node=brief.name, generation=generation, bundle=bundle.digest, metadata=signed, at_ns=time.time_ns()
        )

    # ---- out -----------------------------------------------------------------------------------------------------------
    def current(self) -> Current:
        """Return what every accepted node is assigned.

        Raises:
            StoreError: The store cannot answer.
        """
        newest, assignments, now = self._store.newest_bundle(), self._store.assignments(), self._clock()
        authors = self._trust.authors.newest.roles[Targets.type]
        return Current(
            tenant=self._trust.tenant,
            version=newest.version if newest else 0,
            digest=newest.digest if newest else "",
            authors=list(authors.keyids),
            threshold=authors.threshold,
            nodes={
                node: self._current_node(assignments.get(node), brief, now) for node, brief in self._store.node_states().items()
            },
        )

    def _current_node(self, held: StoredAssignment | None, brief: NodeBrief, now: datetime) -> CurrentNode:
        found = self._assigned(held, brief) if held is not None else None
        if held is None or found is None:
            return CurrentNode()
        content, share, expires = found
        return CurrentNode(
            generation=held.generation,
            version=content.version,
            expires=expires,
            renew=expires - now < RENEW_BEFORE,
            files={path: AssignedFile(digest, mode) for path, (digest, mode) in content.parts(share).items()},
            labels=share.labels,
            postures=share.postures,
        )

    def _assigned(self, held: StoredAssignment, brief: NodeBrief) -> tuple[BundleContent, NodeShare, datetime] | None:
        # None for an assignment that its node would not follow: signed by an older key, for another key of the node, below what
        # it reported (this master was restored from a backup), or of a bundle that the store lost. It then counts as no
        # assignment and the next apply makes a new one.
        try:
            assignment = read_assignment(verify_targets(self._trust.assignments.newest, held.metadata, "assignment"))
            content = self._content(held.bundle)
        except (SignatureError, BundleError):
            return None
        share = content.nodes.get(held.node)
        if share is None or assignment.fingerprint != brief.fingerprint or held.generation < brief.reported_generation:
            return None
        return content, share, assignment.expires

    def frame_for(self, node: NodeName) -> frames.Assignment | None:
        """Return what the collector sends to a node that lacks its newest generation; ``None`` if it has no assignment.

        Raises:
            StoreError: The store cannot answer.
        """
        held = self._store.assignment(node)
        if held is None:
            return None
        return frames.Assignment(
            assignment=held.metadata,
            assignment_roots=list(self._trust.assignments.files),
            bundle_roots=list(self._trust.authors.files),
        )

    def may_read(self, node: NodeName, digest: Digest) -> bool:
        """Tell whether a node may have content: the metadata of its assigned bundle, or a file of its own share.

        Fails closed: whatever cannot be looked up may not be read.

        Raises:
            StoreError: The store cannot answer.
        """
        held = self._store.assignment(node)
        if held is None:
            return False
        if held.bundle == digest:
            return True
        try:
            content = self._content(held.bundle)
        except (SignatureError, BundleError):
            return False
        share = content.nodes.get(node)
        return share is not None and any(content.files[path].digest == digest for path in share.files)

    def blob(self, digest: Digest) -> bytes | None:
        """Return content by digest for an operator; ``None`` if it is not held.

        Raises:
            StoreError: The store cannot answer.
        """
        return self._store.blob(digest)

    def _content(self, digest: Digest) -> BundleContent:
        with self._cache_lock:
            if digest in self._cache:
                self._cache.move_to_end(digest)
                return self._cache[digest]
        metadata = self._store.bundle_metadata(digest)
        if metadata is None or digest_of(metadata) != digest:
            raise BundleError(f"bundle {digest[:12]} is missing from the store or changed there")
        content = read_targets(verify_targets(self._trust.authors.newest, metadata, "bundle"), tenant=self._trust.tenant)
        with self._cache_lock:
            self._cache[digest] = content
            while len(self._cache) > _CACHED_BUNDLES:
                self._cache.popitem(last=False)
        return content
