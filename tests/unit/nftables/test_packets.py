"""What the kernel's packet log says becomes an alert; what is broken is counted, and never guessed."""

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from garrison.minion.enforcers.nftables.netlink import attributes, decode_logged, messages
from garrison.minion.enforcers.nftables.packets import Header, read_header

TCP = struct.pack(">HHII", 40_000, 443, 0, 0)


def ipv4(protocol: int, rest: bytes) -> bytes:
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(rest), 0, 0, 64, protocol, 0, bytes([10, 0, 0, 1]), bytes([192, 0, 2, 9])
    )
    return head + rest


def ipv6(following: int, rest: bytes) -> bytes:
    ends = [socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "2001:db8::2")]
    return struct.pack(">IHBB16s16s", 6 << 28, len(rest), following, 64, *ends) + rest


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_ports_of_ipv4_are_found_behind_options():
    raw = bytearray(ipv4(6, bytes(4) + TCP))
    raw[0] = 0x46  # one word of options

    assert read_header(bytes(raw)) == Header(
        source="10.0.0.1", destination="192.0.2.9", protocol="tcp", source_port=40_000, destination_port=443
    )


def test_ports_of_ipv6_are_found_behind_extension_headers():
    hops = struct.pack(">BB6x", 44, 0)  # hop-by-hop, then a fragment header
    fragment = struct.pack(">BB6x", 17, 0)

    header = read_header(ipv6(0, hops + fragment + TCP))

    assert (header.protocol, header.source_port, header.destination_port) == ("udp", 40_000, 443)


def test_packet_that_is_cut_off_is_told_without_ports():
    assert read_header(ipv4(6, b"\x01")) == Header(source="10.0.0.1", destination="192.0.2.9", protocol="tcp")


def test_icmp_has_a_type_and_no_ports():
    assert read_header(ipv4(1, b"\x08\x00")).icmp_type == 8
    assert read_header(ipv4(1, b"\x08\x00")).destination_port == -1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_packet_or_none(raw):
    read_header(raw)


@given(st.binary(max_size=400))
def test_any_bytes_from_netlink_are_read_within_their_bounds(raw):
    for _, body in messages(raw):
        list(attributes(body))
        decode_logged(body)


def test_logged_packet_is_read_with_prefix_interface_owner_and_number():
    body = struct.pack(">BBH", 2, 0, 5) + b"".join(
        attribute(kind, value)
        for kind, value in (
            (10, b"0badcafe:3\0"), (9, ipv4(6, TCP)),
            (5, struct.pack(">I", 7)), (11, struct.pack(">I", 1000)), (12, struct.pack(">I", 41)),
        )
    )  # fmt: skip

    packet = decode_logged(body)

    assert packet is not None
    assert (packet.prefix, packet.outdev, packet.indev, packet.uid, packet.sequence) == ("0badcafe:3", 7, 0, 1000, 41)
    assert read_header(packet.payload).destination_port == 443


def test_message_without_prefix_or_payload_holds_no_packet():
    assert decode_logged(struct.pack(">BBH", 2, 0, 5) + attribute(10, b"x:1\0")) is None
