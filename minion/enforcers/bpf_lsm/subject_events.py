"""Decisions on sockets and capabilities as the kernel tells them. Layout: ``struct subject_event`` of ``subject_rules.h``."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from garrison.bpf.records import ACTOR_BYTES, decode_actor, decode_names
from garrison.common.errors import FrameError
from garrison.common.policy.models import CAPABILITIES
from garrison.common.policy.protocols import socket_names
from garrison.minion.enforcers.bpf_lsm.events import VERDICTS, DecisionRecord

__all__ = ["SUBJECT_COUNTERS", "SUBJECT_RECORD_BYTES", "decode_subject"]

SUBJECT_COUNTERS: Final = ("repeats", "quiet")  # enum subject_counter
_OPERATIONS: Final = ("socket", "bind", "listen", "connect", "accept", "sendmsg", "capable")  # enum subject_operation
_FIXED: Final = struct.Struct(f"={ACTOR_BYTES}sIIBBxxIIiHHHH16sI4xQ")
_NAMES: Final = 1024 + 256
SUBJECT_RECORD_BYTES: Final = _FIXED.size + _NAMES
_AF_INET, _AF_INET6, _AF_VSOCK = 2, 10, 40
_FAMILIES: Final = {4: "ipx", 15: "key", 17: "packet", 21: "rds", 29: "can", 30: "tipc", 31: "bluetooth", 38: "alg", 40: "vsock",
                    43: "smc", 44: "xdp"}  # fmt: skip
_TYPES: Final = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet"}
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmpv6", 132: "sctp", 136: "udplite", 262: "mptcp"}


def decode_subject(raw: bytes) -> DecisionRecord:
    """Return the decision in ``raw``; what it was about is in ``path``: an address, a kind of socket, a capability.

    Raises:
        FrameError: It has another size, or numbers that the programs never write.
    """
    if len(raw) != SUBJECT_RECORD_BYTES:
        raise FrameError(f"decision of {len(raw)} bytes, {SUBJECT_RECORD_BYTES} expected")
    head, generation, number, verdict, posture, rule, repeats, used, *socket, capability, suppressed = _FIXED.unpack_from(raw)
    if number >= len(_OPERATIONS) or verdict >= len(VERDICTS) or capability >= len(CAPABILITIES):
        raise FrameError(f"decision about operation {number}, capability {capability}, with verdict {verdict}")
    operation = _OPERATIONS[number]
    if operation == "capable":
        what = CAPABILITIES[capability]
    else:
        what = _kind_text(*socket[:3]) if operation == "socket" else _address_text(*socket)
    return DecisionRecord(
        actor=decode_actor(head),
        generation=generation,
        operation=operation,
        verdict=VERDICTS[verdict],
        by_posture=bool(posture),
        rule=rule,
        exe=decode_names(raw[_FIXED.size :], used)[0],
        path=what,
        inode=0,
        device=0,
        repeats=repeats,
        suppressed=suppressed,
    )


def _kind_text(family: int, kind: int, protocol: int) -> str:
    type_ = _TYPES.get(kind, str(kind))
    if family not in {_AF_INET, _AF_INET6}:
        return f"{_FAMILIES.get(family, f'family-{family}')}://{type_}"
    # Without a protocol the socket gets that of its type, which is in its names.
    by_default = min(socket_names(family, kind, 0) & set(_PROTOCOLS.values()), default="0")
    return f"{type_}://{_PROTOCOLS.get(protocol, str(protocol)) if protocol else by_default}"


def _address_text(family: int, kind: int, protocol: int, port: int, address: bytes) -> str:
    scheme = _PROTOCOLS.get(protocol, str(protocol))
    if family == _AF_INET:
        return f"{scheme}://{ipaddress.IPv4Address(address[:4])}:{port}"
    if family == _AF_INET6:
        ip = ipaddress.IPv6Address(address)
        return f"{scheme}://{ip.ipv4_mapped}:{port}" if ip.ipv4_mapped else f"{scheme}://[{ip}]:{port}"
    if family == _AF_VSOCK:
        cid, vsock_port = struct.unpack_from("=II", address)
        return f"vsock://{cid}:{vsock_port}"
    return _kind_text(family, kind, protocol)
