"""Ed25519 key files that sign roots, bundles and assignments: PKCS#8 in PEM, mode 0600, made once.

Rules of this file:
- A key file is never replaced. Other programs can read it: ``openssl pkey -in author.key -pubout``.
- Signing and verification are securesystemslib's.
"""

from __future__ import annotations

import errno
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from garrison.common import limits
from garrison.common.errors import ConfigError, KernelError
from garrison.common.trust.durable import read_private, write_durably

__all__ = ["load_key", "make_key"]


def make_key(path: Path) -> CryptoSigner:
    """Make a key, write it to ``path`` and return its signer.

    Raises:
        ConfigError: There is a file already.
        KernelError: It cannot be written.
    """
    signer = CryptoSigner.generate_ed25519()
    try:
        write_durably(path, signer.private_bytes, exclusive=True)
    except KernelError as err:
        if err.errno == errno.EEXIST:
            raise ConfigError(f"there is a key already: {path}", hint="keys are never replaced; name another directory") from err
        raise
    return signer


def load_key(path: Path, what: str) -> CryptoSigner:
    """Return the signer of a key file.

    Args:
        path: The file.
        what: What it is, for errors: ``the author's key``.

    Raises:
        ConfigError: Absent, open to others, locked with a passphrase, or no Ed25519 key.
    """
    pem = read_private(path, limits.KEY_FILE_MAX_BYTES, what)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as err:
        raise ConfigError(
            f"{what} is locked with a passphrase: {path}", hint=f"unlock it first: openssl pkey -in {path}"
        ) from err
    except (ValueError, UnsupportedAlgorithm) as err:
        raise ConfigError(f"{what} is no key in PEM: {path}") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{what} is no Ed25519 key: {path}")
    return CryptoSigner(key)
