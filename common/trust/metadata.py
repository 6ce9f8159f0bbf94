"""TUF metadata as both repositories use it: parse, sign, walk from the root one pinned to the newest root.

Rules of this file:
- Bytes in, verified objects or ``SignatureError`` out; nothing is read from disk, nothing is remembered.
- python-tuf parses and checks thresholds. What is used afterwards is the object whose canonical form was verified, never the
  bytes parsed a second time.
- In each repository only the roles ``root`` and ``targets`` have keys. ``snapshot`` and ``timestamp``, which TUF's format
  demands, have none, so nothing can ever be signed for them: the link brings one file and needs no index of files.
Source: TUF specification 1.0, client workflow 5.3 (root) and 5.6 (targets).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Role, Root, Targets
from tuf.api.serialization import DeserializationError, SerializationError

from garrison.common import limits
from garrison.common.errors import SignatureError

__all__ = ["CUSTOM", "RootChain", "make_root", "sign_targets", "verify_targets"]

CUSTOM: Final = "garrison"  # the member of the signed part that holds what is ours

# What python-tuf raises for input that is not what it claims to be; its own errors are wrapped around these.
_MALFORMED: Final = (DeserializationError, SerializationError, ValueError, TypeError, KeyError, RecursionError)


@dataclass(frozen=True)
class RootChain:
    """Verified versions of a repository's root, from the pinned one to the newest, each following the one before.

    Attributes:
        files: The metadata, oldest first; never empty.
        newest: The last one: its keys count.
    """

    files: tuple[bytes, ...]
    newest: Root

    @classmethod
    def start(cls, anchor: bytes) -> RootChain:
        """Return the chain that begins and ends with a root that is trusted because it was handed over in person.

        Raises:
            SignatureError: It is no root, or not signed by its own keys.
        """
        root, metadata = _parse_root(anchor)
        if not root.get_root_verification_result(None, metadata.signed_bytes, metadata.signatures):
            raise SignatureError("the trust root is not signed by its own keys")
        return cls((anchor,), root)

    def extend(self, offered: Sequence[bytes]) -> RootChain:
        """Return the chain with the offered versions that follow; those it has already are passed over.

        Args:
            offered: Root metadata, oldest first.

        Raises:
            SignatureError: A version is missing, malformed, or lacks the signatures of the version before it or its own.
        """
        if len(self.files) + len(offered) > 2 * limits.ROOT_ROTATIONS_MAX:
            raise SignatureError(f"{len(offered)} versions of the trust root were offered")
        files, newest = list(self.files), self.newest
        for data in offered:
            root, metadata = _parse_root(data)
            if root.version <= newest.version:
                continue
            if root.version != newest.version + 1:
                raise SignatureError(f"version {newest.version + 1} of the trust root is missing before {root.version}")
            result = root.get_root_verification_result(newest, metadata.signed_bytes, metadata.signatures)
            if not result:
                raise SignatureError(
                    f"version {root.version} of the trust root lacks signatures: "
                    f"{result.first.missing} of the keys before it, {result.second.missing} of its own"
                )
            files.append(data)
            newest = root
        return RootChain(tuple(files), newest)


def _parse_root(data: bytes) -> tuple[Root, Metadata[Root]]:
    if len(data) > limits.ROOT_MAX_BYTES:
        raise SignatureError(f"a trust root of {len(data)} bytes is over the limit of {limits.ROOT_MAX_BYTES}")
    metadata = _parse(data, "trust root")
    if not isinstance(metadata.signed, Root):
        raise SignatureError(f"this is {metadata.signed.type} metadata, not a trust root")
    return metadata.signed, metadata


def _parse(data: bytes, what: str) -> Metadata[Any]:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        _ = metadata.signed_bytes  # everything that has no canonical form (a float, a lone surrogate) ends here
    except _MALFORMED as err:
        raise SignatureError(f"the {what} is no TUF metadata: {err}") from err
    if type(metadata.signed.version) is not int or metadata.signed.version > limits.VERSION_MAX:
        raise SignatureError(f"the {what} has no usable version number")
    return metadata


def verify_targets(root: Root, data: bytes, what: str) -> Targets:
    """Return the signed part of targets metadata once enough keys of ``root`` have signed it.

    Args:
        root: Newest trusted root of the repository.
        data: The metadata.
        what: ``bundle`` or ``assignment``, for errors.

    Raises:
        SignatureError: Over the size limit, malformed, of another type, or under the threshold.
    """
    if len(data) > limits.METADATA_MAX_BYTES:
        raise SignatureError(f"the {what} has {len(data)} bytes of metadata, the limit is {limits.METADATA_MAX_BYTES}")
    metadata = _parse(data, what)
    if not isinstance(metadata.signed, Targets):
        raise SignatureError(f"this is {metadata.signed.type} metadata, not the {what}")
    result = root.get_verification_result(Targets.type, metadata.signed_bytes, metadata.signatures)
    if not result:
        raise SignatureError(f"the {what} is signed by {len(result.signed)} of the {result.threshold} keys that count")
    if metadata.signed.delegations is not None:
        # Delegated roles could sign for paths that nobody here would look at: not used, so not accepted.
        raise SignatureError(f"the {what} delegates to other keys, which is not accepted")
    return metadata.signed


def sign_targets(targets: Targets, signers: Iterable[Signer]) -> bytes:
    """Return targets metadata signed by all ``signers``."""
    metadata = Metadata(targets)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def make_root(
    *,
    version: int,
    expires: datetime,
    root_keys: Sequence[Key],
    targets_keys: Sequence[Key],
    signers: Iterable[Signer],
    thresholds: tuple[int, int] = (1, 1),
) -> bytes:
    """Return signed root metadata.

    Args:
        version: 1 for the first; each later one follows the one before by one.
        expires: End of validity, UTC.
        root_keys: Who may sign the next root.
        targets_keys: Who may sign bundles or assignments.
        signers: Who signs this one; for a later version as many as the version before it demands too.
        thresholds: How many of ``root_keys`` and of ``targets_keys`` are needed.
    """
    keys = {key.keyid: key for key in (*root_keys, *targets_keys)}
    nobody = Role([], 1)
    roles = {
        Root.type: Role([key.keyid for key in root_keys], thresholds[0]),
        Targets.type: Role([key.keyid for key in targets_keys], thresholds[1]),
        "snapshot": nobody,
        "timestamp": nobody,
    }
    root = Root(version=version, expires=expires.astimezone(UTC), keys=keys, roles=roles, consistent_snapshot=False)
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()
