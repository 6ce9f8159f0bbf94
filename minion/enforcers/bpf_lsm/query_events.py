"""Decisions on DNS queries as the kernel tells them. Layout: ``struct query_event`` of ``enforce_dns.bpf.c``."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from garrison.bpf.records import ACTOR_BYTES, decode_actor, decode_names
from garrison.common.errors import FrameError
from garrison.minion.enforcers.bpf_lsm.events import VERDICTS, DecisionRecord

__all__ = ["QUERY_RECORD_BYTES", "decode_query"]

_FIXED: Final = struct.Struct(f"={ACTOR_BYTES}sIiBBxxIIHH16sI4xQ")
_NAME: Final = 256
_NAMES: Final = 1024 + 256
QUERY_RECORD_BYTES: Final = _FIXED.size + _NAME + _NAMES
_AF_INET: Final = 2
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
_UNREADABLE: Final = "[...]"
_PRINTED: Final = frozenset(range(0x21, 0x7F)) - frozenset(b".\\")


def decode_query(raw: bytes) -> DecisionRecord:
    """Return the decision in ``raw``; the name that was asked for is in ``path``, ``[...]`` when it could not be read.

    Raises:
        FrameError: It has another size, or numbers that the programs never write.
    """
    if len(raw) != QUERY_RECORD_BYTES:
        raise FrameError(f"query of {len(raw)} bytes, {QUERY_RECORD_BYTES} expected")
    head, generation, used, verdict, posture, rule, repeats, family, protocol, address, length, suppressed = _FIXED.unpack_from(
        raw
    )
    if verdict >= len(VERDICTS) or length > _NAME:
        raise FrameError(f"query with verdict {verdict} and a name of {length} bytes")
    name = raw[_FIXED.size : _FIXED.size + length]
    return DecisionRecord(
        actor=decode_actor(head),
        generation=generation,
        operation="query",
        verdict=VERDICTS[verdict],
        by_posture=bool(posture),
        rule=rule,
        exe=decode_names(raw[_FIXED.size + _NAME :], used)[0],
        path=_name_text(name) if name else _UNREADABLE,
        inode=0,
        device=0,
        repeats=repeats,
        suppressed=suppressed,
        server=_server_text(family, protocol, address),
    )


def _server_text(family: int, protocol: int, address: bytes) -> str:
    ip = ipaddress.IPv4Address(address[:4]) if family == _AF_INET else f"[{ipaddress.IPv6Address(address)}]"
    return f"{_PROTOCOLS.get(protocol, 'ip')}://{ip}:53"


def _name_text(wire: bytes) -> str:
    """Return a name as people write it: bytes that would mislead are escaped as in zone files (RFC 1035 5.1)."""
    labels, at = list[str](), 0
    while at < len(wire) and wire[at]:
        label = wire[at + 1 : at + 1 + wire[at]]
        labels.append("".join(chr(byte) if byte in _PRINTED else _escaped(byte) for byte in label))
        at += 1 + wire[at]
    return ".".join(labels).lower() or "."


def _escaped(byte: int) -> str:
    return f"\\{chr(byte)}" if byte in b".\\" else f"\\{byte:03d}"
