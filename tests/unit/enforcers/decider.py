"""Asks the responder for decisions without a kernel: ``responder --decide``."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from garrison.common.policy.match import Operation
from garrison.common.policy.rules import Entity
from garrison.minion.enforcers import fanotify

RESPONDER = Path(fanotify.__file__).with_name("responder")


class Decider:
    """One running ``responder --decide``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([RESPONDER, "--decide"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def load(self, table: bytes) -> str:
        """Give it a table; returns what is wrong with it."""
        self._write(b"T" + _string(table))
        return self._read(struct.unpack("<I", self._read(4))[0]).decode()

    def decide(self, operation: Operation, file_id: tuple[int, int] = (0, 0)) -> tuple[int, int, bool]:
        """Return verdict, rule number and whether the posture decided."""
        flags = operation.is_owner | operation.write << 1 | operation.tty << 2 | (operation.args is None) << 3
        args = [a.encode() for a in operation.args or ()]
        self._write(
            b"O"
            + struct.pack("<II", operation.entity is Entity.FILE, flags)
            + _string(operation.path.encode())
            + _string(operation.source.encode())
            + struct.pack("<QQI", *file_id, len(args))
            + b"".join(map(_string, args))
        )
        verdict, rule, posture = struct.unpack("<III", self._read(12))
        return verdict, rule, bool(posture)

    def close(self) -> int:
        """End it; returns its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(10)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        assert len(data) == size, "the responder ended"
        return data


def _string(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
