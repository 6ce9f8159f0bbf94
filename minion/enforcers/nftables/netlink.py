"""Netfilter's netlink: the packet log (NFLOG), and word of changes to tables.

Rules of this file:
- What the kernel sends is decoded within its bounds; a message that does not fit is counted, never guessed.
- A full socket buffer loses messages, not memory: the kernel says so (ENOBUFS), and the log's sequence numbers tell how many.
Owns: sockets and messages. Does not own: what a packet means (``packets``), what a change leads to (``enforcer``).
Source: linux/netfilter/nfnetlink_log.h, nfnetlink.h, nf_tables.h.
"""

from __future__ import annotations

import abc
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from garrison.common.errors import KernelError

__all__ = ["ChangeSocket", "LogSocket", "Logged", "attributes", "decode_logged", "messages"]

_NETLINK_NETFILTER: Final = 12
_BUFFER_BYTES: Final = 2 << 20  # about 4,000 packets
_READ_BYTES: Final = 1 << 16
_SO_RCVBUFFORCE: Final = 33

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_GENERIC: Final = struct.Struct(">BBH")  # family, version, resource id
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_U32: Final = struct.Struct(">I")
_TYPE_MASK: Final = 0x3FFF  # without the bits for nesting and byte order

_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST_ACK: Final = 0x1 | 0x4
_LOG: Final = 4 << 8  # NFNL_SUBSYS_ULOG
_LOG_PACKET: Final = _LOG | 0
_LOG_CONFIG: Final = _LOG | 1
_TABLES: Final = 10  # NFNL_SUBSYS_NFTABLES
_GROUP_TABLES: Final = 7  # NFNLGRP_NFTABLES
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1

_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_FLAGS = 1, 2, 4, 6
_BIND: Final = 1
_COPY_PACKET: Final = 2
_F_SEQ: Final = 1
_TIMEOUT_10MS: Final = 5  # hundredths of a second that the kernel may wait for company

_PACKET_HDR, _IN, _OUT, _PAYLOAD, _PREFIX, _UID, _SEQ = 1, 4, 5, 9, 10, 11, 12


class Logged(msgspec.Struct, frozen=True, kw_only=True):
    """One packet of the log.

    Attributes:
        prefix: What the rule said.
        payload: The packet's beginning, from its network header on.
        indev: Index of the interface it came in by; 0 for none.
        outdev: Index of the interface it goes out by; 0 for none.
        uid: Owner of the socket it comes from; -1 when there is none.
        sequence: Its number in this log.
    """

    prefix: str
    payload: bytes
    indev: int = 0
    outdev: int = 0
    uid: int = -1
    sequence: int = 0


def messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the type and body of each whole message in ``raw``."""
    at = 0
    while at + _HEADER.size <= len(raw):
        length, kind, *_ = _HEADER.unpack_from(raw, at)
        if length < _HEADER.size or at + length > len(raw):
            return
        yield kind, raw[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the type and value of each whole attribute after the header that all netfilter messages have."""
    at = _GENERIC.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            return
        yield kind & _TYPE_MASK, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def decode_logged(body: bytes) -> Logged | None:
    """Return the packet that a message of the log holds; ``None`` when it holds none."""
    found = dict(attributes(body))
    if _PREFIX not in found or _PAYLOAD not in found:
        return None
    numbers = {kind: _U32.unpack(found[kind])[0] for kind in (_IN, _OUT, _UID, _SEQ) if len(found.get(kind, b"")) == _U32.size}
    return Logged(
        prefix=found[_PREFIX].rstrip(b"\0").decode(errors="replace"),
        payload=found[_PAYLOAD],
        indev=numbers.get(_IN, 0),
        outdev=numbers.get(_OUT, 0),
        uid=numbers.get(_UID, -1),
        sequence=numbers.get(_SEQ, 0),
    )


class _Socket(abc.ABC):
    """A netlink socket that is read without waiting."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        except OSError as err:
            raise KernelError(err.errno or 0, "socket(NETLINK_NETFILTER)") from err
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._set_up()
            self._socket.setblocking(False)
        except OSError as err:
            self._socket.close()
            raise KernelError(err.errno or 0, f"netlink: {self.__class__.__name__}") from err

    @abc.abstractmethod
    def _set_up(self) -> None:
        """Ask the kernel for what this socket is to hear; the socket is bound, and waits still."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> tuple[list[tuple[int, bytes]], bool]:
        """Return the messages that are there, and whether the kernel had to drop some before them."""
        found: list[tuple[int, bytes]] = []
        overrun = False
        for _ in range(64):  # and then the caller gets its turn
            try:
                found += messages(self._socket.recv(_READ_BYTES))
            except BlockingIOError:
                break
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                overrun = True
        return found, overrun


class LogSocket(_Socket):
    """Listens to one group of the packet log.

    Args:
        group: The group's number.
        copy_bytes: How much of each packet.

    Raises:
        KernelError: EBUSY when somebody else listens to it; EINVAL or ENOENT when the kernel has no packet log.
    """

    def __init__(self, group: int, *, copy_bytes: int = 128) -> None:
        self.group, self._copy_bytes, self._next = group, copy_bytes, -1
        super().__init__()

    def _set_up(self) -> None:
        self._ask(_CFG_CMD, struct.pack("=B", _BIND))
        self._ask(_CFG_MODE, struct.pack(">IBB", self._copy_bytes, _COPY_PACKET, 0))
        self._ask(_CFG_TIMEOUT, _U32.pack(_TIMEOUT_10MS))
        self._ask(_CFG_FLAGS, struct.pack(">H", _F_SEQ))

    def _ask(self, kind: int, value: bytes) -> None:
        attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
        body = _GENERIC.pack(socket.AF_UNSPEC, 0, self.group) + attribute + bytes(-len(attribute) % 4)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _LOG_CONFIG, _NLM_F_REQUEST_ACK, 1, 0) + body)
        while True:
            for got, answer in messages(self._socket.recv(_READ_BYTES)):
                if got == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return

    def packets(self) -> tuple[list[Logged], int, int]:
        """Return the packets that are there, how many were lost before and between them, and messages that hold none."""
        found, _ = self.read()
        bodies = [body for kind, body in found if kind == _LOG_PACKET]
        logged = [decode_logged(body) for body in bodies]
        whole = [packet for packet in logged if packet is not None]
        lost = 0
        for packet in whole:
            if self._next >= 0:
                lost += (packet.sequence - self._next) % (1 << 32)
            self._next = (packet.sequence + 1) % (1 << 32)
        return whole, lost, len(logged) - len(whole)


class ChangeSocket(_Socket):
    """Hears of every change to tables, whoever made it."""

    def _set_up(self) -> None:
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_TABLES)

    def touched(self, table: str) -> bool:
        """Return whether ``table`` may have been changed since the last call."""
        found, overrun = self.read()
        name = table.encode() + b"\0"
        about = (body for kind, body in found if kind >> 8 == _TABLES)
        # In every message about a table or what is in it, the first attribute is the table's name.
        return overrun or any(kind == 1 and value == name for body in about for kind, value in attributes(body))
