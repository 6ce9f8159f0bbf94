"""The CURVE key of a minion or a master: one file, one line, the secret in Z85; the public half is computed from it.

Rules of this file:
- The file is made whole, mode 0600, or not at all. An existing one is never replaced: another key is another node.
"""

from __future__ import annotations

import errno
import struct
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from garrison.common import limits
from garrison.common.errors import ConfigError, KernelError
from garrison.common.trust.durable import read_private, write_durably

__all__ = ["check_public_key", "ensure_curve_key", "load_curve_key"]

_Z85_CHARS: Final = 40  # 32 bytes in Z85: ZeroMQ RFC 32
_KEY_BYTES: Final = 32


def ensure_curve_key(path: Path) -> tuple[bytes, bytes]:
    """Return ``(public, secret)`` of the key at ``path``, each 40 bytes of Z85; makes the key when there is none.

    Raises:
        ConfigError: There is a file, and it is not a key or is open to others.
        KernelError: It cannot be written.
    """
    if not path.exists():
        _, secret = zmq.curve_keypair()
        try:
            write_durably(path, secret + b"\n", exclusive=True)
        except KernelError as err:
            if err.errno != errno.EEXIST:  # otherwise another process was first: its key counts
                raise
    return load_curve_key(path)


def load_curve_key(path: Path) -> tuple[bytes, bytes]:
    """Return ``(public, secret)`` of the key at ``path``, each 40 bytes of Z85.

    Raises:
        ConfigError: Absent, open to others, or not a key.
    """
    secret = read_private(path, limits.KEY_FILE_MAX_BYTES, "the link key").strip()
    if not _is_key(secret):
        raise ConfigError(f"{path} holds no CURVE key", hint="restore it from a backup; a new key must be accepted anew")
    return zmq.curve_public(secret), secret


def check_public_key(text: str) -> str:
    """Return ``text`` when it is a public key in Z85.

    Raises:
        ConfigError: It is not.
    """
    if not _is_key(text.encode()):
        raise ConfigError(f"{text[:60]!r} is no CURVE public key: 40 characters of Z85 are needed")
    return text


def _is_key(text: bytes) -> bool:
    if len(text) != _Z85_CHARS:
        return False
    try:
        return len(z85.decode(text)) == _KEY_BYTES
    except (KeyError, struct.error):  # a character outside the alphabet; a group of five over 2^32 - 1
        return False
