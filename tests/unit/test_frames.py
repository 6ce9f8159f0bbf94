"""Whatever bytes come, decoding gives a message or a FrameError, and never much memory or time."""

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.frames import (
    Ack,
    ApplyReport,
    Assignment,
    Batch,
    Chunk,
    ChunkRequest,
    Hello,
    Job,
    JobCancel,
    JobOutput,
    JobResult,
    Ping,
    Pong,
    Refused,
    RuleReport,
    Wait,
    Welcome,
    decode_down,
    decode_up,
    encode_frame,
)

JOB = "0123456789abcdef" * 2
UP = [
    Hello(
        node="edge-1",
        instance="ab",
        epoch="cd",
        next_seq=7,
        unacked={"0": 3},
        acked={"0": 4},
        acked_events={"0": 2},
        backends={"fanotify": "ok"},
        grains={"os": "x"},
    ),
    Batch(epoch="ab", lane=0, seqs=[1, 2, 9], events=[b"a", b"b", b"c"]),
    ChunkRequest(digest="ab" * 32, offset=65_536),
    ApplyReport(generation=3, bundle="ab" * 32, state="applied", rules=[RuleReport(rule="p/1", status="enforced")]),
    JobOutput(job=JOB, n=0, stream=1, data=b"out"),
    JobResult(job=JOB, exit_code=-9, error="stopped"),
    Ping(n=1),
    Pong(n=1),
]
DOWN = [
    Welcome(credits=8, acked={"0": 5}, generation=2),
    Refused(code="clone", reason="another one"),
    Wait(wait_s=7.5),
    Ack(epoch="ab", lane=4, seq=10),
    Assignment(assignment=b"x" * 2000, assignment_roots=[b"r"]),
    Chunk(digest="ab" * 32, offset=0, total=3, data=b"abc"),
    Job(job=JOB, argv=["true"], env={"A": "b"}),
    JobCancel(job=JOB),
    Ping(n=2),
    Pong(n=2),
]


def plain(body):
    return b"\x00" + msgspec.msgpack.encode(body)


@pytest.mark.parametrize("message", UP, ids=lambda m: type(m).__name__)
def test_what_a_minion_sends_arrives_as_it_was(message):
    assert decode_up(encode_frame(message)) == message


@pytest.mark.parametrize("message", DOWN, ids=lambda m: type(m).__name__)
def test_what_a_master_sends_arrives_as_it_was(message):
    assert decode_down(encode_frame(message)) == message


def test_large_message_is_compressed():
    assert len(encode_frame(Chunk(digest="ab", offset=0, total=60_000, data=b"a" * 60_000))) < 1000


def test_message_over_the_limit_is_refused_before_it_is_sent():
    with pytest.raises(FrameError, match="over the limit"):
        encode_frame(Chunk(digest="ab", offset=0, total=1, data=b"a" * limits.FRAME_PLAIN_MAX_BYTES))


def test_message_with_no_encoding_is_refused_and_nothing_else():
    with pytest.raises(FrameError, match="JobResult"):
        encode_frame(JobResult(job=JOB, exit_code=0, error="\udcff"))


@pytest.mark.parametrize("message", DOWN[:-2], ids=lambda m: type(m).__name__)
def test_message_of_the_other_direction_is_refused(message):
    with pytest.raises(FrameError):
        decode_up(encode_frame(message))


def test_unknown_fields_are_ignored_so_that_versions_can_talk():
    assert decode_up(plain({"t": "ping", "n": 5, "new": {"deep": [1, 2]}})) == Ping(n=5)


@pytest.mark.parametrize(
    "body",
    [
        {"t": "nosuch"},
        {"n": 1},
        {"t": "ping", "n": "1"},
        {"t": "ping", "n": -1},
        {"t": "ping", "n": 1 << 63},
        {"t": "batch", "epoch": "ab\n", "lane": 0, "seqs": [1], "events": [b"a"]},
        {"t": "batch", "epoch": "AB", "lane": 0, "seqs": [1], "events": [b"a"]},
        {"t": "batch", "epoch": "a" * 65, "lane": 0, "seqs": [1], "events": [b"a"]},
        {"t": "batch", "epoch": "ab", "lane": 0, "seqs": [], "events": []},
        {"t": "batch", "epoch": "ab", "lane": 0, "seqs": [1], "events": [b"a", b"b"]},
        {"t": "batch", "epoch": "ab", "lane": 0, "seqs": [2, 2], "events": [b"a", b"b"]},
        {"t": "batch", "epoch": "ab", "lane": 0, "seqs": [0], "events": [b"a"]},
        {"t": "batch", "epoch": "ab", "lane": 0, "seqs": [1 << 63], "events": [b"a"]},
        {"t": "batch", "epoch": "ab", "lane": 0, "seqs": list(range(1, 2002)), "events": [b""] * 2001},
        {"t": "hello", "grains": {str(n): "" for n in range(limits.HELLO_MAX_ITEMS + 1)}},
        {"t": "hello", "node": "x" * (limits.STRING_MAX_CHARS + 1)},
    ],
    ids=str,
)
def test_wrong_content_from_a_minion_is_refused(body):
    with pytest.raises(FrameError):
        decode_up(plain(body))


@pytest.mark.parametrize(
    "body",
    [
        {"t": "job", "job": JOB, "argv": []},
        {"t": "job", "job": JOB, "argv": ["x"] * (limits.JOB_ARGV_MAX + 1)},
        {"t": "job", "job": "", "argv": ["x"]},
        {"t": "job", "job": "../../etc/passwd", "argv": ["x"]},
        {"t": "job", "job": JOB, "argv": ["x"], "timeout_s": -1.0},
        {"t": "job", "job": JOB, "argv": ["x"], "timeout_s": float("nan")},
        {"t": "job", "job": JOB, "argv": ["x"], "timeout_s": float("inf")},
        {"t": "job", "job": JOB, "argv": ["x"], "env": {str(n): "" for n in range(limits.JOB_ENV_MAX + 1)}},
        {"t": "assignment", "assignment": b"", "assignment_roots": [b""] * (2 * limits.ROOT_ROTATIONS_MAX + 1)},
        {"t": "welcome", "acked": {str(n): 1 for n in range(limits.HELLO_MAX_ITEMS + 1)}},
        {"t": "chunk", "digest": "ab", "offset": -1, "total": 0},
    ],
    ids=str,
)
def test_wrong_content_from_a_master_is_refused(body):
    with pytest.raises(FrameError):
        decode_down(plain(body))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\x02\x80",
        b"\x00\xdd\xff\xff\xff\xff",
        b"\x00\xdf\xff\xff\xff\xff",
        b"\x00" + b"\x81\xa1a" * 300_000,
        b"\x00" + b"\x91" * 1_000_000,
        b"\x00" + msgspec.msgpack.encode({"t": "ping"}) + b"\xc0",
        b"\x00" * (limits.FRAME_MAX_BYTES + 1),
        b"\x01" + b"\x28\xb5\x2f\xfd" + bytes(20),
        b"\x01not zstd",
        b"\x01" + zstandard.ZstdCompressor().compress(b""),
    ],
    ids=range(12),
)
def test_broken_frame_is_refused(frame):
    with pytest.raises(FrameError):
        decode_up(frame)
    with pytest.raises(FrameError):
        decode_down(frame)


def test_bomb_is_refused_by_the_size_it_declares():
    bomb = b"\x01" + zstandard.ZstdCompressor().compress(bytes(limits.FRAME_PLAIN_MAX_BYTES + 1))
    assert len(bomb) < 10_000

    with pytest.raises(FrameError, match="declares"):
        decode_up(bomb)


def test_bomb_that_declares_no_size_is_refused():
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(FrameError, match="declares"):
        decode_up(b"\x01" + compressor.compress(bytes(limits.FRAME_PLAIN_MAX_BYTES * 4)))


def test_bomb_that_declares_too_little_is_refused():
    packed = bytearray(zstandard.ZstdCompressor().compress(bytes(4 << 20)))
    header = zstandard.get_frame_parameters(bytes(packed))
    assert header.content_size == 4 << 20
    at = packed.index((4 << 20).to_bytes(4, "little"))
    packed[at : at + 4] = (1000).to_bytes(4, "little")

    with pytest.raises(FrameError):
        decode_up(b"\x01" + bytes(packed))


def test_data_after_a_compressed_message_is_refused():
    frame = encode_frame(Chunk(digest="ab", offset=0, total=2000, data=b"a" * 2000))
    assert frame[0] == 1

    with pytest.raises(FrameError):
        decode_down(frame + b"x")


@given(st.binary(max_size=300))
def test_random_bytes_give_a_message_or_a_frame_error(data):
    for frame in (data, b"\x00" + data, b"\x01" + data, b"\x01" + zstandard.ZstdCompressor().compress(data)):
        for decode in (decode_up, decode_down):
            try:
                decode(frame)
            except FrameError:
                continue


@given(st.sampled_from(UP + DOWN), st.data())
def test_mutated_frames_give_a_message_or_a_frame_error(message, data):
    frame = bytearray(encode_frame(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                frame[at] = data.draw(st.integers(0, 255))
            case 1:
                del frame[at:]
            case _:
                frame[at:at] = data.draw(st.binary(max_size=8))
        if not frame:
            break
    for decode in (decode_up, decode_down):
        try:
            decode(bytes(frame))
        except FrameError:
            continue


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats()
        | st.binary(max_size=20)
        | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
        max_leaves=30,
    ),
    st.sampled_from([type(m).__name__.lower() for m in UP + DOWN]),
)
def test_any_msgpack_under_a_known_tag_gives_a_message_or_a_frame_error(body, tag):
    fields = body if isinstance(body, dict) else {"n": body, "events": body, "job": body}
    for decode in (decode_up, decode_down):
        try:
            decode(plain({**fields, "t": tag}))
        except FrameError:
            continue
