"""What a firewall rule may name: networks, ports, protocols, interfaces; read strictly, kept in one spelling.

Rules of this file:
- Pure, and light: documents (``models``), rules (``expand``) and backends share it.
- One meaning has one spelling (``10.0.0.7/8`` is ``10.0.0.0/8``, ``TCP`` is ``tcp``, ``dns`` is 53), so that it has one rule id.
- What leaves here can be given to nft as it is: numbers, networks, and names out of a fixed alphabet.
- Names of ports are a fixed list and not this machine's ``/etc/services``: a rule must mean the same on every node.
Owns: words. Does not own: which packet a rule speaks of (``firewall``).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from enum import StrEnum
from typing import Final

import msgspec

__all__ = [
    "IP_PROTOCOLS",
    "PORTED",
    "Direction",
    "FlowSpec",
    "IpNetwork",
    "IpNetworks",
    "PortRange",
    "interface_of",
    "network_of",
    "port_of",
    "protocol_of",
    "read_flow",
]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

IP_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "dccp": 33, "udplite": 136}
PORTED: Final = ("tcp", "udp", "sctp", "dccp", "udplite")  # what has a destination port in its third and fourth byte
_PORTS: Final = {
    "bgp": 179, "dns": 53, "domain": 53, "ftp": 21, "ftps": 990, "http": 80, "https": 443, "imap": 143, "imaps": 993,
    "kerberos": 88, "ldap": 389, "ldaps": 636, "mqtt": 1883, "mqtts": 8883, "mysql": 3306, "nfs": 2049, "ntp": 123, "pop3": 110,
    "postgresql": 5432, "rdp": 3389, "smtp": 25, "snmp": 161, "ssh": 22, "syslog": 514, "telnet": 23, "tftp": 69,
}  # fmt: skip
_PORT_MAX: Final = 65_535
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@~-]{0,14}", re.ASCII)  # IFNAMSIZ; nft reads a * as a wildcard


class Direction(StrEnum):
    """Which way a flow was begun, seen from the node."""

    INGRESS = "ingress"
    EGRESS = "egress"


class IpNetworks(msgspec.Struct, frozen=True, omit_defaults=True):
    """A network in CIDR notation, without some that lie in it."""

    cidr: str
    without: tuple[str, ...] = ()


class PortRange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A protocol, ports, or both.

    Attributes:
        protocol: Out of ``IP_PROTOCOLS``; empty for all that have ports.
        first: Lowest destination port; with ``last`` 0 to 65535 when no port was named.
        last: Highest.
    """

    protocol: str = ""
    first: int = 0
    last: int = _PORT_MAX

    @property
    def every_port(self) -> bool:
        """Whether ports do not matter."""
        return self.first == 0 and self.last == _PORT_MAX


class FlowSpec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """``Other.spec`` of a firewall rule. Everything said must hold; of a list, one of it.

    Attributes:
        direction: Who begins the flow.
        peers: Where the other side is; empty for anywhere.
        ports: Destination; empty for any protocol.
        interfaces: Where the packet comes in or goes out; empty for any.
        quota: ``limit`` per ``duration`` as written, empty when none was.
    """

    direction: Direction
    peers: tuple[IpNetworks, ...] = ()
    ports: tuple[PortRange, ...] = ()
    interfaces: tuple[str, ...] = ()
    quota: str = ""


@functools.lru_cache(maxsize=4_096)
def read_flow(spec: str) -> FlowSpec:
    """Return the flow of a firewall rule's ``Other.spec``."""
    return msgspec.json.decode(spec, type=FlowSpec)


@functools.lru_cache(maxsize=65_536)
def network_of(text: str) -> IpNetwork:
    """Return the network ``text`` names; bits of the host in it do not count.

    Raises:
        ValueError: It names none.
    """
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError as err:
        raise ValueError(f"{text!r} is no IPv4 or IPv6 network, such as 10.0.0.0/8 or 2001:db8::/32") from err
    if "%" in text:
        raise ValueError(f"{text!r} holds a zone; name the interface under iface")
    return network


def protocol_of(text: str) -> str:
    """Return the name of a protocol in our spelling.

    Raises:
        ValueError: It is none that firewall rules know.
    """
    name = text.strip().lower()
    if name not in IP_PROTOCOLS:
        raise ValueError(f"{text!r} is no protocol of firewall rules; use {', '.join(IP_PROTOCOLS)}")
    return name


def port_of(value: str | int) -> int:
    """Return the number of a port.

    Raises:
        ValueError: It is none, or a name that is not on the list.
    """
    text = str(value).strip().lower()
    number = _PORTS.get(text, int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(_PORT_MAX)) else 0)
    if not 1 <= number <= _PORT_MAX:
        raise ValueError(f"{value!r} is no port: 1 to {_PORT_MAX}, or one of {', '.join(sorted(_PORTS))}")
    return number


def interface_of(text: str) -> str:
    """Return the name of a network interface.

    Raises:
        ValueError: No interface can have that name, or it holds a wildcard.
    """
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"{text!r} is no name of an interface: 1 to 15 letters, digits and _.+@~-, and no wildcard")
    return text
