"""Two network namespaces with two links between them, and packets that are really sent from one to the other.

A thread that is inside a namespace makes its sockets, threads and processes there, so that one test process is on both sides.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from garrison.common.events import Event
from garrison.common.policy.firewall import Packet
from garrison.common.policy.flows import Direction
from garrison.common.policy.rules import Posture, Postures, Rule, RuleSet
from garrison.minion.enforcers.nftables import NftablesEnforcer

__all__ = ["Link", "Traffic", "inside", "until"]

_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33
_libc = ctypes.CDLL(None, use_errno=True)
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
ECHO = {ICMP: (8, 0), ICMPV6: (128, 129)}  # request, reply
# Interface, the node's addresses, the other side's.
LINKS = (
    ("eth0", ("10.77.0.1/16", "fd77::1/32"), ("10.77.0.2/16", "10.77.1.2/16", "fd77::2/32", "fd77:0:1::2/32")),
    ("wwan0", ("10.78.0.1/16",), ("10.78.0.2/16",)),
)


def until(condition: Callable[[], object], what: str, *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Be in a network namespace with this thread, and with what it starts."""
    with Path("/proc/thread-self/ns/net").open("rb") as own, Path(f"/run/netns/{name}").open("rb") as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """Namespaces and addresses of both ends."""

    family: int
    begins: str
    answers: str
    source: str
    target: str


class Link:
    """A node with an enforcer, its neighbour, and what the enforcer told."""

    def __init__(self, tag: str, work: Path) -> None:
        self.node, self.peer, self.work = f"{tag}-node", f"{tag}-peer", work
        self.events: list[Event] = []
        self._port, self._icmp_id = 0, 0
        self.close()
        for name in (self.node, self.peer):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for interface, ours, theirs in LINKS:
            _ip("-n", self.node, "link", "add", interface, "type", "veth", "peer", "name", interface, "netns", self.peer)
            for name, addresses in ((self.node, ours), (self.peer, theirs)):
                for address in addresses:
                    _ip("-n", name, "addr", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
                _ip("-n", name, "link", "set", interface, "up")
        self.enforcer = self.new_enforcer()

    def new_enforcer(self, **options) -> NftablesEnforcer:
        return NftablesEnforcer(self.events.append, **options)

    def close(self) -> None:
        for name in (self.node, self.peer):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def hold(self, *rules: Rule, posture: Posture = Posture.AUDIT) -> RuleSet:
        held = RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id)), postures=Postures(network=posture))
        with inside(self.node):
            self.enforcer.apply(held)
        return held

    def nft(self, *argv: str, stdin: str = "") -> str:
        with inside(self.node):
            return subprocess.run(["nft", *argv], input=stdin, check=True, capture_output=True, text=True).stdout

    def ruleset_of_others(self) -> str:
        """What ``nft list ruleset`` prints, without our table."""
        tables = re.split(r"^(?=table )", self.nft("list", "ruleset"), flags=re.MULTILINE)
        return "".join(table for table in tables if not table.startswith("table inet garrison"))

    # ---- packets ---------------------------------------------------------------------------------------------------------
    def send(self, packet: Packet) -> tuple[bool, list[Event]]:
        """Begin the flow ``packet``; returns whether it got through, and what was told of it."""
        self.events.clear()
        assert packet.peer is not None
        family = socket.AF_INET6 if packet.peer.version == 6 else socket.AF_INET
        node = next(
            a.partition("/")[0] for i, ours, _ in LINKS if i == packet.interface for a in ours if (":" in a) == (family == 10)
        )
        peer = str(packet.peer)
        outward = packet.direction is Direction.EGRESS
        flow = _Flow(
            family=family,
            begins=self.node if outward else self.peer,
            answers=self.peer if outward else self.node,
            source=node if outward else peer,
            target=peer if outward else node,
        )
        match packet.protocol:
            case 17:
                got = self._udp(flow, packet.port)
            case 6:
                got = self._tcp(flow, packet.port)
            case _:
                got = self._echo(flow, packet.protocol)
        return got, list(self.events)

    def dropped(self) -> bool:
        return any(event.verdict == "block" for event in self.events)

    def _udp(self, flow: _Flow, port: int) -> bool:
        target = flow.target
        with inside(flow.answers):
            receiver = socket.socket(flow.family, socket.SOCK_DGRAM)
        with inside(flow.begins):
            sender = socket.socket(flow.family, socket.SOCK_DGRAM)
        with receiver, sender:
            _bind(receiver, target, port)
            sender.bind((flow.source, 0))
            with contextlib.suppress(PermissionError):  # what a program gets when its packet is dropped on the way out
                sender.sendto(b"x", (target, port))
            until(lambda: _ready(receiver) or self.dropped(), f"udp {target}:{port} came or was dropped")
            return _ready(receiver)

    def _tcp(self, flow: _Flow, port: int) -> bool:
        target = flow.target
        with inside(flow.answers):
            server = socket.socket(flow.family, socket.SOCK_STREAM)
        with inside(flow.begins):
            client = socket.socket(flow.family, socket.SOCK_STREAM)
        with server, client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(server, target, port)
            server.listen()
            client.bind((flow.source, 0))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((target, port))
            until(lambda: _ready(server) or self.dropped(), f"tcp {target}:{port} came or was dropped")
            came = _ready(server)
            if came:
                with server.accept()[0] as accepted:  # reset, so that the port is free for the next packet
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return came

    def _echo(self, flow: _Flow, protocol: int) -> bool:
        target = flow.target
        self._icmp_id += 1
        request, reply = ECHO[protocol]
        with inside(flow.begins):
            pinger = socket.socket(flow.family, socket.SOCK_RAW, protocol)
        with pinger:
            pinger.bind((flow.source, 0))
            text = struct.pack(">BBHHH", request, 0, 0, self._icmp_id, 1)
            if protocol == ICMP:
                text = struct.pack(">BBHHH", request, 0, _checksum(text), self._icmp_id, 1)
            with contextlib.suppress(PermissionError):
                pinger.sendto(text, (target, 0))
            heard = list[bytes]()

            def answered() -> bool:
                while _ready(pinger):
                    raw = pinger.recv(512)
                    heard.append(raw[20:] if protocol == ICMP else raw)
                return any(raw[0] == reply and raw[4:6] == struct.pack(">H", self._icmp_id) for raw in heard)

            until(lambda: answered() or self.dropped(), f"echo of {target} came or was dropped")
            return answered()


class Traffic:
    """Two UDP packets by turns, one that rules let through and one that they block, each beginning a flow."""

    def __init__(self, link: Link) -> None:
        self._link, self._running, self._ending = link, threading.Event(), threading.Event()
        self.sent = self.refused = self.received = 0
        with inside(link.peer):
            self.good, self.bad = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.good.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        self.good.bind(("10.77.0.2", 2001))
        self.bad.bind(("10.77.0.2", 2000))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with inside(self._link.node):
            while self._running.wait() and not self._ending.is_set():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    self.sent += one.sendto(b"x", ("10.77.0.2", 2001))
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    try:
                        one.sendto(b"x", ("10.77.0.2", 2000))
                    except PermissionError:
                        self.refused += 1

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Traffic before, while and after something is done, and no longer: the kernel remembers every flow."""
        self._running.set()
        self._some()
        try:
            yield
            self._some()
        finally:
            self._running.clear()

    def _some(self) -> None:
        enough = self.sent + 3
        until(lambda: self.sent >= enough, "packets are sent")

    def take(self) -> None:
        while select.select([self.good], [], [], 0)[0]:
            self.good.recv(16)
            self.received += 1

    def close(self) -> None:
        self._ending.set()
        self._running.set()
        self._thread.join()
        self.good.close()
        self.bad.close()


def _checksum(raw: bytes) -> int:
    total = sum(struct.unpack(f">{len(raw) // 2}H", raw))
    return ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF


def _bind(sock: socket.socket, target: str, port: int) -> None:
    """Take the port; a program that another thread is starting holds the socket of the packet before until it is started."""

    def taken() -> bool:
        try:
            sock.bind((target, port))
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    until(taken, f"port {port} of {target} is free")


def _ready(one: socket.socket) -> bool:
    return bool(select.select([one], [], [], 0)[0])


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)
