"""Typed names: of nodes, digests, keys. Made only here, from strings that were checked.

Nothing that fails these checks may reach a path, a query, a pattern or a log line.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NewType

from garrison.common.errors import ConfigError

__all__ = ["Digest", "KeyFingerprint", "NodeName", "digest_of", "fingerprint", "node_name", "parse_digest"]

NodeName = NewType("NodeName", str)
Digest = NewType("Digest", str)  # lower-case hex SHA-256
KeyFingerprint = NewType("KeyFingerprint", str)  # SHA256:<16 groups>, of a CURVE public key

# Host names as inventories use them. No slash, no leading dot or dash: safe as a file name and as an argument.
_NODE: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def node_name(text: str) -> NodeName:
    """Return ``text`` as a node name.

    Raises:
        ConfigError: Not 1 to 63 of ``a-z 0-9 . _ -`` beginning and ending with a letter or digit, or it contains ``..``.
    """
    if not _NODE.fullmatch(text) or ".." in text:
        raise ConfigError(
            f"{text!r} is not a node name",
            hint="use 1 to 63 of a-z 0-9 . _ - and begin and end with a letter or digit",
        )
    return NodeName(text)


def parse_digest(text: str) -> Digest:
    """Return ``text`` as a digest.

    Raises:
        ConfigError: Not 64 lower-case hex digits.
    """
    if not _DIGEST.fullmatch(text):
        raise ConfigError(f"{text[:80]!r} is not a SHA-256 digest in lower-case hex")
    return Digest(text)


def digest_of(data: bytes) -> Digest:
    """Return the SHA-256 of ``data``."""
    return Digest(hashlib.sha256(data).hexdigest())


def fingerprint(curve_public_key: bytes) -> KeyFingerprint:
    """Return what people compare: ``SHA256:`` and the first 32 hex digits of the Z85 key's hash, in groups of four.

    Args:
        curve_public_key: The 40-byte Z85 text of a CURVE public key.
    """
    text = hashlib.sha256(curve_public_key).hexdigest()[:32]
    return KeyFingerprint("SHA256:" + "-".join(text[i : i + 4] for i in range(0, 32, 4)))
