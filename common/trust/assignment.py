"""The assignment: this node, with this key, holds this bundle, as this generation. Signed by the master.

Rules of this file:
- An assignment is TUF targets metadata of the second repository: its one target is the bundle's metadata by length and digest,
  its version is the generation, and the member ``garrison`` names tenant, node and key.
- It says nothing about content: files, modes and labels are the author's. All a master can choose is which bundle, and when.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from securesystemslib.signer import Signer
from tuf.api.metadata import TargetFile, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from garrison.common import limits
from garrison.common.errors import BundleError, ConfigError
from garrison.common.names import Digest, KeyFingerprint, NodeName, digest_of, parse_digest
from garrison.common.trust.metadata import CUSTOM, sign_targets

__all__ = ["SignedAssignment", "build_assignment", "read_assignment"]

_FORMAT: Final = 1
_HASH: Final = "sha256"
_TARGET: Final = "bundle"  # name of the one target
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=limits.CONFIRM_MAX_S)]


class SignedAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """An assignment that was read.

    Attributes:
        tenant: Whose node it is.
        node: For which node.
        fingerprint: Of that node's CURVE key: a namesake with another key is another node.
        generation: Rises with every assignment of the node.
        bundle: Digest of the bundle's metadata.
        bundle_bytes: Length of the bundle's metadata.
        bundle_version: The bundle's version, so that an older one is refused before it is fetched.
        confirm_s: How long the node may wait for its confirmation, if less than the bundle says; 0: as the bundle says.
        expires: End of validity, UTC.
        content: Digest of all of this: two assignments of one generation must not differ.
    """

    tenant: str
    node: NodeName
    fingerprint: KeyFingerprint
    generation: int
    bundle: Digest
    bundle_bytes: int
    bundle_version: int
    confirm_s: int
    expires: datetime
    content: Digest


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    v: int
    kind: Literal["assignment"]
    tenant: str
    node: str
    fingerprint: str
    bundle_version: int
    confirm_s: _Seconds = 0


def build_assignment(
    *,
    tenant: str,
    node: NodeName,
    fingerprint: KeyFingerprint,
    generation: int,
    bundle: Digest,
    bundle_bytes: int,
    bundle_version: int,
    expires: datetime,
    signer: Signer,
    confirm_s: int = 0,
) -> bytes:
    """Return a signed assignment.

    Args:
        tenant: Whose node it is.
        node: For which node.
        fingerprint: Of the CURVE key that was accepted for it.
        generation: Higher than any before for this node.
        bundle: Digest of the bundle's metadata.
        bundle_bytes: Length of the bundle's metadata.
        bundle_version: The bundle's version.
        expires: End of validity, UTC.
        signer: The master's assignment key.
        confirm_s: How long the node may wait for its confirmation, if less than the bundle says.
    """
    body = _Body(
        v=_FORMAT,
        kind="assignment",
        tenant=tenant,
        node=node,
        fingerprint=fingerprint,
        bundle_version=bundle_version,
        confirm_s=confirm_s,
    )
    targets = Targets(
        version=generation,
        expires=expires.astimezone(UTC),
        targets={_TARGET: TargetFile(bundle_bytes, {_HASH: bundle}, _TARGET)},
        unrecognized_fields={CUSTOM: msgspec.to_builtins(body)},
    )
    return sign_targets(targets, [signer])


def read_assignment(targets: Targets) -> SignedAssignment:
    """Return what verified targets metadata says as an assignment; whether it is for this node is the caller's to check.

    Raises:
        BundleError: Not an assignment, or malformed.
    """
    try:
        body = msgspec.convert(targets.unrecognized_fields.get(CUSTOM), _Body)
        if body.v != _FORMAT:
            raise BundleError(f"version {body.v} of the assignment format is not understood", hint="update garrison on this node")
        if targets.targets.keys() != {_TARGET}:
            raise BundleError("the assignment does not name exactly one bundle")
        target = targets.targets[_TARGET]
        bundle = parse_digest(str(target.hashes.get(_HASH, "")))
    except (msgspec.ValidationError, ConfigError) as err:
        raise BundleError(f"this is no assignment: {err}") from err
    if type(target.length) is not int or not 0 < target.length <= limits.METADATA_MAX_BYTES:
        raise BundleError(f"the bundle would have {target.length} bytes of metadata, the limit is {limits.METADATA_MAX_BYTES}")
    return SignedAssignment(
        tenant=body.tenant,
        node=NodeName(body.node),
        fingerprint=KeyFingerprint(body.fingerprint),
        generation=targets.version,
        bundle=bundle,
        bundle_bytes=target.length,
        bundle_version=body.bundle_version,
        confirm_s=body.confirm_s,
        expires=targets.expires,
        content=digest_of(CanonicalJSONSerializer().serialize(targets)),
    )
