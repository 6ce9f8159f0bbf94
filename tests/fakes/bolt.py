"""Writes bolt databases in the real format, as Podman and containerd have them, with as many pages as a test asks for."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

__all__ = ["PAGE_BYTES", "Content", "write_bolt"]

PAGE_BYTES = 4096
Content: TypeAlias = "Mapping[bytes, bytes | Content]"
_BRANCH, _LEAF, _META = 1, 2, 4


def write_bolt(path: Path, content: Content, *, txid: int = 7, per_page: int = 8) -> None:
    """Write ``content``: values are bytes, buckets are mappings; each leaf holds ``per_page`` keys at most."""
    pages: dict[int, bytes] = {}
    root = _tree(content, pages, per_page)
    high_water = max(pages, default=1) + 1 + 8  # the last page may overflow
    total = max((n + len(raw) // PAGE_BYTES for n, raw in pages.items()), default=2)
    file = bytearray(max(total, high_water) * PAGE_BYTES)
    for slot, txn in ((0, txid - 1), (1, txid)):
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE_BYTES, 0, root if txn == txid else 2, 0, 2, high_water, txn)
        raw = struct.pack("<QHHI", slot, _META, 0, 0) + meta + struct.pack("<Q", _fnv(meta))
        file[slot * PAGE_BYTES : slot * PAGE_BYTES + len(raw)] = raw
    for number, raw in pages.items():
        file[number * PAGE_BYTES : number * PAGE_BYTES + len(raw)] = raw
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file)


def _tree(content: Content, pages: dict[int, bytes], per_page: int) -> int:
    """Write a bucket's pages; returns its root page."""
    items = [(key, _value(value, pages, per_page)) for key, value in sorted(content.items())]
    leaves = [items[n : n + per_page] for n in range(0, len(items), per_page)] or [[]]
    level = [(leaf[0][0] if leaf else b"", _add(pages, _LEAF, [(flags, k, v) for k, (flags, v) in leaf])) for leaf in leaves]
    while len(level) > 1:
        groups = [level[n : n + per_page] for n in range(0, len(level), per_page)]
        level = [(group[0][0], _add(pages, _BRANCH, [(page, key, b"") for key, page in group])) for group in groups]
    return level[0][1]


def _value(value: bytes | Content, pages: dict[int, bytes], per_page: int) -> tuple[int, bytes]:
    if isinstance(value, bytes):
        return 0, value
    if len(value) <= 2 and all(isinstance(inner, bytes) and len(inner) < 256 for inner in value.values()):
        inline = _page(0, _LEAF, [(0, key, inner) for key, inner in sorted(value.items()) if isinstance(inner, bytes)])
        return 1, struct.pack("<QQ", 0, 0) + inline
    return 1, struct.pack("<QQ", _tree(value, pages, per_page), 0)


def _add(pages: dict[int, bytes], flags: int, items: list[tuple[int, bytes, bytes]]) -> int:
    number = max((n + -(-len(raw) // PAGE_BYTES) for n, raw in pages.items()), default=3)
    pages[number] = _page(number, flags, items)
    return number


def _page(number: int, flags: int, items: list[tuple[int, bytes, bytes]]) -> bytes:
    elements, data = b"", b""
    for n, (first, key, value) in enumerate(items):
        position = (len(items) - n) * 16 + len(data)
        if flags == _BRANCH:
            elements += struct.pack("<IIQ", position, len(key), first)
        else:
            elements += struct.pack("<IIII", first, position, len(key), len(value))
        data += key + value
    size = 16 + len(elements) + len(data)
    return struct.pack("<QHHI", number, flags, len(items), max(0, -(-size // PAGE_BYTES) - 1)) + elements + data


def _fnv(raw: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in raw:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value
