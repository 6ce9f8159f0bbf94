"""Records of calls are read as the program wrote them, or refused."""

from __future__ import annotations

import struct

import pytest

from garrison.bpf.records import ACTOR_BYTES
from garrison.common.errors import FrameError
from garrison.minion.enforcers.syscalls.layout import CallPath, decode_call, encode_target

NAMES, TEXT = 768, 768


NO_ROW = 0xFFFF_FFFF


def record(*paths: bytes, returned: int = 1, exe: bytes = b"rm\0bin\0", exe_used: int = 7) -> bytes:
    head = struct.pack("=qII3IIIBBxxi4x", -2, 3, 263, NO_ROW, 4, 5, 6, 7, len(paths), returned, exe_used)
    return bytes(ACTOR_BYTES) + head + bytes(64) + exe.ljust(NAMES, b"\0") + b"".join(paths)


def path(base: bytes, base_used: int, text: bytes, text_used: int) -> bytes:
    return struct.pack("=iiQ", base_used, text_used, 0) + base.ljust(NAMES, b"\0") + text.ljust(TEXT, b"\0")


def test_call_is_read_with_its_paths():
    got = decode_call(record(path(b"a\0home\0", 7, b"x", 2), path(b"", -1, b"/etc/passwd", 12)))

    assert (got.generation, got.call, got.result, got.exe) == (3, 263, -2, "/bin/rm")
    assert (got.rows, got.profile, got.also) == ((4, 5), 6, 7)
    assert got.paths == (CallPath("/home/a", "x", text_known=True), CallPath("", "/etc/passwd", text_known=True))


def test_what_is_not_whole_is_not_known():
    got = decode_call(record(path(b"a\0", -3, b"", -14), path(b"a\0", 2, b"y" * TEXT, TEXT), returned=0, exe_used=-8))

    assert (got.result, got.exe) == (None, "")
    assert [(p.base, p.text_known) for p in got.paths] == [("", False), ("/a", False)]


def test_descriptor_alone_has_no_text():
    assert decode_call(record(path(b"f\0", 2, b"", 0))).paths == (CallPath("/f", "", text_known=True),)


@pytest.mark.parametrize("length", [0, 10, ACTOR_BYTES + 3])
def test_short_record_is_refused(length):
    with pytest.raises(FrameError):
        decode_call(record()[:length])


def test_target_is_compared_bit_by_bit():
    assert encode_target(b"/etc/") == struct.pack("=I", 40) + b"/etc/".ljust(256, b"\0")
