"""The two copies of each table in the kernel, of which one holds.

Rules of this file:
- A table is replaced whole: the outer map lets go of the one before when it takes the new one.
Owns: making, filling, reading inner maps. Does not own: what is in them (``layout``), which copy may be written (``enforcer``).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from garrison.bpf.loader import BpfMap, MapType
from garrison.minion.enforcers.bpf_lsm.layout import TABLES, Tables, TableType

__all__ = ["Copies"]

_INNER_MAP: Final = 1 << 12  # BPF_F_INNER_MAP: numbered tables of a copy may have any size
_NO_PREALLOC: Final = 1  # BPF_F_NO_PREALLOC: room for rows that may never come
_ZERO: Final = bytes(4)
_U32: Final = struct.Struct("=I")


class Copies:
    """Tables by name and copy, 0 or 1.

    Args:
        maps: The outer maps, and ``active``; borrowed.
    """

    def __init__(self, maps: Mapping[str, BpfMap]) -> None:
        self._maps = maps

    @property
    def active(self) -> int:
        """The copy that holds."""
        number: int = _U32.unpack(self._maps["active"].lookup(_ZERO) or _ZERO)[0]
        return number & 1

    def switch(self, copy: int) -> None:
        """Have ``copy`` hold from the next operation on."""
        self._maps["active"].update(_ZERO, _U32.pack(copy))

    def fill(self, copy: int, tables: Tables) -> None:
        """Replace these tables of a copy, in this order.

        Raises:
            KernelError: The kernel refused; those after it are as before.
        """
        for name, rows in tables.items():
            made = _make_table(name, TABLES[name], len(rows))
            try:
                made.update_batch(rows)
                self._maps[name].update(_U32.pack(copy), _U32.pack(made.fd))
            finally:
                made.close()  # the outer map holds it

    def first_row(self, name: str, copy: int) -> bytes:
        """Return row 0 of a table; empty when there is no such table yet."""
        if self._maps[name].lookup(_U32.pack(copy)) is None:
            return b""
        with self.opened(name, copy) as table:
            return table.lookup(_ZERO) or b""

    @contextlib.contextmanager
    def opened(self, name: str, copy: int) -> Iterator[BpfMap]:
        """Open a table, to be read or changed in place."""
        number: int = _U32.unpack(self._maps[name].lookup(_U32.pack(copy)) or _ZERO)[0]
        table = BpfMap.by_id(number, name=name)
        try:
            yield table
        finally:
            table.close()

    def ids(self) -> Iterator[int]:
        """Yield the kernel's number of each table there is."""
        for name in TABLES:
            for copy in (0, 1):
                if raw := self._maps[name].lookup(_U32.pack(copy)):
                    yield _U32.unpack(raw)[0]


def _make_table(name: str, kind: TableType, rows: int) -> BpfMap:
    if kind.rows_max:
        return BpfMap.create(MapType.HASH, kind.key_bytes, kind.value_bytes, kind.rows_max, name=name, flags=_NO_PREALLOC)
    map_type, flags = (MapType.HASH, 0) if kind.keyed else (MapType.ARRAY, _INNER_MAP)
    return BpfMap.create(map_type, kind.key_bytes, kind.value_bytes, max(rows, 1), name=name, flags=flags)
