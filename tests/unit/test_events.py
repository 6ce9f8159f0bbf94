"""The event record survives its encodings, and nothing that is not one gets through."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import Actor, Event, Lane, decode_event, encode_event, event_from_json, event_to_json

_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
_int64 = st.integers(-(1 << 63), (1 << 63) - 1)
_scalar = _text | _int64 | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
_events = st.builds(
    Event,
    ts=st.integers(0, (1 << 63) - 1),
    lane=st.sampled_from(Lane),
    kind=_text,
    object=_text,
    actor=st.none() | st.builds(Actor, pid=_int64, exe=_text, args=st.lists(_text, max_size=5).map(tuple)),
    data=st.dictionaries(_text, _scalar | st.lists(_scalar, max_size=4), max_size=6),
)


@given(_events)
def test_event_comes_back_as_it_was(event):
    assert decode_event(encode_event(event)) == event
    assert event_from_json(event_to_json(event)) == event


def test_typical_alert_takes_less_than_half_a_kilobyte():
    actor = Actor(
        pid=1234, ppid=1, exe="/usr/bin/cat", args=("cat", "/etc/secret/api.key"), cwd="/root", uid=0, unit="ssh.service"
    )
    event = Event(
        ts=1 << 60,
        mono=1 << 50,
        boot="b" * 36,
        lane=Lane.ALERT,
        kind="alert",
        severity=7,
        actor=actor,
        object="/etc/secret/api.key",
        operation="open",
        verdict="block",
        result="EPERM",
        policy="no-secrets",
        rule="no-secrets/0123456789ab",
        backend="fanotify",
    )

    assert len(encode_event(event)) < 512


@pytest.mark.parametrize(
    "event",
    [
        Event(object="\udcff"),
        Event(data={"n": 1 << 70}),
        Event(data={"o": object()}),
        Event(object="x" * limits.EVENT_MAX_BYTES),
    ],
    ids=["surrogate", "large-number", "object", "too-long"],
)
def test_event_with_no_encoding_is_a_frame_error(event):
    with pytest.raises(FrameError):
        encode_event(event)


@pytest.mark.parametrize(
    "body",
    [
        {"lane": 9},
        {"lane": "alert"},
        {"ts": -1},
        {"ts": 1 << 63},
        {"seq": -1},
        {"actor": {"pid": "1"}},
        {"data": {"deep": {"er": 1}}},
        {"data": {"deep": [[1]]}},
        {"data": {str(n): n for n in range(limits.EVENT_DATA_MAX_KEYS + 1)}},
        [],
        7,
    ],
    ids=str,
)
def test_wrong_content_is_refused_in_both_forms(body):
    with pytest.raises(FrameError):
        decode_event(msgspec.msgpack.encode(body))
    with pytest.raises(FrameError):
        event_from_json(msgspec.json.encode(body))


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x81\xa1x" + b"\x91" * 15_000, b"\x81\xa1x\xdd\xff\xff\xff\xff", bytes(limits.EVENT_MAX_BYTES + 1), b"\x80\x80"],
    ids=["empty", "nested", "huge-list", "too-long", "two"],
)
def test_hostile_bytes_are_refused(raw):
    with pytest.raises(FrameError):
        decode_event(raw)


@pytest.mark.parametrize("text", [b"\xff\xff", '{"x":' + "[" * 100_000, "\udcff", '{"object": "\\ud800"}'])
def test_hostile_json_is_refused(text):
    with pytest.raises(FrameError):
        event_from_json(text)


@given(st.binary(max_size=200))
def test_random_bytes_give_an_event_or_a_frame_error(raw):
    for decode in (decode_event, event_from_json):
        try:
            decode(raw)
        except FrameError:
            continue
