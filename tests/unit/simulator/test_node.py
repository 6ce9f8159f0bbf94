"""A simulated node keeps what is not acknowledged, sends by the agent's rules, and is patient as the agent is."""

import pytest
import zmq

from garrison.common import limits
from garrison.common.events import decode_event
from garrison.common.frames import (
    Ack,
    Batch,
    Down,
    Hello,
    Job,
    JobResult,
    Ping,
    Pong,
    Refused,
    Wait,
    Welcome,
    encode_frame,
)
from garrison.common.names import NodeName
from garrison.minion.link.causes import Failure
from garrison.minion.link.settings import LinkSettings
from garrison.minion.simulator.figures import Figures
from garrison.minion.simulator.node import Phase, SimulatedNode

PUBLIC, SECRET = zmq.curve_keypair()
SETTINGS = LinkSettings(masters=("tcp://127.0.0.1:1",), server_key=PUBLIC, public_key=PUBLIC, secret_key=SECRET)


def away(rate: float = 0.0) -> tuple[SimulatedNode, Figures]:
    figures = Figures(nodes=1)
    return SimulatedNode(NodeName("sim-1"), SETTINGS, figures, rate=rate, event_bytes=200, now=0.0), figures


def hear(node: SimulatedNode, message: Down, now: float):
    return node.hear(encode_frame(message), now)


def served(rate: float = 0.0, now: float = 0.0) -> tuple[SimulatedNode, Figures]:
    node, figures = away(rate)
    node.knock(now)
    node.greet(now)
    hear(node, Welcome(credits=8), now)
    return node, figures


def test_events_are_made_at_the_rate_whether_connected_or_not():
    node, figures = away(rate=10.0)

    node.make_due(60.0)

    assert figures.made == pytest.approx(600, abs=1)
    assert node.say(60.0) is None, "not without a connection"


def test_event_is_kept_and_sent_again_until_it_is_acknowledged():
    node, figures = served()
    node.make(1.0)
    first = node.say(1.0)
    node.lose(2.0, Failure.LOST)
    node.knock(3.0)
    hello = node.greet(3.0)
    hear(node, Welcome(credits=8), 3.0)

    again = node.say(3.0)

    assert isinstance(first, Batch)
    assert again == first
    assert hello.unacked == {"1": 1}
    assert (figures.made, figures.sent, figures.acked) == (1, 2, 0)


def test_ack_counts_every_event_up_to_it_once_with_its_age():
    node, figures = served()
    for _ in range(3):
        node.make(1.0)
    batch = node.say(1.0)
    assert isinstance(batch, Batch)

    for _ in range(2):
        hear(node, Ack(epoch=node.epoch, lane=batch.lane, seq=2), 3.0)

    assert figures.acked == 2
    assert figures.latencies.percentile(100) == pytest.approx(2.0, rel=0.03)


def test_welcome_acknowledges_what_the_master_has_from_the_connection_before():
    node, figures = served()
    node.make(1.0)
    node.say(1.0)
    node.lose(2.0, Failure.LOST)
    node.knock(3.0)
    node.greet(3.0)

    hear(node, Welcome(credits=8, acked={"1": 1}), 3.0)

    assert figures.acked == 1
    assert node.say(3.0) is None


def test_events_are_what_the_master_can_read_and_numbered_without_gaps():
    node, _ = served()
    for _ in range(5):
        node.make(1.0)

    batch = node.say(1.0)

    assert isinstance(batch, Batch)
    assert batch.seqs == [1, 2, 3, 4, 5]
    assert [decode_event(raw).object for raw in batch.events] == [f"/sim-1/{seq}" for seq in batch.seqs]
    assert all(180 < len(raw) < 260 for raw in batch.events)


def test_no_more_batches_are_in_flight_than_there_are_credits():
    node, _ = served()
    sent = 0
    for n in range(1, 50):
        node.make(float(n))
        sent += isinstance(node.say(float(n)), Batch)

    assert sent == limits.UNACKED_MAX_BATCHES - 1, "the last credit is for alerts"


def test_node_that_is_told_to_wait_does_so_and_no_longer_than_the_limit():
    node, figures = away()
    node.knock(0.0)
    hello = node.greet(0.0)

    assert hello.waits
    hear(node, Wait(wait_s=30.0), 5.0)
    gives_up = 5.0 + 30.0 + limits.HANDSHAKE_MAX_S
    assert node.overdue(gives_up - 0.1) is None
    assert node.overdue(gives_up) is Failure.LOST
    hear(node, Wait(wait_s=limits.WELCOME_WAIT_MAX_S), 40.0)
    assert node.overdue(limits.WELCOME_WAIT_MAX_S - 0.1) is None
    assert node.overdue(limits.WELCOME_WAIT_MAX_S) is Failure.LOST
    assert figures.told_to_wait == 2


def test_refused_node_comes_back_after_the_agents_wait():
    node, figures = away()
    node.knock(0.0)
    node.greet(0.0)

    assert hear(node, Refused(code="retired"), 1.0) is Failure.REFUSED
    node.lose(1.0, Failure.REFUSED)

    assert figures.refused == {"retired": 1}
    assert not node.wants_connection(1.2)
    assert node.wants_connection(1.0 + limits.RECONNECT_MAX_S)


def test_silent_master_is_pinged_and_given_up():
    node, _ = served(now=0.0)

    assert node.say(limits.IDLE_PING_S - 0.1) is None
    assert isinstance(node.say(limits.IDLE_PING_S), Ping)
    assert node.say(limits.IDLE_PING_S) is None, "one at a time"
    assert node.overdue(limits.PEER_DEAD_S) is None
    assert node.overdue(limits.PEER_DEAD_S + 0.1) is Failure.LOST


def test_it_answers_pings_and_runs_no_command():
    node, _ = served()

    assert hear(node, Ping(n=7), 1.0) == Pong(n=7)
    answer = hear(node, Job(job="ab" * 16, argv=["true"]), 1.0)

    assert isinstance(answer, JobResult)
    assert answer.error


def test_what_is_no_frame_ends_the_connection():
    node, figures = served()

    assert node.hear(b"\x00rubbish", 1.0) is Failure.PROTOCOL
    assert node.phase is Phase.SERVED, "until the caller closed it"
    assert figures.refused == {"frame": 1}


def test_figures_say_how_many_are_served_now():
    node, figures = served()
    assert figures.served == 1

    node.leave(5.0)
    assert figures.served == 0
    assert not node.wants_connection(4.9)
    assert node.wants_connection(5.0)
    node.knock(5.0)
    assert isinstance(node.greet(5.0), Hello)
    assert node.due(5.0) == 5.0 + SETTINGS.handshake_s
