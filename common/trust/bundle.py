"""The bundle: which policy files there are, and which node gets which of them, in which mode, with which labels.

Rules of this file:
- A bundle is TUF targets metadata, signed by authors. Its ``targets`` are the files by path; the member ``garrison`` of the
  signed part says for every node what its share is. All that decides what is enforced stands under the author's signature.
- Reading is strict about types, limits, paths and shares that name absent files; fields it does not know are ignored, since a
  newer author may write them (what must not be ignored raises ``v``).
- Files are known by digest; paths are names for people and never become file names on a node.
Owns: the format of the content. Does not own: whose signature counts (``metadata``), versions against what is held (``verify``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from securesystemslib.signer import Signer
from tuf.api.metadata import TargetFile, Targets

from garrison.common import limits
from garrison.common.confirm import ConfirmTerms
from garrison.common.errors import BundleError, ConfigError
from garrison.common.names import Digest, NodeName, digest_of, node_name, parse_digest
from garrison.common.policy.rules import Mode, Postures
from garrison.common.trust.metadata import CUSTOM, sign_targets

__all__ = ["Bundle", "BundleContent", "FileEntry", "NodeShare", "build_bundle", "check_path", "read_targets"]

_FORMAT: Final = 1
_HASH: Final = "sha256"


class NodeShare(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one node gets.

    Attributes:
        files: Path in the states folder → how its blocks are meant on this node.
        labels: What selectors of policies look at.
        postures: What allow-lists do with the rest.
        confirm: How the node finds out that it still works under all this; it says nothing of what is enforced.
    """

    files: dict[str, Mode] = {}
    labels: dict[str, str] = {}
    postures: Postures = Postures()
    confirm: ConfirmTerms = ConfirmTerms()


class FileEntry(msgspec.Struct, frozen=True):
    """A policy file: its length in bytes and its digest."""

    length: int
    digest: Digest


class BundleContent(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was read: what its author said.

    Attributes:
        tenant: Whose nodes it is for.
        version: Rises with every bundle of the tenant.
        issued: When it was signed, seconds since 1970 UTC.
        expires: End of validity, UTC.
        files: Path → file.
        nodes: Node → its share.
    """

    tenant: str
    version: int
    issued: int
    expires: datetime
    files: dict[str, FileEntry]
    nodes: dict[NodeName, NodeShare]

    def parts(self, share: NodeShare) -> dict[str, tuple[Digest, Mode]]:
        """Return a share's files by path, each with digest and mode: what decides whether two shares are the same."""
        return {path: (self.files[path].digest, mode) for path, mode in share.files.items()}


class _Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    grant: int
    labels: dict[str, str] = {}
    postures: Postures = Postures()
    confirm: ConfirmTerms = ConfirmTerms()


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """The member ``garrison`` of the signed part.

    Nodes point at ``grants``, since most of a fleet shares a few sets of files: 10,000 nodes with 20 files take 1.4 MB, not 6.6.
    """

    v: int
    kind: Literal["bundle"]
    tenant: str
    issued: int
    grants: list[dict[str, Mode]]
    nodes: dict[str, _Node]


@dataclass(frozen=True)
class Bundle:
    """A signed bundle with its files.

    Attributes:
        metadata: Signed metadata.
        digest: Of ``metadata``: the bundle's name.
        version: Its version.
        files: Content by digest.
    """

    metadata: bytes
    digest: Digest
    version: int
    files: dict[Digest, bytes]


def check_path(path: str) -> str:
    """Return ``path`` when it can name a file of a bundle.

    Raises:
        BundleError: Absolute, empty, over ``PATH_MAX_BYTES``, or with ``.``, ``..``, empty or unprintable parts.
    """
    parts = path.split("/")
    if not path.isprintable() or len(path.encode()) > limits.PATH_MAX_BYTES or any(part in {"", ".", ".."} for part in parts):
        raise BundleError(f"{path[:200]!r} is no path of a file in a bundle")
    return path


def build_bundle(
    files: Mapping[str, bytes],
    nodes: Mapping[NodeName, NodeShare],
    *,
    tenant: str,
    version: int,
    expires: datetime,
    signers: Iterable[Signer],
    issued: datetime | None = None,
) -> Bundle:
    """Return a signed bundle.

    Args:
        files: Path in the states folder → content.
        nodes: Every node that gets something, or gets rid of what it had, and its share.
        tenant: Whose nodes they are.
        version: Higher than any before.
        expires: End of validity, UTC; afterwards the bundle stays enforced where it is and no node takes it anew.
        signers: As many authors as the bundle root demands.
        issued: Time of signing, now if ``None``.

    Raises:
        BundleError: Over a limit, or a share names a file that is not there: what no node would accept is not signed.
    """
    signed_at = int((issued or datetime.now(UTC)).timestamp())
    grants, members = _packed(nodes)
    body = _Body(v=_FORMAT, kind="bundle", tenant=tenant, issued=signed_at, grants=grants, nodes=members)
    targets = Targets(
        version=version,
        expires=expires.astimezone(UTC),
        targets={path: TargetFile(len(data), {_HASH: digest_of(data)}, path) for path, data in sorted(files.items())},
        unrecognized_fields={CUSTOM: msgspec.to_builtins(body)},
    )
    read_targets(targets, tenant=tenant)
    metadata = sign_targets(targets, signers)
    if len(metadata) > limits.METADATA_MAX_BYTES:
        raise BundleError(f"the bundle has {len(metadata)} bytes of metadata, the limit is {limits.METADATA_MAX_BYTES}")
    return Bundle(metadata, digest_of(metadata), version, {digest_of(data): data for data in files.values()})


def read_targets(targets: Targets, *, tenant: str) -> BundleContent:
    """Return what verified targets metadata says as a bundle.

    Args:
        targets: Signed part, already verified.
        tenant: Whose bundle it must be.

    Raises:
        BundleError: Not a bundle, of another tenant, over a limit, or it contradicts itself.
    """
    try:
        body = msgspec.convert(targets.unrecognized_fields.get(CUSTOM), _Body)
    except msgspec.ValidationError as err:
        raise BundleError(f"this is no bundle: {err}") from err
    if body.v != _FORMAT:
        raise BundleError(f"version {body.v} of the bundle format is not understood", hint="update garrison on this machine")
    if body.tenant != tenant:
        raise BundleError(f"the bundle is for tenant {body.tenant[:80]!r}, not for {tenant!r}")
    files = _read_files(targets.targets)
    if len(body.nodes) > limits.BUNDLE_NODES_MAX:
        raise BundleError(f"the bundle names {len(body.nodes)} nodes, the limit is {limits.BUNDLE_NODES_MAX}")
    for grant in body.grants:
        absent = sorted(grant.keys() - files.keys())
        if absent:
            raise BundleError(f"{absent[0]} is given to nodes and is not among the bundle's files")
    nodes = {_node(name): _share(name, node, body.grants) for name, node in body.nodes.items()}
    return BundleContent(
        tenant=body.tenant, version=targets.version, issued=body.issued, expires=targets.expires, files=files, nodes=nodes
    )


def _read_files(targets: Mapping[str, TargetFile]) -> dict[str, FileEntry]:
    if len(targets) > limits.BUNDLE_FILES_MAX:
        raise BundleError(f"the bundle has {len(targets)} files, the limit is {limits.BUNDLE_FILES_MAX}")
    files = {check_path(path): FileEntry(target.length, _digest(path, target)) for path, target in targets.items()}
    for path, entry in files.items():
        if type(entry.length) is not int or not 0 <= entry.length <= limits.BUNDLE_FILE_MAX_BYTES:
            raise BundleError(f"{path} has {entry.length} bytes, the limit is {limits.BUNDLE_FILE_MAX_BYTES}")
    total = sum(entry.length for entry in files.values())
    if total > limits.BUNDLE_MAX_BYTES:
        raise BundleError(f"the bundle's files have {total} bytes together, the limit is {limits.BUNDLE_MAX_BYTES}")
    return files


def _digest(path: str, target: TargetFile) -> Digest:
    try:
        return parse_digest(str(target.hashes.get(_HASH, "")))
    except ConfigError as err:
        raise BundleError(f"{path} has no usable digest") from err


def _node(name: str) -> NodeName:
    try:
        return node_name(name)
    except ConfigError as err:
        raise BundleError("the bundle names a node that cannot be one") from err


def _packed(nodes: Mapping[NodeName, NodeShare]) -> tuple[list[dict[str, Mode]], dict[str, _Node]]:
    numbers: dict[tuple[tuple[str, Mode], ...], int] = {}
    members: dict[str, _Node] = {}
    for name, share in sorted(nodes.items()):
        number = numbers.setdefault(tuple(sorted(share.files.items())), len(numbers))
        members[str(name)] = _Node(grant=number, labels=share.labels, postures=share.postures, confirm=share.confirm)
    return [dict(files) for files in numbers], members


def _share(name: str, node: _Node, grants: Sequence[dict[str, Mode]]) -> NodeShare:
    if not 0 <= node.grant < len(grants):
        raise BundleError(f"node {name} gets grant {node.grant}, which is not there")
    if len(node.labels) > limits.LABELS_MAX:
        raise BundleError(f"node {name} has {len(node.labels)} labels, the limit is {limits.LABELS_MAX}")
    for key, value in node.labels.items():
        if not key or max(len(key), len(value)) > limits.LABEL_MAX_CHARS:
            raise BundleError(f"node {name} has a label that is empty or over {limits.LABEL_MAX_CHARS} characters: {key[:80]!r}")
    return NodeShare(files=grants[node.grant], labels=node.labels, postures=node.postures, confirm=node.confirm)
