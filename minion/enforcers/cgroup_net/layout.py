"""The binary half that this backend shares with ``bpf/cgroup_net.bpf.c``. Mirrors ``bpf/include/cgroup_net.h``."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final, NamedTuple

from garrison.bpf.records import ACTOR_BYTES, ActorRecord, decode_actor, decode_names
from garrison.common.errors import FrameError
from garrison.common.policy.rules import Verdict

__all__ = [
    "CELLS",
    "COUNTERS",
    "GROUPS",
    "OPERATIONS",
    "ROW_BYTES",
    "SOCKET_TYPES",
    "NetRecord",
    "cell_index",
    "decode_event",
    "encode_cell",
    "encode_row",
]

_TYPE_NAMES: Final = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp"}  # SOCK_*, linux/net.h
SOCKET_TYPES: Final = tuple(_TYPE_NAMES)
_OP_SOCKET: Final = 4
# Column of a protocol → its number, and the family that speaks it. The first stands for all that have no column.
GROUPS: Final = ((255, socket.AF_INET), (6, socket.AF_INET), (17, socket.AF_INET), (1, socket.AF_INET), (58, socket.AF_INET6),
                 (132, socket.AF_INET), (33, socket.AF_INET), (136, socket.AF_INET))  # fmt: skip
CELLS: Final = 64
OPERATIONS: Final = {1: "connect", 2: "sendmsg", 3: "bind", 4: "socket"}
COUNTERS: Final = ("blocked", "audited", "unresolved", "dropped", "dropped_unnamed")

_VERDICTS: Final = (Verdict.ALLOW, Verdict.AUDIT, Verdict.BLOCK)
_BY_POSTURE: Final = 1 << 29
_RULE: Final = _BY_POSTURE - 1
_ROW: Final = struct.Struct(f"=II{CELLS}I")
_EVENT: Final = struct.Struct("=IIBBBBHH16si4x")
ROW_BYTES: Final = _ROW.size
_PROTOCOL_NAMES: Final = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    58: "icmpv6",
    132: "sctp",
    136: "udplite",
    256: "smc",
    262: "mptcp",
}


class NetRecord(NamedTuple):
    """One alert as the program wrote it."""

    actor: ActorRecord
    generation: int
    rule: int
    by_posture: bool
    verdict: Verdict
    operation: str
    object: str
    exe: str


def cell_index(socket_type: int, group: int) -> int:
    """Return the column for sockets of a type and protocol group."""
    return socket_type * len(GROUPS) + group


def encode_cell(verdict: Verdict, rule: int, *, by_posture: bool) -> int:
    """Return a decision as the program reads it."""
    return _VERDICTS.index(verdict) << 30 | (_BY_POSTURE if by_posture else 0) | rule


def rule_of(number: int) -> tuple[int, bool]:
    """Return (index of the rule, whether its posture decided) of what the program calls the rule."""
    return number & _RULE, bool(number & _BY_POSTURE)


def encode_row(generation: int, flags: int, cells: list[int]) -> bytes:
    """Return a row."""
    return _ROW.pack(generation, flags, *cells)


def decode_event(raw: bytes) -> NetRecord:
    """Return the alert in ``raw``.

    Raises:
        FrameError: It is shorter than an alert, or holds a number that we do not know: object and agent do not belong together.
    """
    try:
        generation, number, verdict, operation, kind, family, protocol, port, addr, used = _EVENT.unpack_from(raw, ACTOR_BYTES)
        exe, _ = decode_names(raw[ACTOR_BYTES + _EVENT.size :], used)
        rule, by_posture = rule_of(number)
        what = _socket_object(kind, protocol) if operation == _OP_SOCKET else _address_object(family, protocol, port, addr)
        name, said = OPERATIONS[operation], _VERDICTS[verdict]
        return NetRecord(decode_actor(raw), generation, rule, by_posture, said, name, what, exe)
    except (struct.error, KeyError, IndexError) as err:
        raise FrameError(f"not an alert of cgroup_net: {err}") from err


def _socket_object(kind: int, protocol: int) -> str:
    return f"{_TYPE_NAMES.get(kind, str(kind))}://{_PROTOCOL_NAMES.get(protocol, str(protocol))}"


def _address_object(family: int, protocol: int, port: int, addr: bytes) -> str:
    name = _PROTOCOL_NAMES.get(protocol, str(protocol))
    if family == socket.AF_INET:
        return f"{name}://{ipaddress.IPv4Address(addr[:4])}:{port}"
    address = ipaddress.IPv6Address(addr)
    return f"{name}://{address.ipv4_mapped}:{port}" if address.ipv4_mapped else f"{name}://[{address}]:{port}"
