"""Container policies on the network, domains and presets: behaviours 28 to 32."""

from __future__ import annotations

from vm.conformance.model import Alert, Case, Grade, Step, passes, refused, told
from vm.conformance.places import ONE, elsewhere, own, published

__all__ = ["SOCKETS"]


def _sock(object_: str, rule: str, **more: object) -> Alert:
    return Alert(object_, rule, operation="socket", **more)  # type: ignore[arg-type]


def _query(name: str) -> Alert:
    return Alert(name, "example.com", operation="query")


def _in_memory(operation: str, verdict: str, by: str = "") -> Alert:
    return Alert("[...]/memfd:probe", "filelessExec", by, operation, verdict)


SOCKETS: tuple[Case, ...] = (
    Case(
        "block-net-raw",
        own("block-net-raw"),
        (
            refused("/readwrite arp", _sock("packet://dgram", "raw")),
            refused("/readwrite raw", _sock("raw://255", "raw")),
            passes("/readwrite tcp"),
            passes("/readwrite udp"),
            elsewhere("/readwrite arp"),
        ),
        Grade(8),
        ONE,
        (28,),
    ),
    Case(
        "audit-net-raw",
        published("ksp-ubuntu-1-audit-net-raw"),
        (
            told("/readwrite arp", _sock("packet://dgram", "raw", verdict="audit")),
            passes("/readwrite tcp"),
            elsewhere("/readwrite arp"),
        ),
        Grade(8),
        ONE,
        (28,),
    ),
    Case(
        "block-net-raw-cap",
        published("ksp-ubuntu-1-block-net-raw-cap"),
        (
            refused("/readwrite arp", Alert("net_raw", operation="capable")),
            passes("/readwrite tcp"),
            elsewhere("/readwrite arp"),
        ),
        Grade(1),
        ONE,
        (28,),
    ),
    Case(
        "block-net-raw-cap-from-source",
        own("block-net-raw-cap-from-source"),
        (
            refused("/usr/bin/curl arp", Alert("net_raw", operation="capable")),
            passes("/readwrite arp"),
            elsewhere("/usr/bin/curl arp"),
        ),
        Grade(1),
        ONE,
        (28,),
    ),
    Case(
        "block-net-all",
        published("ksp-ubuntu-1-block-net-all"),
        (
            refused("/readwrite icmp", _sock("raw://icmp", "all")),
            refused("/readwrite arp", _sock("packet://dgram", "all")),
            refused("/readwrite tcp", Alert("tcp://127.0.0.1:7000", "all", operation="connect")),
            refused("/readwrite udp", Alert("udp://127.0.0.1:7000", "all", operation="connect")),
            Step("ping -c 1 127.0.0.1", "EPERM", (_sock("dgram://icmp", "all"), _sock("dgram://icmpv6", "all"))),
            passes("/readwrite read /secret.txt"),
            elsewhere("ping -c 1 127.0.0.1"),
        ),
        Grade(8),
        ONE,
        (29,),
    ),
    Case(
        "audit-net-icmp",
        own("audit-net-icmp"),
        (
            told(
                "ping -c 1 127.0.0.1",
                _sock("dgram://icmp", "icmp", verdict="audit"),
                _sock("raw://icmp", "icmp", verdict="audit"),
            ),
            told("/readwrite icmp", _sock("raw://icmp", "icmp", verdict="audit")),
            passes("/readwrite udp"),
            elsewhere("/readwrite icmp"),
        ),
        Grade(8),
        ONE,
        (29,),
    ),
    Case(
        "allow-net-tcp-from-source",
        own("allow-net-tcp-from-source"),
        (
            passes("curl tcp"),
            refused("curl resolve example.com", Alert("udp://127.0.0.1:53", operation="connect", posture=True)),
            passes("/readwrite udp"),
            elsewhere("curl udp"),
        ),
        Grade(8),
        ONE,
        (30,),
        "block",
    ),
    Case(
        "block-dns",
        own("block-dns"),
        (
            refused("curl resolve example.com", _query("example.com")),
            refused("curl resolve www.Example.com", _query("www.example.com")),
            passes("curl resolve example.org"),
            passes("curl resolve notexample.com"),
            elsewhere("curl resolve example.com"),
        ),
        Grade(5, "domain asked for"),
        ONE,
        (31,),
        status={"example.com": "degraded"},
    ),
    Case(
        "preset-block-fileless",
        own("preset-block-fileless"),
        (
            refused("/readwrite fileless", _in_memory("exec", "block")),
            passes("ls /"),
            passes("curl tcp"),
            elsewhere("/readwrite fileless"),
        ),
        Grade(9, "started from memory"),
        ONE,
        (32,),
    ),
    Case(
        "preset-audit-fileless",
        own("preset-audit-fileless"),
        (
            # The program, and what the kernel maps of it.
            told("/readwrite fileless", _in_memory("exec", "audit"), _in_memory("map", "audit", by="memfd:probe")),
            passes("ls /"),
            elsewhere("/readwrite fileless"),
        ),
        Grade(9, "started from memory"),
        ONE,
        (32,),
    ),
)
