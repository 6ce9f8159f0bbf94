"""A storm of errors is bounded, and its counts add up exactly."""

from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.events import decode_event, encode_event
from garrison.minion.observers._finding import Finding, cut_middle, event_of
from garrison.minion.observers._repeats import Repeats, fingerprint_of


def finding(message, source="file"):
    return Finding(source=source, message=message, object="/var/log/x")


def count_of(events):
    return sum(int(e.data.get("count", 1)) for e in events)


def test_messages_that_differ_in_numbers_paths_and_quotes_are_of_one_kind():
    one = finding("2026-01-01 ERROR user 17 cannot open '/srv/a/b' at 0xdeadbeef")
    two = finding("2027-12-31 ERROR user 9 cannot open '/srv/c/d' at 0xcafe")

    assert fingerprint_of(one) == fingerprint_of(two)
    assert fingerprint_of(one) != fingerprint_of(finding("2026-01-01 ERROR user 17 cannot close"))


def test_repeats_become_one_event_with_their_exact_count_and_the_last_message():
    repeats, events = Repeats(), []
    for number in range(1000):
        events += repeats.take(finding(f"ERROR {number}"), 0.0)
    assert len(events) == limits.ERROR_REPEATS_MAX
    assert repeats.outstanding

    told = repeats.tick(limits.ERROR_WINDOW_S)

    assert [e.data["count"] for e in told] == [1000 - limits.ERROR_REPEATS_MAX]
    assert told[0].data["message"] == "ERROR 999"
    assert not repeats.outstanding


def test_single_error_passes_at_once_and_without_a_count():
    [event] = Repeats().take(finding("ERROR x"), 0.0)

    assert event.data == {"source": "file", "message": "ERROR x", "priority": 3}


@given(st.lists(st.tuples(st.integers(0, 2000), st.floats(0, 5)), max_size=300))
def test_every_message_is_told_in_exactly_one_event(steps):
    repeats, events, now = Repeats(), [], 0.0
    for kind, seconds in steps:
        now += seconds
        events += repeats.take(finding("ERROR " + "abcdefghij"[kind % 10] * (kind // 10)), now)
    events += repeats.flush()

    assert count_of(events) == len(steps)


def test_flood_of_many_kinds_is_bounded_and_counted():
    repeats, events = Repeats(), []
    for number in range(20_000):
        events += repeats.take(finding("ERROR " + "".join(chr(ord("g") + int(d)) for d in str(number))), 0.0)
    singles = len(events)
    events += repeats.flush()

    assert singles == limits.ERROR_PASSES_MAX
    assert len(events) <= limits.ERROR_PASSES_MAX + limits.ERROR_GROUPS_MAX + 1
    assert count_of(events) == 20_000


anything = st.text(st.characters(), max_size=2_000)  # lone surrogates too: JSON and file names bring them


@given(anything, st.integers(1, 20), anything, st.integers(-(2**70), 2**70))
def test_any_message_fits_an_event(text, times, other, number):
    made = Finding(source="journal", message=text * times, object=other, ts=number, data={"unit": other, "pid": number})

    event = event_of(made, count=2**40, more={"folded": True, "group": "f" * 16})

    assert decode_event(encode_event(event)) == event
    assert event.ts >= 0


def test_cut_message_keeps_both_ends():
    text = "Traceback" + "é" * 20_000 + "ValueError: the reason"

    cut = cut_middle(text)

    assert cut.startswith("Traceback")
    assert cut.endswith("ValueError: the reason")
    assert len(cut.encode()) <= limits.LOG_MESSAGE_MAX_BYTES
