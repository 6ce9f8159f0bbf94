"""Which events go next: precious first, never over the credits, nobody silenced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.events import Lane
from garrison.minion.link.sender import Sender, Want


def send(sender, tails, now=0.0, size=limits.BATCH_MAX_BYTES):
    """Send what is wanted, ten numbers at a time."""
    want = sender.next(tails, now)
    assert isinstance(want, Want)
    sender.sent(want, want.after_seq + 10, size, now)
    return want


def test_nothing_to_send_wants_nothing():
    assert Sender(4, {}).next({}, 0.0) is None
    assert Sender(4, {Lane.SHELL: 10}).next({Lane.SHELL: 10}, 0.0) is None


def test_most_precious_lane_goes_first_from_what_the_master_has():
    sender = Sender(4, {Lane.ALERT: 5})

    want = sender.next({Lane.METRIC: 100, Lane.ALERT: 9, Lane.SHELL: 50}, 0.0)

    assert (want.lane, want.after_seq) == (Lane.ALERT, 5)


def test_last_credit_is_for_alerts():
    sender, tails = Sender(3, {}), {Lane.SHELL: 1000}
    send(sender, tails, size=1 << 16)
    send(sender, tails, now=1.0, size=1 << 16)
    assert sender.next(tails, 2.0) is None

    assert send(sender, {**tails, Lane.ALERT: 1}, now=2.0).lane == Lane.ALERT

    assert sender.in_flight == 3
    assert sender.next({**tails, Lane.ALERT: 100}, 3.0) is None


@pytest.mark.parametrize("credits_", [-5, 0, 1])
def test_one_credit_is_enough_for_every_lane(credits_):
    sender = Sender(credits_, {})
    assert send(sender, {Lane.METRIC: 10}).lane == Lane.METRIC
    sender.acked(Lane.METRIC, 10, 0.1)

    assert send(sender, {Lane.METRIC: 20}, now=1.0).lane == Lane.METRIC


def test_flood_of_a_precious_lane_does_not_silence_the_others():
    sender, tails, served = Sender(8, {}), dict.fromkeys(Lane, 1 << 40), set()
    for turn in range(100):
        want = send(sender, tails, now=float(turn))
        served.add(want.lane)
        sender.acked(want.lane, want.after_seq + 10, float(turn))

    assert served == set(Lane)


def test_slow_acks_shrink_what_is_in_flight_and_fast_ones_let_it_grow():
    def pace(took_s):
        sender, now = Sender(8, {}), 0.0
        for _ in range(12):
            want = send(sender, {Lane.SHELL: 1 << 40}, now, size=1 << 18)
            now += took_s
            sender.acked(Lane.SHELL, want.after_seq + 10, now)
        return sender.next({Lane.SHELL: 1 << 40}, now).max_bytes

    assert pace(5.0) == 16 << 10
    assert pace(0.1) == limits.BATCH_MAX_BYTES


def test_trickle_waits_for_company_but_an_alert_does_not():
    sender = Sender(8, {})
    send(sender, {Lane.SHELL: 10}, now=1.0, size=100)

    sender.acked(Lane.SHELL, 10, 1.005)

    assert sender.next({Lane.SHELL: 11}, 1.01) == pytest.approx(1.0 + limits.LINGER_S)
    assert sender.next({Lane.SHELL: 11, Lane.ALERT: 12}, 1.01).lane == Lane.ALERT
    assert sender.next({Lane.SHELL: 11}, 1.0 + limits.LINGER_S).lane == Lane.SHELL


def test_master_that_is_behind_gets_fewer_and_larger_batches():
    """The next small one waits for the ack of the one before, but neither an alert nor for ever."""
    sender = Sender(8, {})
    send(sender, {Lane.SHELL: 10}, now=1.0, size=100)

    assert sender.next({Lane.SHELL: 500}, 3.0) == pytest.approx(1.0 + limits.COMPANY_MAX_S)
    assert sender.next({Lane.SHELL: 500, Lane.ALERT: 501}, 3.0).lane == Lane.ALERT
    assert sender.next({Lane.SHELL: 500}, 1.0 + limits.COMPANY_MAX_S).lane == Lane.SHELL
    sender.acked(Lane.SHELL, 10, 3.0)
    assert sender.next({Lane.SHELL: 500}, 3.0).lane == Lane.SHELL


def test_ack_beyond_what_was_sent_moves_on_without_sending_that_again():
    """Batches of the connection before may have been stored after the Welcome was written."""
    sender = Sender(8, {})
    send(sender, {Lane.SHELL: 100})

    sender.acked(Lane.SHELL, 60, 0.1)

    assert sender.in_flight == 0
    assert sender.next({Lane.SHELL: 100}, 5.0).after_seq == 60


def test_oldest_batch_without_an_ack_tells_its_age():
    sender = Sender(8, {})
    assert sender.oldest_age_s(5.0) == 0.0
    send(sender, {Lane.SHELL: 100}, now=1.0)

    assert sender.oldest_age_s(4.0) == 3.0


@given(
    st.integers(-2, 20),
    st.lists(
        st.tuples(st.sampled_from(["send", "ack", "events", "wait"]), st.sampled_from(Lane), st.integers(1, 500)), max_size=200
    ),
)
def test_credits_hold_and_everything_is_sent_once_in_order(credits_, steps):
    sender, tails, now = Sender(credits_, {}), dict.fromkeys(Lane, 0), 0.0
    sent = dict.fromkeys(Lane, 0)
    most = max(1, min(credits_, limits.UNACKED_MAX_BATCHES))
    for what, lane, amount in steps:
        now += 0.01
        if what == "events":
            tails[lane] += amount
        elif what == "wait":
            now += 1.0
        elif what == "ack" and sent[lane]:
            sender.acked(lane, sent[lane], now)
        elif isinstance(want := sender.next(tails, now), Want):
            assert want.after_seq == sent[want.lane]
            sent[want.lane] = min(tails[want.lane], want.after_seq + amount)
            sender.sent(want, sent[want.lane], amount * 100, now)
        assert sender.in_flight <= most
    for _turn in range(10_000):
        want = sender.next(tails, now := now + 1.0)
        if want is None:
            break
        if isinstance(want, Want):
            sent[want.lane] = tails[want.lane]
            sender.sent(want, tails[want.lane], 100, now)
        for lane in Lane:
            sender.acked(lane, sent[lane], now)
    for lane in Lane:
        sender.acked(lane, sent[lane], now)
    while isinstance(want := sender.next(tails, now := now + 1.0), Want):
        sent[want.lane] = tails[want.lane]
        sender.sent(want, tails[want.lane], 100, now)
        sender.acked(want.lane, sent[want.lane], now)
    assert sent == tails
