"""Keyed hashes of paths, the same as ``bpf/include/path_hash.h`` computes in the kernel. A test compares the two.

A path's hash is the sum of its components' hashes, each times a secret factor for each component after it, modulo 2^64. The
kernel gets from the hash of a path to that of its directory by taking off the last component's and dividing by the factor.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["KEY_BYTES", "PathHasher"]

KEY_BYTES: Final = 24
_MASK: Final = (1 << 64) - 1
_CHUNK_BYTES: Final = 32
_START: Final = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)  # SipHash's own
_FINAL_ROUNDS: Final = 3


class PathHasher:
    """SipHash-1-3 of components, with the padding of the kernel half, and their sum.

    Args:
        key: ``KEY_BYTES`` random bytes.
    """

    def __init__(self, key: bytes) -> None:
        low: int
        high: int
        low, high, factor = struct.unpack("=QQQ", key)
        self._start = (low ^ _START[0], high ^ _START[1], low ^ _START[2], high ^ _START[3])
        self._factor: int = factor | 1
        self._key = low
        self.rodata: dict[str, bytes] = {
            "hash_key": key[:16],
            "hash_factor": struct.pack("=Q", self._factor),
            "hash_inverse": struct.pack("=Q", pow(self._factor, -1, _MASK + 1)),
        }

    def path(self, path: str) -> int:
        """Return the hash of an absolute path, with or without a trailing slash; of ``/`` it is 0."""
        found = 0
        for component in path.encode("utf-8", "surrogateescape").split(b"/"):
            if component:
                found = self.below(found, component)
        return found

    def below(self, directory: int, component: bytes) -> int:
        """Return the hash of what is called ``component`` in the directory whose hash is ``directory``."""
        return directory * self._factor + self.name(component) & _MASK

    def name(self, name: bytes) -> int:
        """Return the hash of a single component."""
        padded = name + bytes(-len(name) % _CHUNK_BYTES)
        return self._hash((*struct.unpack(f"={len(padded) // 8}Q", padded), len(name))) or 1

    def argument(self, argument: bytes) -> int:
        """Return the hash of a program's argument."""
        found = self._key
        for byte in argument:
            found = (found ^ byte) * self._factor & _MASK
        return found ^ found >> 32

    def _hash(self, words: tuple[int, ...]) -> int:
        a, b, c, d = self._start
        for word in words:
            a, b, c, d = _round(a, b, c, d ^ word)
            a ^= word
        c ^= 0xFF
        for _ in range(_FINAL_ROUNDS):
            a, b, c, d = _round(a, b, c, d)
        return a ^ b ^ c ^ d


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK


def _round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    a = a + b & _MASK
    b = _rotate(b, 13) ^ a
    a = _rotate(a, 32)
    c = c + d & _MASK
    d = _rotate(d, 16) ^ c
    a = a + d & _MASK
    d = _rotate(d, 21) ^ a
    c = c + b & _MASK
    b = _rotate(b, 17) ^ c
    c = _rotate(c, 32)
    return a, b, c, d
