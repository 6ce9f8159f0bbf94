"""Reads errors from the kernel log, /dev/kmsg, from where it was left.

Rules of this file:
- A position is the boot and the sequence number of the last record read; after a reboot the whole buffer is new.
- What the kernel overwrote before it was read is counted: sequence numbers have no holes.
- Records of user space written to /dev/kmsg count too; the journal's copies of both are left out by the journal source.
Source: Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from garrison.common.errors import KernelError
from garrison.minion.observers._finding import PRIORITY_ERR, Finding, Source
from garrison.minion.observers._worker import Stop

__all__ = ["KernelLog", "Record", "parse_record"]

_RECORD_MAX_BYTES: Final = 8192  # the kernel's own limit for one read (CONSOLE_EXT_LOG_MAX)
_HEADER_FIELDS: Final = 3  # priority, sequence number, time; a fourth, flags, and any others may follow


class Record(msgspec.Struct, frozen=True):
    r"""One record of the kernel log.

    Attributes:
        priority: syslog priority, 0 to 7.
        facility: syslog facility; 0 is the kernel.
        seq: Number in this boot.
        monotonic_us: Time since boot, microseconds.
        message: Text, with ``\xNN`` escapes as the kernel wrote them.
        device: ``DEVICE=`` of the record's dictionary, e.g. ``b8:0``; or empty.
    """

    priority: int
    facility: int
    seq: int
    monotonic_us: int
    message: str
    device: str = ""


def parse_record(raw: bytes) -> Record | None:
    """Return the record in one read of /dev/kmsg; ``None`` when it is none."""
    head, _, rest = raw.decode("utf-8", "replace").partition(";")
    fields = head.split(",")
    if len(fields) < _HEADER_FIELDS:
        return None
    try:
        value, seq, monotonic_us = (int(field) for field in fields[:_HEADER_FIELDS])
    except ValueError:
        return None
    message, *dictionary = rest.split("\n")
    device = next((line[8:] for line in dictionary if line.startswith(" DEVICE=")), "")
    return Record(value & 7, value >> 3, seq, monotonic_us, message, device)


class KernelLog(Source):
    """Yields records of priority err or worse.

    Args:
        boot: Boot id: positions of another boot are void.
        path: The device.
    """

    name = "kernel"

    def __init__(self, boot: str, path: Path = Path("/dev/kmsg")) -> None:
        super().__init__()
        self.counters = {"kernel_overwritten": 0}
        self._boot, self._path = boot, path
        self._fd, self._seq = -1, -1

    def open(self, position: Any) -> None:
        """Open the log and go to the position.

        Raises:
            KernelError: It cannot be opened: no such device in this container, or no CAP_SYSLOG.
        """
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as err:
            raise KernelError(err.errno or 0, f"open {self._path}", hint="the minion needs root, or CAP_SYSLOG") from err
        known = position if isinstance(position, dict) else None
        if known is None:
            while self._next() is not None:  # the first start: what was said before is history
                pass
        elif known.get("boot") == self._boot and isinstance(known.get("seq"), int):
            self._seq = known["seq"]

    def read(self, stop: Stop, timeout_s: float) -> list[Finding]:
        """Return new errors."""
        record = self._next()
        if record is None:
            if not stop.wait_for(self._fd, timeout_s):
                return []
            record = self._next()
        found = []
        while record is not None:
            if record.priority <= PRIORITY_ERR:
                found.append(_finding(record))
            record = self._next()
        return found

    def _next(self) -> Record | None:
        """Return the next record that was not read before; ``None`` at the end of the log."""
        while True:
            try:
                raw = os.read(self._fd, _RECORD_MAX_BYTES)
            except BlockingIOError:
                return None
            except BrokenPipeError:  # overwritten while we were behind: the next read gives the oldest there is
                continue
            record = parse_record(raw)
            if record is None or record.seq <= self._seq:
                continue
            if self._seq >= 0:
                self.counters["kernel_overwritten"] += record.seq - self._seq - 1
            self._seq = record.seq
            return record

    def position(self) -> Any:
        """Return boot and sequence number."""
        return {"boot": self._boot, "seq": self._seq}

    def close(self) -> None:
        """Close the device."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _finding(record: Record) -> Finding:
    # The record's clock stands still in suspend like CLOCK_MONOTONIC; carried over to wall time as of now.
    ts = time.time_ns() - (time.monotonic_ns() - record.monotonic_us * 1000)
    data: dict[str, str | int] = {"seq": record.seq, "facility": record.facility}
    if record.device:
        data["device"] = record.device
    return Finding(source="kernel", message=record.message, priority=record.priority, ts=ts, object="kernel", data=data)
