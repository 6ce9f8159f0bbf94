"""What the master's store keeps about bundles, assignments and nodes, as the desk sees it.

Rules of this file:
- Plain frozen values; no behaviour. The store makes and takes them, the desk gives them meaning.
"""

from __future__ import annotations

import msgspec

from garrison.common.names import Digest, KeyFingerprint, NodeName

__all__ = ["NodeBrief", "StoredAssignment", "StoredBundle"]


class StoredBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was verified when it came in.

    Attributes:
        digest: Of ``metadata``.
        version: The bundle's version, signed by its author.
        metadata: Signed metadata, byte for byte as it came.
    """

    digest: Digest
    version: int
    metadata: bytes


class StoredAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """The newest assignment of a node.

    Attributes:
        node: Whose.
        generation: Its number; rises with every new assignment of the node.
        bundle: Digest of the assigned bundle's metadata.
        metadata: Signed assignment.
        at_ns: When it was signed, ns since 1970 UTC.
    """

    node: NodeName
    generation: int
    bundle: Digest
    metadata: bytes
    at_ns: int


class NodeBrief(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted node.

    Attributes:
        name: Its name.
        fingerprint: Of the CURVE key that was accepted for it.
        reported_generation: The highest generation it ever said it had applied, 0 for none.
    """

    name: NodeName
    fingerprint: KeyFingerprint
    reported_generation: int = 0
