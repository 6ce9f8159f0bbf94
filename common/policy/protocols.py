"""Which of KubeArmor's protocol names a socket answers to.

Rules of this file:
- Local sockets (AF_UNIX, AF_NETLINK) answer to nothing: a rule on ``tcp`` or ``raw`` must not cut a machine off from itself.
- What carries a protocol under another number answers to its name too, else it would be the way around a rule.
- A socket of a kind that is not known here still answers to ``all``.
"""

from __future__ import annotations

from typing import Final

__all__ = ["socket_names"]

# Address families. Source: include/linux/socket.h, Linux 6.12.
_AF_UNIX: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10
_AF_NETLINK: Final = 16
_AF_PACKET: Final = 17
_AF_SMC: Final = 43  # falls back to TCP when the other side does not speak it
# Socket types. Source: include/linux/net.h; flags (SOCK_NONBLOCK, SOCK_CLOEXEC) stand above SOCK_TYPE_MASK.
_TYPE_MASK: Final = 0xF
_TYPES: Final = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet"}
# Protocols by type; 0 is the type's default. Source: include/uapi/linux/in.h (MPTCP 262, SMC 256, UDP-Lite 136).
_INET: Final[dict[str, dict[int, str]]] = {
    "stream": {0: "tcp", 6: "tcp", 262: "tcp", 256: "tcp", 132: "sctp"},
    "dgram": {0: "udp", 17: "udp", 136: "udp", 1: "icmp", 58: "icmpv6"},
    "raw": {1: "icmp", 58: "icmpv6"},
    "seqpacket": {0: "sctp", 132: "sctp"},
}


def socket_names(family: int, type_: int, protocol: int) -> frozenset[str]:
    """Return every protocol name that a rule may use for this socket; empty for local sockets.

    Args:
        family: ``AF_*``.
        type_: ``SOCK_*``, flags included or not.
        protocol: Third argument of ``socket(2)``.
    """
    if family in {_AF_UNIX, _AF_NETLINK}:
        return frozenset()
    names = {"all"}
    kind = _TYPES.get(type_ & _TYPE_MASK)
    if kind is not None:
        names.add(kind)
    if family in {_AF_INET, _AF_INET6} and kind in _INET:
        names.update({_INET[kind][protocol]} if protocol in _INET[kind] else ())
    elif family == _AF_PACKET:
        names.update({"packet", "raw"})
    elif family == _AF_SMC:
        names.add("tcp")
    return frozenset(names)
