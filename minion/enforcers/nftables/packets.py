"""Logged packets as alerts.

Rules of this file:
- Pure. A packet is read as far as it goes; what is cut or strange is told with what could be read.
- No process is known for a packet, so the event has no actor; the owner of the sending socket is, and stands in ``uid``.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

import msgspec

from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.policy.firewall import flow_of
from garrison.common.policy.flows import IP_PROTOCOLS, PORTED
from garrison.common.policy.rules import Verdict
from garrison.minion.enforcers.nftables.netlink import Logged
from garrison.minion.enforcers.nftables.plan import Outcome

__all__ = ["BACKEND", "Header", "alert", "read_header"]

BACKEND: Final = "nftables"
_NAMES: Final = {number: name for name, number in IP_PROTOCOLS.items()}
_ROUTED_EXTENSIONS: Final = frozenset({0, 43, 60, 135})  # hop-by-hop, routing, destination options, mobility: length in 8 bytes
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51  # length in 4 bytes
_EXTENSIONS_MAX: Final = 8
_IPV4, _IPV4_BYTES = 4, 20
_IPV6, _IPV6_BYTES = 6, 40
_PORTS_BYTES: Final = 4


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Who speaks to whom. Ports are -1 when there are none or they were cut off."""

    source: str = ""
    destination: str = ""
    protocol: str = ""
    source_port: int = -1
    destination_port: int = -1
    icmp_type: int = -1


def read_header(raw: bytes) -> Header:
    """Return what the beginning of an IP packet says; an empty header when it is none."""
    version = raw[0] >> 4 if raw else 0
    if version == _IPV4 and len(raw) >= _IPV4_BYTES:
        return _with_ports(raw[9], raw[12:16], raw[16:20], raw[(raw[0] & 15) * 4 :])
    if version == _IPV6 and len(raw) >= _IPV6_BYTES:
        protocol, rest = _past_extensions(raw[6], raw[40:])
        return _with_ports(protocol, raw[8:24], raw[24:40], rest)
    return Header()


def _past_extensions(kind: int, rest: bytes) -> tuple[int, bytes]:
    for _ in range(_EXTENSIONS_MAX):
        if kind in _ROUTED_EXTENSIONS:
            length = (rest[1] + 1) * 8 if len(rest) > 1 else 0
        elif kind == _AUTHENTICATION:
            length = (rest[1] + 2) * 4 if len(rest) > 1 else 0
        elif kind == _FRAGMENT:
            length = 8
        else:
            break
        if not length or len(rest) < length:
            return kind, b""
        kind, rest = rest[0], rest[length:]
    return kind, rest


def _with_ports(number: int, source: bytes, destination: bytes, rest: bytes) -> Header:
    protocol = _NAMES.get(number, f"ip-{number}")
    ports = struct.unpack_from(">HH", rest) if protocol in PORTED and len(rest) >= _PORTS_BYTES else (-1, -1)
    return Header(
        source=str(ipaddress.ip_address(source)),
        destination=str(ipaddress.ip_address(destination)),
        protocol=protocol,
        source_port=ports[0],
        destination_port=ports[1],
        icmp_type=rest[0] if protocol in {"icmp", "icmpv6"} and rest else -1,
    )


def alert(packet: Logged, outcome: Outcome, *, interface: str) -> Event:
    """Return the event of one packet.

    Args:
        packet: As it was logged.
        outcome: What was decided.
        interface: Name of the interface it came in or goes out by.
    """
    header = read_header(packet.payload)
    direction = flow_of(outcome.rule).direction.value
    data: dict[str, Scalar | list[Scalar]] = {
        "interface": interface,
        "protocol": header.protocol,
        "source": header.source,
        "source_port": header.source_port,
        "destination": header.destination,
        "destination_port": header.destination_port,
        "icmp_type": header.icmp_type,
        "uid": packet.uid,
        "message": outcome.rule.message,
        "tags": list(outcome.rule.tags),
        "by_posture": outcome.by_posture or None,
    }
    return Event(
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=outcome.rule.severity,
        object=_object(header),
        operation=direction,
        verdict=outcome.verdict.value,
        result="dropped" if outcome.verdict is Verdict.BLOCK else "passed",
        policy=outcome.rule.policy,
        rule=outcome.rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value not in ("", None, -1, [])},
    )


def _object(header: Header) -> str:
    host = f"[{header.destination}]" if ":" in header.destination else header.destination
    port = f":{header.destination_port}" if header.destination_port >= 0 else ""
    return f"{header.protocol or 'packet'}://{host}{port}"
