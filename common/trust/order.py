"""A release order: authors say that one node may take away what its kernel enforces, until a time.

Rules of this file:
- Signed like a bundle, by enough of the authors' keys; the master's key counts for nothing here.
- For one node of one tenant, with an end; within that time it may be used again.
Owns: what an order says. Does not own: who asks for one (``garrison enforcer release``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from securesystemslib.signer import Signer
from tuf.api.metadata import Targets

from garrison.common.errors import BundleError
from garrison.common.names import NodeName
from garrison.common.trust.metadata import CUSTOM, RootChain, sign_targets, verify_targets

__all__ = ["build_release_order", "check_release_order"]

_FORMAT: Final = 1


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    v: int
    kind: Literal["release"]
    tenant: str
    node: str


def build_release_order(*, tenant: str, node: NodeName, expires: datetime, signers: Iterable[Signer]) -> bytes:
    """Return a signed order to release the enforcement of ``node``, good until ``expires`` (UTC)."""
    body = _Body(v=_FORMAT, kind="release", tenant=tenant, node=node)
    targets = Targets(expires=expires.astimezone(UTC), unrecognized_fields={CUSTOM: msgspec.to_builtins(body)})
    return sign_targets(targets, signers)


def check_release_order(authors: RootChain, data: bytes, *, tenant: str, node: NodeName, now: datetime) -> None:
    """Accept an order, or say why not.

    Raises:
        SignatureError: Not signed by enough of the authors that this node knows.
        BundleError: No order, for somebody else, or expired.
    """
    targets = verify_targets(authors.newest, data, "release order")
    try:
        body = msgspec.convert(targets.unrecognized_fields.get(CUSTOM), _Body)
    except msgspec.ValidationError as err:
        raise BundleError(f"this is no release order: {err}") from err
    if body.v != _FORMAT:
        raise BundleError(f"version {body.v} of release orders is not understood", hint="update garrison on this node")
    if (body.tenant, body.node) != (tenant, node):
        raise BundleError(f"the order is for {body.node} of {body.tenant}, this is {node} of {tenant}")
    if now >= targets.expires:
        raise BundleError(
            f"the order expired at {targets.expires:%Y-%m-%d %H:%M} UTC", hint="sign another: garrison enforcer order"
        )
