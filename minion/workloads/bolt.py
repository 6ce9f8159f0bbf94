"""Reads values out of a bolt database (Podman's and containerd's state) without its lock and without its program.

Rules of this file:
- A bolt file is copy-on-write: what the last finished transaction reaches is not written again before the transaction after
  the next. So a read is good if the file's newest transaction is the same after it as before it; else it is repeated.
- The file may be anybody's (rootless containers): pages, keys and depth are bounded, nothing is mapped into memory, and whatever
  does not fit together is a ``BoltError``.
- Only look-ups by key, and walks over one bucket. Nothing is written.

Source: go.etcd.io/bbolt, file format version 2: meta pages 0 and 1, branch and leaf pages, inline buckets.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.minion.workloads.files import open_regular

__all__ = ["BoltError", "BoltFile", "Bucket"]

_MAGIC, _VERSION = 0xED0CDAED, 2
_BRANCH, _LEAF = 0x01, 0x02  # page flags
_BUCKET: Final = 0x01  # flag of a leaf element whose value is a bucket
_PAGE: Final = struct.Struct("<QHHI")  # id, flags, count, overflow
_META: Final = struct.Struct("<IIIIQQQQQQ")  # magic, version, page size, flags, root, sequence, freelist, high water, txid, sum
_BRANCH_ELEMENT: Final = struct.Struct("<IIQ")  # position from the element on, key size, page
_LEAF_ELEMENT: Final = struct.Struct("<IIII")  # flags, position, key size, value size
_BUCKET_HEADER: Final = struct.Struct("<QQ")  # root page (0: the page follows), sequence
_PAGE_SIZES: Final = (1024, 65_536)
_DEPTH_MAX: Final = 16  # of the tree in one bucket: 16 levels of two keys a page would already be 65,536 pages
_FIRST: Final = 2  # page after the meta pages
_TRIES: Final = 5  # a container engine writes a few times a second, a read takes under a millisecond
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3

_T = TypeVar("_T")


class BoltError(GarrisonError):
    """A bolt file cannot be read: it is damaged, of another version, too large, or is changed all the time."""


class _Meta(NamedTuple):
    txid: int
    page_size: int
    root: int
    pages: int


class Bucket:
    """One bucket of a file, as of one transaction."""

    def __init__(self, file: BoltFile, meta: _Meta, page: bytes | int) -> None:
        self._file, self._meta, self._page = file, meta, page

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``; ``None`` when there is none, or it is a bucket."""
        found = self._find(key)
        return found[1] if found and not found[0] & _BUCKET else None

    def bucket(self, *keys: bytes) -> Bucket | None:
        """Return the bucket below this one that ``keys`` lead to; ``None`` when there is none."""
        here: Bucket = self
        for key in keys:
            found = here._find(key)
            if not found or not found[0] & _BUCKET:
                return None
            here = self._inner(found[1])
        return here

    def items(self, at_most: int) -> list[tuple[bytes, bytes]]:
        """Return the first ``at_most`` keys and values; buckets are left out."""
        found: list[tuple[bytes, bytes]] = []
        for flags, key, value in self._walk(self._page, 0):
            if len(found) == at_most:
                break
            if not flags & _BUCKET:
                found.append((key, value))
        return found

    def _inner(self, value: bytes) -> Bucket:
        if len(value) < _BUCKET_HEADER.size:
            raise BoltError("a bucket is cut short")
        root, _ = _BUCKET_HEADER.unpack_from(value)
        return Bucket(self._file, self._meta, root or value[_BUCKET_HEADER.size :])

    def _load(self, page: bytes | int) -> tuple[int, int, bytes]:
        raw = page if isinstance(page, bytes) else self._file.page(self._meta, page)
        if len(raw) < _PAGE.size:
            raise BoltError("a page is cut short")
        _, flags, count, _ = _PAGE.unpack_from(raw)
        element = _BRANCH_ELEMENT if flags & _BRANCH else _LEAF_ELEMENT
        if not flags & (_BRANCH | _LEAF) or _PAGE.size + count * element.size > len(raw):
            raise BoltError("a page is neither branch nor leaf")
        return flags, count, raw

    def _find(self, key: bytes) -> tuple[int, bytes] | None:
        page: bytes | int = self._page
        for _ in range(_DEPTH_MAX):
            flags, count, raw = self._load(page)
            if not flags & _BRANCH:
                return next(((how, value) for how, name, value in _leaves(raw, count) if name == key), None)
            if not count:
                return None
            children = list(_branches(raw, count))
            page = children[max(0, bisect_right([name for name, _ in children], key) - 1)][1]
        raise BoltError("its tree is too deep")

    def _walk(self, page: bytes | int, depth: int) -> Iterator[tuple[int, bytes, bytes]]:
        if depth == _DEPTH_MAX:
            raise BoltError("its tree is too deep")
        flags, count, raw = self._load(page)
        if not flags & _BRANCH:
            yield from _leaves(raw, count)
            return
        for _, child in _branches(raw, count):
            yield from self._walk(child, depth + 1)


class BoltFile:
    """An open file; close it.

    Args:
        path: Where it is.
        owner: Who must own it; see ``open_regular``.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, owner: int | None = None) -> None:
        self._fd = open_regular(path, owner=owner)
        self._budget = 0

    def read(self, look: Callable[[Bucket], _T]) -> _T:
        """Return what ``look`` finds from the root on, all of it as of one transaction.

        Raises:
            BoltError: See there.
        """
        for _ in range(_TRIES):
            meta = self._meta()
            self._budget = limits.BOLT_READ_MAX_BYTES
            try:
                found = look(Bucket(self, meta, meta.root))
            except BoltError:
                if self._meta().txid == meta.txid:
                    raise
                continue
            if self._meta().txid == meta.txid:
                return found
        raise BoltError(f"was changed during each of {_TRIES} attempts to read it")

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self._fd)

    def page(self, meta: _Meta, number: int) -> bytes:
        """Return page ``number`` with what overflows it."""
        if not _FIRST <= number < meta.pages:
            raise BoltError(f"page {number} is none of its {meta.pages}")
        head = self._bytes(number * meta.page_size, meta.page_size)
        overflow = _PAGE.unpack_from(head)[3]
        return head + self._bytes((number + 1) * meta.page_size, overflow * meta.page_size) if overflow else head

    def _bytes(self, offset: int, size: int) -> bytes:
        self._budget -= size
        if self._budget < 0:
            raise BoltError(f"more than {limits.BOLT_READ_MAX_BYTES} bytes would have to be read")
        raw = os.pread(self._fd, size, offset)
        if len(raw) != size:
            raise BoltError("ends before its last page")
        return raw

    def _meta(self) -> _Meta:
        head = os.pread(self._fd, 2 * _PAGE_SIZES[1], 0)
        found = [meta for meta in (_meta_at(head, 0), *(_meta_at(head, size) for size in _sizes())) if meta]
        if not found:
            raise BoltError("is no bolt database of version 2")
        return max(found, key=lambda meta: meta.txid)


def _sizes() -> Sequence[int]:
    low, high = _PAGE_SIZES
    return [1 << bits for bits in range(low.bit_length() - 1, high.bit_length())]


def _meta_at(head: bytes, offset: int) -> _Meta | None:
    start = offset + _PAGE.size
    if len(head) < start + _META.size:
        return None
    magic, version, size, _, root, _, _, pages, txid, checksum = _META.unpack_from(head, start)
    if magic != _MAGIC or version != _VERSION or size not in _sizes() or (offset and offset != size):
        return None
    return _Meta(txid, size, root, pages) if _fnv(head[start : start + _META.size - 8]) == checksum else None


def _fnv(raw: bytes) -> int:
    value = _FNV_START
    for byte in raw:
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
    return value


def _branches(raw: bytes, count: int) -> Iterator[tuple[bytes, int]]:
    for n in range(count):
        at = _PAGE.size + n * _BRANCH_ELEMENT.size
        position, key_size, page = _BRANCH_ELEMENT.unpack_from(raw, at)
        yield _slice(raw, at + position, key_size), page


def _leaves(raw: bytes, count: int) -> Iterator[tuple[int, bytes, bytes]]:
    for n in range(count):
        at = _PAGE.size + n * _LEAF_ELEMENT.size
        flags, position, key_size, value_size = _LEAF_ELEMENT.unpack_from(raw, at)
        yield flags, _slice(raw, at + position, key_size), _slice(raw, at + position + key_size, value_size)


def _slice(raw: bytes, start: int, size: int) -> bytes:
    if start + size > len(raw):
        raise BoltError("an entry leads out of its page")
    return raw[start : start + size]
