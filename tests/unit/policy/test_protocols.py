"""Which names a socket answers to. Numbers are compared with those of the running system."""

from __future__ import annotations

import socket

import pytest

from garrison.common.policy.protocols import socket_names

MPTCP, SMC, UDPLITE, SCTP, DCCP = 262, 256, 136, 132, 33
SOCK_DCCP, AF_SMC = 6, 43


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(
    ("type_", "protocol", "names"),
    [
        (socket.SOCK_STREAM, 0, {"tcp", "stream"}),
        (socket.SOCK_STREAM, socket.IPPROTO_TCP, {"tcp", "stream"}),
        (socket.SOCK_STREAM, MPTCP, {"tcp", "stream"}),
        (socket.SOCK_STREAM, SMC, {"tcp", "stream"}),
        (socket.SOCK_STREAM, SCTP, {"sctp", "stream"}),
        (socket.SOCK_SEQPACKET, SCTP, {"sctp", "seqpacket"}),
        (socket.SOCK_DGRAM, 0, {"udp", "dgram"}),
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP, {"udp", "dgram"}),
        (socket.SOCK_DGRAM, UDPLITE, {"udp", "dgram"}),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMP, {"icmp", "dgram"}),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6, {"icmpv6", "dgram"}),
        (socket.SOCK_RAW, socket.IPPROTO_ICMP, {"raw", "icmp"}),
        (socket.SOCK_RAW, socket.IPPROTO_ICMPV6, {"raw", "icmpv6"}),
        (socket.SOCK_RAW, socket.IPPROTO_RAW, {"raw"}),
        (socket.SOCK_RDM, 0, {"rdm"}),
        (SOCK_DCCP, DCCP, {"dccp"}),
        (socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0, {"tcp", "stream"}),
    ],
)
def test_internet_socket_answers_to_its_protocol_its_type_and_all(family, type_, protocol, names):
    assert socket_names(family, type_, protocol) == names | {"all"}


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_NETLINK])
@pytest.mark.parametrize("type_", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW])
def test_local_socket_answers_to_nothing(family, type_):
    assert socket_names(family, type_, 0) == frozenset()


def test_packet_socket_is_raw_whatever_its_type():
    assert socket_names(socket.AF_PACKET, socket.SOCK_DGRAM, 0x0300) == {"packet", "raw", "dgram", "all"}


def test_socket_that_falls_back_to_tcp_is_tcp():
    assert socket_names(AF_SMC, socket.SOCK_STREAM, 0) == {"tcp", "stream", "all"}


def test_socket_of_an_unknown_kind_still_answers_to_all():
    assert socket_names(socket.AF_VSOCK, socket.SOCK_STREAM, 0) == {"stream", "all"}
    assert socket_names(socket.AF_INET, 9, 0) == {"all"}
