"""Records of the responder become events, and garbage becomes an error."""

from __future__ import annotations

import struct

import pytest

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.events import Kind, Lane, encode_event
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Rule, Verdict
from garrison.minion.enforcers.fanotify.records import decode_record, event_of

RULE = Rule(
    id="p/1",
    policy="p",
    entity=Entity.FILE,
    verdict=Verdict.BLOCK,
    target=PathTarget(how=PathKind.EXACT, value="/x"),
    severity=8,
    tags=("a", "b"),
    message="no",
)
RULES = {3: (RULE,)}


def raw(*, kind=1, generation=3, rule=0, verdict=2, flags=0, status=0, count=0, path=b"/x", exe=b"/bin/cat", cwd=b"/") -> bytes:
    numbers = (kind, generation, rule, 1, verdict, flags, 2**22 + 7, 1, 1000, 1000, 4, 0x8803, status, count, 99, 5, 6)
    return struct.pack("<IIIBBHiiiiiiiIQQQHHHxx", *numbers, len(path), len(exe), len(cwd)) + path + exe + cwd


def test_alert_carries_the_rule_and_the_actor():
    event = event_of(decode_record(raw(flags=1)), RULES)

    assert (event.kind, event.lane, event.operation, event.object) == (Kind.ALERT, Lane.ALERT, "open", "/x")
    assert (event.policy, event.rule, event.verdict, event.result, event.severity) == ("p", "p/1", "block", "EPERM", 8)
    assert event.data == {"message": "no", "tags": ["a", "b"], "by_posture": True}
    assert (event.actor.exe, event.actor.uid, event.actor.tty, event.ts, event.mono) == ("/bin/cat", 1000, "pts/3", 5, 6)


def test_alert_of_a_forgotten_generation_is_still_an_event():
    assert event_of(decode_record(raw(generation=1)), RULES).object == "/x"


def test_path_that_is_not_utf8_can_be_sent():
    assert encode_event(event_of(decode_record(raw(path=b"/\xff\xfe")), RULES))


def test_longest_paths_fit_into_an_event():
    record = raw(path=b"/" + b"a" * 4094, exe=b"/" + b"b" * 4094, cwd=b"/" + b"c" * 1022)

    assert len(encode_event(event_of(decode_record(record), RULES))) < limits.EVENT_MAX_BYTES


def test_dropped_alerts_become_a_gap_with_their_count_and_rule():
    event = event_of(decode_record(raw(kind=2, count=17)), RULES)

    assert (event.kind, event.rule, event.data["count"]) == (Kind.GAP, "p/1", 17)


@pytest.mark.parametrize(("status", "state"), [(1, "hung"), (2, "ended"), (3, "restart-failed"), (4, "restarted")])
def test_lapse_is_told_as_tampering(status, state):
    event = event_of(decode_record(raw(kind=3, status=status)), RULES)

    assert (event.kind, event.data["state"]) == (Kind.TAMPER, state)


@pytest.mark.parametrize("damaged", [b"", raw()[:-1], raw() + b"x", raw(verdict=9), raw(kind=9), raw(kind=3, status=9)])
def test_damaged_record_is_an_error(damaged):
    with pytest.raises(FrameError):
        decode_record(damaged)
