"""What a node and its master share without having met: a secret of their two CURVE keys, and the node's signing key.

A node behind a relay has its connection with the relay. What it says must still be provably its own, and what the master says
to it provably the master's. Both follow from the CURVE keys that were accepted and pinned anyway; no key file is added.

Rules of this file:
- The signing key (Ed25519) is derived from the node's CURVE secret: one secret to keep, and it never changes alone.
- The shared secret is X25519 of one side's secret and the other's public key: a relay knows neither secret. It vouches for the
  signing key upwards and seals messages downwards.
- Every signature and every seal names what it is for, the node, and the bytes; a seal also the agent's instance, so that one
  of an earlier life is worth nothing.
- Pure. Nothing is parsed before its signature or seal was checked; comparisons take the same time whatever they find.
Source: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 8032 (Ed25519); CurveZMQ's keys are X25519 keys.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from zmq.utils import z85

from garrison.common.errors import SignatureError

__all__ = ["NodeSigner", "PairSecret", "verify_signed"]

_KEY_BYTES: Final = 32
_SIGNING: Final = b"garrison node signing key 1"
_SHARED: Final = b"garrison node and master 1"
_MESSAGE: Final = b"garrison signed message 1"
_VOUCH: Final = b"garrison vouched signing key 1"
_SEAL: Final = b"garrison sealed message 1"


class NodeSigner:
    """A node's signing key.

    Args:
        node: The node's name.
        secret_key: Its CURVE secret key, Z85.
    """

    def __init__(self, node: str, secret_key: bytes) -> None:
        self._node = node
        seed = HKDF(SHA256(), _KEY_BYTES, None, _SIGNING).derive(z85.decode(secret_key))
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public_key(self) -> bytes:
        """The public half, 32 bytes."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, frame: bytes) -> bytes:
        """Return the signature of ``frame`` as this node's word."""
        return self._key.sign(_bound(_MESSAGE, self._node.encode(), frame))


def verify_signed(node: str, signing_key: bytes, frame: bytes, signature: bytes) -> None:
    """Check that ``node`` signed ``frame``.

    Raises:
        SignatureError: It did not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(signing_key).verify(signature, _bound(_MESSAGE, node.encode(), frame))
    except (InvalidSignature, ValueError) as err:
        raise SignatureError(f"this is not signed by {node[:63]}") from err


class PairSecret:
    """The secret of one node and its master; the same on both sides.

    Args:
        secret_key: Own CURVE secret key, Z85.
        public_key: The other side's CURVE public key, Z85.

    Raises:
        SignatureError: The other side's key is none that could share a secret.
    """

    def __init__(self, secret_key: bytes, public_key: bytes) -> None:
        own = X25519PrivateKey.from_private_bytes(z85.decode(secret_key))
        try:
            shared = own.exchange(X25519PublicKey.from_public_bytes(z85.decode(public_key)))
        except ValueError as err:
            raise SignatureError("the key shares no secret") from err
        self._key = HKDF(SHA256(), _KEY_BYTES, None, _SHARED).derive(shared)

    def vouch(self, node: str, signing_key: bytes) -> bytes:
        """Return the word of the node's CURVE key that ``signing_key`` is the node's."""
        return self._mac(_VOUCH, node.encode(), signing_key)

    def check_vouch(self, node: str, signing_key: bytes, vouch: bytes) -> None:
        """Check such a word.

        Raises:
            SignatureError: It is not the node's.
        """
        if not hmac.compare_digest(self.vouch(node, signing_key), vouch):
            raise SignatureError(f"the signing key is not that of {node[:63]}")

    def seal(self, node: str, instance: str, frame: bytes) -> bytes:
        """Return the seal of a message of the master to one life of a node's agent."""
        return self._mac(_SEAL, node.encode(), instance.encode(), frame)

    def check_seal(self, node: str, instance: str, frame: bytes, seal: bytes) -> None:
        """Check such a seal.

        Raises:
            SignatureError: It is not the master's, or was for another life.
        """
        if not hmac.compare_digest(self.seal(node, instance, frame), seal):
            raise SignatureError("this is not sealed by the master")

    def _mac(self, purpose: bytes, *parts: bytes) -> bytes:
        return hmac.new(self._key, _bound(purpose, *parts), hashlib.sha256).digest()


def _bound(purpose: bytes, *parts: bytes) -> bytes:
    # Each part with its length: no two different lists of parts give the same bytes.
    return b"".join(len(part).to_bytes(8, "big") + part for part in (purpose, *parts))
