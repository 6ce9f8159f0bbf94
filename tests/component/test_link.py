"""The link against a real ROUTER with CURVE and ZAP: what holds when the network, the master or the operator does not help."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from contextlib import asynccontextmanager

import pytest
import zmq

from fakes.master import FakeMaster, Wire
from garrison.common import limits
from garrison.common.errors import LinkError
from garrison.common.events import Event, Lane, decode_event
from garrison.common.frames import (
    Ack,
    ApplyReport,
    Assignment,
    Chunk,
    Hello,
    Job,
    JobCancel,
    JobOutput,
    JobResult,
    Ping,
    Refused,
    RuleReport,
    Welcome,
    encode_frame,
)
from garrison.common.names import fingerprint
from garrison.minion.link.client import Link
from garrison.minion.link.peer import MasterRefusedError
from garrison.minion.link.settings import LinkSettings
from garrison.minion.spool import Spool, SpoolCaps

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

QUICK = {"connect_s": 1.0, "handshake_s": 2.0, "ping_s": 0.2, "dead_s": 1.0, "reconnect_min_s": 0.05, "unreachable_max_s": 0.3}
QUICK |= {"reconnect_max_s": 0.5, "chunk_s": 0.5, "fetch_s": 10.0}
JOB = "0123456789abcdef" * 2


class Agent:
    """What the link talks to, with a real spool."""

    def __init__(self, directory):
        self.spool = Spool.open(directory, SpoolCaps.of_total(64 << 20), boot="boot")
        self.states, self.cancelled, self.fetched, self.jobs = [], [], [], []
        self.want = None  # (digest, length) to fetch on an assignment
        self.rules = []
        self.applying = asyncio.Event()
        self.may_apply = asyncio.Event()
        self.may_apply.set()

    @property
    def cause(self):
        return self.states[-1].cause if self.states else ""

    @property
    def connected(self):
        return bool(self.states) and self.states[-1].connected

    def hello(self):
        return Hello(node="edge-1", instance="ab", epoch=self.spool.epoch, next_seq=self.spool.next_seq)

    async def on_assignment(self, assignment, fetch):
        self.applying.set()
        await self.may_apply.wait()
        try:
            if self.want is not None:
                self.fetched.append(await fetch(*self.want))
        except LinkError as err:
            return ApplyReport(generation=1, bundle="ab", state="refused", error=str(err))
        return ApplyReport(generation=1, bundle="ab", state="applied", rules=self.rules)

    async def on_job(self, job, output):
        self.jobs.append(job.job)
        await output(JobOutput(job=job.job, n=0, stream=1, data=b"out"))
        return JobResult(job=job.job, exit_code=7, outputs=1)

    def on_job_cancel(self, job_id):
        self.cancelled.append(job_id)

    def on_link_state(self, state):
        self.states.append(state)

    def put(self, lane, count, *, size=100, start=0):
        for number in range(start, start + count):
            self.spool.put(Event(lane=lane, kind="exec", data={"n": number, "pad": os.urandom(size // 2).hex()}))
        assert self.spool.flush(20)


@pytest.fixture
async def agent(tmp_path):
    made = Agent(tmp_path / "spool")
    yield made
    made.spool.close()


@pytest.fixture
async def master():
    made = await FakeMaster().start()
    yield made
    await made.stop()


@asynccontextmanager
async def linked(agent, *masters, server_key=None, **changes):
    public, secret = zmq.curve_keypair()
    settings = LinkSettings(
        masters=tuple(m if isinstance(m, str) else m.endpoint for m in masters),
        server_key=server_key or masters[0].public_key,
        public_key=public,
        secret_key=secret,
        **(QUICK | changes),
    )
    link = Link(settings, agent)
    task = asyncio.create_task(link.run())
    link.public_key = public
    try:
        yield link
    finally:
        await link.stop()
        async with asyncio.timeout(10):
            await task


async def until(look, what, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if look():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def numbers(master, lane):
    events = (decode_event(raw) for raw in master.stored.values())
    return sorted(e.data["n"] for e in events if e.lane == lane and "n" in e.data)


# ---- connecting ----
async def test_events_arrive_and_are_deleted_once_acknowledged(agent, master):
    agent.put(Lane.SHELL, 5000)
    async with linked(agent, master):
        agent.put(Lane.ALERT, 10)
        await until(lambda: len(master.stored) == 5010, "all stored")
        await until(lambda: sum(agent.spool.pending().values()) == 0, "the spool is empty")

    assert agent.states[0].cause == "connected"
    assert numbers(master, Lane.SHELL) == list(range(5000))


async def test_key_that_is_not_accepted_says_what_to_run_and_connects_once_it_is(agent, master):
    master.accepted = set()
    async with linked(agent, master) as link:
        await until(lambda: "key not accepted yet" in agent.cause, "the cause")
        assert f"garrison nodes accept edge-1 --key {fingerprint(link.public_key)}" in agent.cause
        assert not master.hellos, "nothing was said to it"

        master.accepted.add(link.public_key)
        await until(lambda: agent.connected, "connected")


async def test_wrong_server_key_is_named_and_nothing_is_said(agent, master):
    other, _ = zmq.curve_keypair()
    async with linked(agent, master, server_key=other, handshake_s=1.0):
        await until(lambda: "master's key is not the one in the join file" in agent.cause, "the cause")

    assert master.hellos == []


async def test_something_else_on_the_port_is_not_taken_for_a_master(agent):
    async def answer(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    key, _ = zmq.curve_keypair()
    async with linked(agent, f"tcp://127.0.0.1:{port}", server_key=key, handshake_s=1.0):
        await until(lambda: "no garrison master answers there" in agent.cause, "the cause")
    server.close()


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("tcp://127.0.0.1:1", "connection refused"),
        ("tcp://no-such-host.invalid:4515", "no address for no-such-host.invalid"),
        ("nonsense", "nonsense"),
    ],
)
async def test_master_that_cannot_be_reached_says_why(agent, endpoint, says):
    key, _ = zmq.curve_keypair()
    async with linked(agent, endpoint, server_key=key):
        await until(lambda: says in agent.cause, "the cause")

    assert endpoint in agent.cause


async def test_network_that_swallows_everything_is_a_timeout(agent):
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    key, _ = zmq.curve_keypair()
    async with linked(agent, f"tcp://127.0.0.1:{listener.getsockname()[1]}", server_key=key, connect_s=0.5):
        await until(lambda: "timeout" in agent.cause, "the cause")
    for one in (*fillers, listener):
        one.close()


async def test_refusal_is_shown_with_its_reason_and_tried_again(agent, master):
    master.answer = Refused(code="clone", reason="another agent with this key is connected")
    async with linked(agent, master):
        await until(lambda: "refused: clone" in agent.cause, "the cause")
        await until(lambda: len(master.hellos) > 1, "it tries again")
        master.answer = None
        await until(lambda: agent.connected, "served in the end")


async def test_second_master_serves_when_the_first_is_gone(agent, master):
    async with linked(agent, "tcp://127.0.0.1:1", master, server_key=master.public_key):
        await until(lambda: agent.connected, "connected")


async def test_second_master_serves_when_the_first_accepts_and_says_nothing(agent):
    first = FakeMaster()
    first.welcoming = False
    await first.start()
    second = await FakeMaster(keys=(first.public_key, first.secret_key)).start()
    async with linked(agent, first, second, handshake_s=0.3):
        await until(lambda: agent.connected, "connected")
    assert second.hellos
    await first.stop()
    await second.stop()


# ---- staying connected ----
async def test_cut_wire_is_noticed_and_heals_by_itself_and_each_event_is_stored_once(agent, master):
    wire = await Wire(master.port).start()
    async with linked(agent, wire, server_key=master.public_key):
        await until(lambda: agent.connected, "connected")
        agent.put(Lane.SHELL, 100)
        wire.cut()
        agent.put(Lane.SHELL, 500, start=100)
        await until(lambda: not agent.connected, "noticed")
        agent.put(Lane.SHELL, 400, start=600)
        wire.heal()

        await until(lambda: numbers(master, Lane.SHELL) == list(range(1000)), "all arrive")
    await wire.stop()


async def test_connection_reset_again_and_again_loses_nothing(agent, master):
    wire = await Wire(master.port).start()
    async with linked(agent, wire, server_key=master.public_key):
        for round_ in range(8):
            agent.put(Lane.SHELL, 300, start=round_ * 300)
            await until(lambda: agent.connected, "connected")
            wire.break_all()
        await until(lambda: numbers(master, Lane.SHELL) == list(range(2400)), "all arrive")
    await wire.stop()


async def test_master_that_restarts_gets_the_rest(agent):
    first = await FakeMaster().start()
    async with linked(agent, first):
        await until(lambda: agent.connected, "connected")
        agent.put(Lane.SHELL, 100)
        await until(lambda: len(first.stored) == 100, "stored")
        await first.stop()
        agent.put(Lane.SHELL, 100, start=100)
        await until(lambda: not agent.connected, "noticed")

        second = FakeMaster(port=first.port, keys=(first.public_key, first.secret_key))
        second.stored, second._acked = first.stored, first._acked
        await second.start()
        await until(lambda: len(second.stored) == 200, "the rest arrives")
    await second.stop()


async def test_master_whose_program_hangs_is_left(agent, master):
    async with linked(agent, master):
        await until(lambda: agent.connected, "connected")
        master._tasks[1].cancel()  # its I/O thread lives on, its program answers no more
        await until(lambda: "nothing heard" in agent.cause, "noticed")


async def test_idle_connection_is_kept_by_pings(agent, master):
    async with linked(agent, master):
        await until(lambda: master.pings > 8, "pings for more than dead_s")

    assert [state.cause for state in agent.states] == ["connected"]


async def test_master_that_never_acknowledges_gets_everything_again_on_a_new_connection(agent, master):
    master.acking = False
    async with linked(agent, master, ack_s=0.5):
        agent.put(Lane.SHELL, 10)
        await until(lambda: "acknowledged nothing" in "".join(s.cause for s in agent.states), "noticed")
        master.acking = True
        await until(lambda: sum(agent.spool.pending().values()) == 0, "acknowledged in the end")


# ---- order and credits ----
async def test_new_alert_overtakes_a_backlog_and_credits_are_honoured(agent, master):
    master.acking = False
    agent.put(Lane.METRIC, 20_000, size=200)
    async with linked(agent, master):
        await until(lambda: master.unacked == master.credits - 1, "all credits but the alert's are used")
        agent.put(Lane.ALERT, 1)

        await until(lambda: master.order[-1][0] == Lane.ALERT, "the alert comes next")
        assert master.unacked == master.credits
        agent.put(Lane.ALERT, 1)
        master.acking = True
        await master.ack_all()
        await until(lambda: sum(agent.spool.pending().values()) == 0, "the rest")
    assert master.most_unacked <= master.credits


async def test_wrong_acks_delete_nothing_and_change_nothing(agent, master):
    master.acking = False
    async with linked(agent, master):
        agent.put(Lane.SHELL, 10)
        await until(lambda: len(master.stored) == 10, "sent")
        await master.send(Ack(epoch="feed", lane=1, seq=10))
        await master.send(Ack(epoch=agent.spool.epoch, lane=77, seq=10))
        await master.send(Ping(n=5))
        await until(lambda: master.pings > 0, "it talks on")
        assert agent.spool.pending()[Lane.SHELL] == 10


async def test_master_that_has_more_than_was_ever_given_makes_the_spool_begin_a_new_epoch(agent, master):
    agent.put(Lane.SHELL, 10)
    old = agent.spool.epoch
    master._acked[old] = {int(Lane.SHELL): 5000}
    async with linked(agent, master):
        await until(lambda: agent.spool.epoch != old, "a new epoch")
        await until(lambda: len(master.stored) == 10, "everything is sent under it")

    assert {epoch for epoch, _ in master.stored} == {agent.spool.epoch}


# ---- assignments and chunks ----
async def test_chunks_are_fetched_and_go_on_over_a_cut(agent, master):
    blob = os.urandom(limits.CHUNK_BYTES * 9 + 17)
    digest = hashlib.sha256(blob).hexdigest()
    master.blobs[digest] = blob
    agent.want = (digest, len(blob))
    wire = await Wire(master.port).start()
    async with linked(agent, wire, server_key=master.public_key):
        await until(lambda: agent.connected, "connected")
        master.drop_chunks = 2
        await master.send(Assignment(assignment=b"x"))
        await until(lambda: len(master.chunk_requests) >= 3, "some are asked for")
        wire.break_all()
        await until(lambda: agent.fetched, "the fetch ends")
        await until(lambda: master.reports, "and is reported")

    assert agent.fetched == [blob]
    assert len(master.chunk_requests) < 25, "pieces that were there were not asked for again"
    await wire.stop()


@pytest.mark.parametrize("length", [0, 1, limits.CHUNK_BYTES, limits.CHUNK_BYTES + 1])
async def test_blob_of_any_length_arrives_whole(agent, master, length):
    blob = os.urandom(length)
    digest = hashlib.sha256(blob).hexdigest()
    master.blobs[digest] = blob
    agent.want = (digest, length)
    async with linked(agent, master):
        await until(lambda: agent.connected, "connected")
        await master.send(Assignment(assignment=b"x"))
        await until(lambda: agent.fetched == [blob], "fetched")


@pytest.mark.parametrize(("blob", "says"), [(None, "does not have it"), (b"short", "has 5 bytes")])
async def test_blob_that_the_master_lacks_or_has_differently_is_an_error(agent, master, blob, says):
    digest = "ab" * 32
    if blob is not None:
        master.blobs[digest] = blob
    agent.want = (digest, 100)
    async with linked(agent, master):
        await until(lambda: agent.connected, "connected")
        await master.send(Assignment(assignment=b"x"))
        await until(lambda: master.reports, "reported")

    assert master.reports[0].state == "refused"
    assert says in master.reports[0].error


async def test_report_of_an_assignment_applied_during_a_cut_is_told_afterwards(agent, master):
    wire = await Wire(master.port).start()
    agent.may_apply.clear()
    async with linked(agent, wire, server_key=master.public_key):
        await until(lambda: agent.connected, "connected")
        await master.send(Assignment(assignment=b"x"))
        async with asyncio.timeout(10):
            await agent.applying.wait()
        wire.cut()
        wire.break_all()
        await until(lambda: not agent.connected, "cut")
        agent.may_apply.set()
        wire.heal()
        await until(lambda: master.reports, "told")
    assert master.reports[0].state == "applied"
    await wire.stop()


async def test_report_too_large_for_a_frame_is_told_without_its_rules(agent, master):
    agent.rules = [RuleReport(rule=os.urandom(1000).hex(), status="enforced") for _ in range(1500)]
    async with linked(agent, master):
        await until(lambda: agent.connected, "connected")
        await master.send(Assignment(assignment=b"x"))
        await until(lambda: master.reports, "reported")
    assert master.reports[0].state == "applied"
    assert "1500 rules" in master.reports[0].error


# ---- jobs ----
async def test_job_is_run_and_answered_and_a_cancel_is_passed_on(agent, master):
    async with linked(agent, master):
        await until(lambda: agent.connected, "connected")
        await master.send(Job(job=JOB, argv=["true"]))
        await until(lambda: master.results, "answered")
        await master.send(JobCancel(job=JOB))
        await until(lambda: agent.cancelled == [JOB], "cancelled")

    assert master.results[0].exit_code == 7
    assert master.outputs[0].data == b"out"


# ---- hostile masters ----
@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"\xff" * 100,),
        (b"\x01garbage",),
        (b"\x00\x81\xa1t\xa5nosuch",),
        (encode_frame(Ping(n=1)), b"second part"),
        (encode_frame(Welcome()),),
        (encode_frame(Hello()),),
        (bytes(limits.FRAME_MAX_BYTES + 4096),),
    ],
    ids=["empty", "noise", "bad-zstd", "unknown", "two-parts", "second-welcome", "wrong-way", "oversize"],
)
async def test_frame_that_must_not_come_ends_the_connection_and_not_the_agent(agent, master, parts):
    async with linked(agent, master):
        await until(lambda: agent.connected, "connected")
        await master.send_raw(*parts)
        await until(lambda: len(master.hellos) > 1, "a new connection")
        agent.put(Lane.SHELL, 10)
        await until(lambda: len(master.stored) == 10, "events arrive over it")


async def test_chunks_that_nobody_asked_for_are_ignored(agent, master):
    async with linked(agent, master):
        await until(lambda: agent.connected, "connected")
        await master.send(Chunk(digest="ab" * 32, offset=1 << 40, total=1 << 30, data=b"x" * 1000))
        agent.put(Lane.SHELL, 1)
        await until(lambda: len(master.stored) == 1, "it goes on")
    assert len(master.hellos) == 1


# ---- confirming what is on trial -----------------------------------------------------------------------------------------
async def test_confirmation_comes_over_a_connection_of_its_own_and_the_first_one_goes_on(agent, master):
    async with linked(agent, master) as link:
        await until(lambda: agent.connected, "linked")
        first = master.peer

        await link.confirm(3, "ab")

        assert [(r.generation, r.bundle) for r in master.confirm_requests] == [(3, "ab")]
        assert master.peer != first
        await until(lambda: master.peer == first, "the first connection is heard again")
        assert len(master.hellos) == 1


async def test_master_that_refuses_to_confirm_is_told_from_one_that_does_not_answer(agent, master):
    async with linked(agent, master) as link:
        await until(lambda: agent.connected, "linked")
        master.refuses_to_confirm = "edge-1 is assigned something else"

        with pytest.raises(MasterRefusedError, match="something else"):
            await link.confirm(3, "ab")


async def test_master_of_before_confirms_by_taking_a_new_connection(agent, master):
    master.confirms = False
    async with linked(agent, master) as link:
        await until(lambda: agent.connected, "linked")

        await link.confirm(3, "ab")

        assert master.confirm_requests == []


async def test_new_connection_that_does_not_come_about_confirms_nothing(agent, master):
    wire = await Wire(master.port).start()
    async with linked(agent, wire, server_key=master.public_key) as link:
        with pytest.raises(LinkError, match="no master was reached"):
            await link.confirm(3, "ab")
        await until(lambda: agent.connected, "linked")
        wire.cut()

        with pytest.raises(LinkError):
            await link.confirm(3, "ab")

        assert master.confirm_requests == []
    await wire.stop()


async def test_node_whose_later_events_came_by_a_relay_knows_that_it_was_restored_from_a_copy(agent, master):
    """The numbers that it would give next were given, on another way: under a new epoch they are new."""
    agent.put(Lane.SHELL, 3)
    epoch, master.answer = agent.spool.epoch, Welcome(seen=agent.spool.next_seq)

    async with linked(agent, master):
        await until(lambda: agent.spool.epoch != epoch, "a new epoch begins")

    assert agent.spool.pending()[Lane.SHELL] == 3


# ---- a master that many nodes came to at once ----------------------------------------------------------------------------
async def test_node_that_is_told_to_wait_keeps_its_connection_past_its_own_patience(agent, master):
    master.welcoming, master.wait_s = False, 30.0
    async with linked(agent, master, handshake_s=1.0) as link:
        await until(lambda: master.hellos, "hello")
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 1.5, "its own patience is over")

        await master.send(Welcome(credits=4))
        await until(lambda: agent.connected, "connected")

    assert len(master.hellos) == 1
    assert link.bad_frames == 0


async def test_node_that_waited_as_long_as_it_was_told_tries_again(agent, master):
    master.welcoming, master.wait_s = False, 0.1
    async with linked(agent, master, handshake_s=0.2):
        await until(lambda: len(master.hellos) >= 2, "a second hello")

    assert not agent.connected
