"""Jobs, against a real store and a link that only notes what is sent."""

import asyncio

import pytest

from garrison.common import limits
from garrison.common.errors import ConfigError, FrameError
from garrison.common.frames import Job, JobCancel, JobResult
from garrison.common.names import NodeName
from garrison.master.jobs.records import JobRequest, Status
from garrison.master.jobs.service import JobService
from garrison.master.store import Store

N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")


class Link:
    """Every enrolled node is n1 to n3; which are connected is up to the test."""

    def __init__(self):
        self.connected, self.sent = {N1, N2, N3}, []

    def is_connected(self, node):
        return node in self.connected

    def is_enrolled(self, node):
        return node in {N1, N2, N3}

    def why_away(self, node):
        return "not connected"

    def send(self, node, message):
        self.sent.append((node, type(message)))
        return node in self.connected


@pytest.fixture
async def parts(tmp_path):
    store, link = Store(tmp_path / "store.db"), Link()
    yield JobService(store, link), store, link
    store.close()


async def settled(jobs, job, look):
    async with asyncio.timeout(10):
        while True:
            ticket = jobs.bell.ticket()
            if look(view := await jobs.view(job)):
                return view
            await ticket.wait()


def statuses(view):
    return [n.status for n in view.nodes]


async def test_job_without_a_reachable_node_has_ended_from_the_start(parts):
    jobs, _, link = parts
    link.connected.clear()

    view = await jobs.create(JobRequest(nodes=["n1", "stranger"], argv=["true"]))

    assert (view.ended, statuses(view), link.sent) == (True, [Status.UNREACHABLE] * 2, [])


async def test_node_named_twice_runs_once(parts):
    jobs, _, link = parts

    await jobs.create(JobRequest(nodes=["n1", "n1"], argv=["true"]))

    assert link.sent == [(N1, Job)]


async def test_wrong_name_or_a_command_too_long_for_a_frame_stores_and_sends_nothing(parts):
    jobs, store, link = parts
    noise = [f"{n * 2654435761 % (1 << 32):08x}" * 512 for n in range(1_000)]

    with pytest.raises(ConfigError):
        await jobs.create(JobRequest(nodes=["n1", "UPPER"], argv=["true"]))
    with pytest.raises(FrameError):
        await jobs.create(JobRequest(nodes=["n1"], argv=[*noise, *noise, *noise]))

    assert (store.jobs(10), link.sent) == ([], [])


async def test_answered_job_is_not_sent_again_and_an_unanswered_one_is(parts):
    jobs, _, link = parts
    job = (await jobs.create(JobRequest(nodes=["n1", "n2"], argv=["true"]))).id
    jobs.on_result(N1, JobResult(job=job, exit_code=0))
    await settled(jobs, job, lambda v: v.nodes[0].status is Status.DONE)
    link.sent.clear()

    jobs.on_online(N1)
    jobs.on_online(N2)

    assert link.sent == [(N2, Job)]


async def test_next_master_goes_on_with_what_is_unanswered(parts):
    jobs, store, link = parts
    job = (await jobs.create(JobRequest(nodes=["n1", "n2", "n3"], argv=["true"], forks=1))).id
    await settled(jobs, job, lambda v: Status.RUNNING in statuses(v))
    link.sent.clear()

    again = JobService(store, link)
    again.on_online(N1)
    again.on_result(N1, JobResult(job=job, exit_code=0))
    await settled(again, job, lambda v: statuses(v)[:2] == [Status.DONE, Status.RUNNING])

    assert link.sent == [(N1, Job), (N2, Job)]


async def test_cancelled_job_is_stopped_where_it_runs_also_on_a_node_that_was_away(parts):
    jobs, _, link = parts
    job = (await jobs.create(JobRequest(nodes=["n1", "n2"], argv=["true"]))).id
    link.connected.discard(N2)

    view = await jobs.cancel(job)
    link.connected.add(N2)
    jobs.on_online(N2)

    assert (view.cancelled, statuses(view)) == (True, [Status.CANCELLED] * 2)
    assert (N1, JobCancel) in link.sent
    assert link.sent[-1] == (N2, JobCancel)


async def test_node_that_does_not_answer_by_the_deadline_is_lost(parts, monkeypatch):
    jobs, _, _ = parts
    monkeypatch.setattr(limits, "JOB_GRACE_S", -1.0)
    job = (await jobs.create(JobRequest(nodes=["n1"], argv=["true"], timeout_s=0.5))).id

    jobs.tick()

    view = await settled(jobs, job, lambda v: v.ended)
    assert (statuses(view), view.nodes[0].error) == ([Status.LOST], "no answer by the deadline")
