"""Alerts read as the program wrote them, and nothing else is taken for one."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common.errors import FrameError
from garrison.common.policy.rules import Verdict
from garrison.minion.enforcers.cgroup_net.layout import decode_event, encode_cell, rule_of
from garrison.minion.enforcers.cgroup_net.pathhash import PathHasher


def record(
    *, verdict=2, operation=1, kind=1, family=socket.AF_INET, protocol=6, port=443, addr=b"\x0a\0\0\x09", exe=b"nc\0bin\0usr\0"
):
    actor = struct.pack("=QQIIIIIxxxx16s32s", 5, 7, 40, 1, 1000, 0xFFFFFFFF, 0xFFFFFFFF, b"nc", b"pts3")
    body = struct.pack("=IIBBBBHH16si4x", 3, 1 << 29 | 12, verdict, operation, kind, family, protocol, port, addr, len(exe))
    return actor + body + exe.ljust(1024, b"\0")


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "tcp://10.0.0.9:443"),
        ({"family": socket.AF_INET6, "addr": socket.inet_pton(socket.AF_INET6, "fe80::1")}, "tcp://[fe80::1]:443"),
        ({"family": socket.AF_INET6, "addr": socket.inet_pton(socket.AF_INET6, "::ffff:10.0.0.9")}, "tcp://10.0.0.9:443"),
        ({"operation": 4, "kind": 3, "protocol": 1}, "raw://icmp"),
        ({"operation": 4, "kind": 1, "protocol": 200}, "stream://200"),
    ],
)
def test_object_is_written_as_people_write_it(fields, shown):
    assert decode_event(record(**fields)).object == shown


def test_alert_names_actor_rule_and_program():
    found = decode_event(record())

    assert (found.generation, found.rule, found.by_posture, found.verdict) == (3, 12, True, Verdict.BLOCK)
    assert (found.operation, found.exe) == ("connect", "/usr/bin/nc")
    assert (found.actor.pid, found.actor.uid, found.actor.auid, found.actor.tty) == (40, 1000, -1, "pts/3")


@given(st.binary(max_size=200))
def test_short_records_are_refused(raw):
    if len(raw) < 128:
        with pytest.raises(FrameError):
            decode_event(raw)


@pytest.mark.parametrize("fields", [{"verdict": 9}, {"operation": 9}])
def test_numbers_of_another_version_are_refused(fields):
    with pytest.raises(FrameError):
        decode_event(record(**fields))


@given(st.sampled_from(list(Verdict)), st.integers(0, (1 << 29) - 1), st.booleans())
def test_cell_keeps_verdict_rule_and_posture(verdict, number, by_posture):
    cell = encode_cell(verdict, number, by_posture=by_posture)

    assert (Verdict.ALLOW, Verdict.AUDIT, Verdict.BLOCK)[cell >> 30] is verdict
    assert rule_of(cell & 0x3FFFFFFF) == (number, by_posture)


def test_directories_hash_the_same_with_and_without_their_slash():
    hasher = PathHasher(bytes(24))

    assert hasher.path("/usr/bin/") == hasher.path("/usr/bin")
    assert hasher.path("/") == 0


@given(st.lists(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=80), min_size=1, max_size=6))
def test_another_key_and_another_path_give_another_hash(parts):
    path = "/" + "/".join(parts)

    assert PathHasher(bytes(24)).path(path) != PathHasher(b"\1" + bytes(23)).path(path)
    assert PathHasher(bytes(24)).path(path) != PathHasher(bytes(24)).path(path + "x")
