"""What a node trusts, and every rule by which something new is believed. Bytes in, verified objects or an error out.

Rules of this file:
- Pure: no files, no network, no clock; time is an argument. What is trusted is a value; what was refused has changed nothing.
- Order for something new: roots, then the assignment, then the bundle's metadata, then its files; nothing is fetched before what
  names it was verified.
- Numbers only rise: generation, bundle version, root versions. The same number is accepted for the same content only.
- Expiry refuses what is new and marks what is held as stale; it never takes away what is enforced.
Owns: these rules. Does not own: where the floor is kept (``minion/bundles/store.py``), formats (``bundle``, ``assignment``).
Source: TUF specification 1.0, client workflow 5.3 to 5.7; Uptane Standard 2.1, full verification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec

from garrison.common import limits
from garrison.common.errors import BundleError
from garrison.common.names import Digest, KeyFingerprint, NodeName, digest_of
from garrison.common.trust.assignment import SignedAssignment, read_assignment
from garrison.common.trust.bundle import BundleContent, FileEntry, NodeShare, read_targets
from garrison.common.trust.metadata import RootChain, verify_targets

__all__ = ["Floor", "NodeTrust", "verify_blob", "verify_bundle"]


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """The highest that this node has ever committed. What is lower is refused.

    Attributes:
        generation: Of an assignment.
        content: Digest of that assignment's content.
        bundle_version: Of a bundle.
        bundle: Digest of that bundle's metadata.
        issued: Latest signing time of a bundle, seconds since 1970 UTC: it cannot be earlier now, whatever the clock says.
    """

    generation: int = 0
    content: str = ""
    bundle_version: int = 0
    bundle: str = ""
    issued: int = 0


@dataclass(frozen=True)
class NodeTrust:
    """What one node trusts.

    Attributes:
        tenant: Whose node it is.
        node: Its name.
        fingerprint: Of its CURVE key.
        bundles: Root chain of the bundle repository: the authors.
        assignments: Root chain of the assignment repository: the master.
        floor: What is never gone below.
    """

    tenant: str
    node: NodeName
    fingerprint: KeyFingerprint
    bundles: RootChain
    assignments: RootChain
    floor: Floor

    def with_roots(self, assignment_roots: Sequence[bytes], bundle_roots: Sequence[bytes]) -> NodeTrust:
        """Return this trust with newer roots.

        Raises:
            SignatureError: A version is missing or lacks signatures.
        """
        return replace(self, assignments=self.assignments.extend(assignment_roots), bundles=self.bundles.extend(bundle_roots))

    # ---- something new -----------------------------------------------------------------------------------------------
    def new_assignment(self, data: bytes, now: datetime) -> SignedAssignment:
        """Return an assignment that this node should follow.

        Args:
            data: Signed metadata.
            now: UTC.

        Raises:
            SignatureError: Not signed by the master's key.
            BundleError: For another node, key or tenant; lower than what was held; expired.
        """
        assignment, floor = self._assignment(data), self.floor
        if assignment.generation < floor.generation:
            raise BundleError(f"generation {assignment.generation} is older than {floor.generation}, which this node has held")
        if assignment.generation == floor.generation and assignment.content != floor.content:
            raise BundleError(f"generation {assignment.generation} was held with other content")
        _check_step("generation", floor.generation, assignment.generation)
        self._check_version(assignment.bundle_version, assignment.bundle)
        if assignment.content != floor.content:  # what was committed before may be fetched again: it is not new
            self._refuse_expired(self.assignments.newest.expires, now, "the assignment root")
            self._refuse_expired(assignment.expires, now, "the assignment")
        return assignment

    def new_bundle(self, assignment: SignedAssignment, metadata: bytes, now: datetime) -> BundleContent:
        """Return the content of the bundle that a verified assignment names.

        Args:
            assignment: From ``new_assignment``.
            metadata: The bundle's metadata.
            now: UTC.

        Raises:
            SignatureError: Not the bytes that the assignment names, or not signed by enough authors.
            BundleError: Malformed, for another tenant, older than held, expired, or without a share for this node.
        """
        content = self._bundle(assignment, metadata)
        if assignment.content != self.floor.content:
            self._refuse_expired(self.bundles.newest.expires, now, "the bundle root")
            self._refuse_expired(content.expires, now, "the bundle")
        return content

    def committed(self, assignment: SignedAssignment, content: BundleContent) -> NodeTrust:
        """Return this trust after the node took over an assignment: the floor has risen."""
        return replace(
            self,
            floor=Floor(
                generation=assignment.generation,
                content=assignment.content,
                bundle_version=content.version,
                bundle=assignment.bundle,
                issued=max(self.floor.issued, content.issued),
            ),
        )

    # ---- something held ----------------------------------------------------------------------------------------------
    def read_held(self, data: bytes) -> SignedAssignment:
        """Verify again an assignment that was committed before: signature and addressee, but neither age nor expiry.

        Raises:
            SignatureError: It changed on disk.
            BundleError: It is another node's.
        """
        return self._assignment(data)

    def read_bundle(self, assignment: SignedAssignment, metadata: bytes) -> BundleContent:
        """Verify again a bundle that was committed before: all but age and expiry.

        Raises:
            SignatureError: It is not signed by enough authors.
            BundleError: It changed on disk.
        """
        return self._bundle(assignment, metadata)

    def is_stale(self, assignment: SignedAssignment, content: BundleContent, now: datetime) -> bool:
        """Tell whether what is held has expired."""
        ends = (assignment.expires, content.expires, self.bundles.newest.expires, self.assignments.newest.expires)
        return self._time(now) >= min(ends)

    # ---- rules that both share ---------------------------------------------------------------------------------------
    def _assignment(self, data: bytes) -> SignedAssignment:
        assignment = read_assignment(verify_targets(self.assignments.newest, data, "assignment"))
        if assignment.tenant != self.tenant:
            raise BundleError(f"the assignment is for tenant {assignment.tenant[:80]!r}, not for {self.tenant!r}")
        if assignment.node != self.node:
            raise BundleError(f"the assignment is for node {assignment.node[:80]!r}, not for {self.node!r}")
        if assignment.fingerprint != self.fingerprint:
            raise BundleError(
                "the assignment is for another key of this node", hint="accept the node's present key, then apply again"
            )
        return assignment

    def _bundle(self, assignment: SignedAssignment, metadata: bytes) -> BundleContent:
        verify_blob("the bundle", FileEntry(assignment.bundle_bytes, assignment.bundle), metadata)
        content = read_targets(verify_targets(self.bundles.newest, metadata, "bundle"), tenant=self.tenant)
        if content.version != assignment.bundle_version:
            raise BundleError(f"the bundle has version {content.version}, its assignment says {assignment.bundle_version}")
        self.share(content)
        return content

    def share(self, content: BundleContent) -> NodeShare:
        """Return what ``content`` gives this node.

        Raises:
            BundleError: It does not name this node.
        """
        share = content.nodes.get(self.node)
        if share is None:
            raise BundleError(f"the bundle has no share for node {self.node!r}")
        return share

    def _check_version(self, version: int, bundle: Digest) -> None:
        floor = self.floor
        if version < floor.bundle_version:
            raise BundleError(f"bundle version {version} is older than {floor.bundle_version}, which this node has held")
        if version == floor.bundle_version and bundle != floor.bundle:
            raise BundleError(f"bundle version {version} was held with other content")
        _check_step("bundle version", floor.bundle_version, version)

    def _time(self, now: datetime) -> datetime:
        return max(now, datetime.fromtimestamp(self.floor.issued, UTC))

    def _refuse_expired(self, expires: datetime, now: datetime, what: str) -> None:
        if self._time(now) >= expires:
            raise BundleError(
                f"{what} expired at {expires:%Y-%m-%d %H:%M} UTC; what is enforced stays",
                hint="sign anew: garrison apply; and check this machine's clock",
            )


def verify_bundle(authors: RootChain, metadata: bytes, *, tenant: str, now: datetime) -> BundleContent:
    """Return the content of a bundle that a master may take in.

    Raises:
        SignatureError: Not signed by enough of the authors that this master knows.
        BundleError: Malformed, for another tenant, or expired.
    """
    content = read_targets(verify_targets(authors.newest, metadata, "bundle"), tenant=tenant)
    if now >= min(content.expires, authors.newest.expires):
        raise BundleError("the bundle, or the root that names its authors, has expired", hint="sign anew: garrison apply")
    return content


def verify_blob(name: str, entry: FileEntry, data: bytes) -> None:
    """Check that ``data`` is the content that signed metadata names.

    Raises:
        BundleError: Another length or digest.
    """
    if len(data) != entry.length:
        raise BundleError(f"{name} has {len(data)} bytes, {entry.length} were signed")
    if digest_of(data) != entry.digest:
        raise BundleError(f"{name} differs from what was signed")


def _check_step(what: str, before: int, after: int) -> None:
    # Whoever once held a signing key could otherwise use up all numbers with one signature and lock the node for good.
    if after - before > limits.VERSION_STEP_MAX:
        raise BundleError(f"{what} jumps from {before} to {after}, more than {limits.VERSION_STEP_MAX}")
