"""A real master process, asked through the command line, against peers that speak the real protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import msgspec
import pytest

from component.master_process import GARRISON, Master, running_master
from fakes.peer import Peer, batch_of, event
from garrison.common import limits
from garrison.common.events import Actor, Lane, encode_event
from garrison.common.frames import (
    Ack,
    ApplyReport,
    Assignment,
    Batch,
    Chunk,
    ChunkRequest,
    Confirmed,
    ConfirmRequest,
    Hello,
    Job,
    JobCancel,
    JobOutput,
    JobResult,
    Ping,
    Pong,
    Refused,
    RuleReport,
    Welcome,
)
from garrison.common.names import digest_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture
def master():
    with running_master() as made:
        yield made


@pytest.fixture(scope="module")
def shared():
    """One master for tests that leave it as it was."""
    with running_master() as made:
        yield made


# ---- who gets in -----------------------------------------------------------------------------------------------------
def test_unknown_key_waits_as_pending_until_it_is_accepted_by_its_fingerprint(master):
    peer = master.peer()
    master.until(lambda: peer.fingerprint in master.cli("nodes", "pending", "--json").stdout, "the key is pending")
    assert master.nodes() == {}

    master.cli("nodes", "accept", "n1", "--key", peer.fingerprint)
    peer.connect()

    assert isinstance(peer.hello(), Welcome)
    assert master.nodes()["n1"]["state"] == "online"
    assert master.nodes()["n1"]["fingerprint"] == peer.fingerprint
    assert json.loads(master.cli("nodes", "pending", "--json").stdout) == {"pending": []}


def test_rejected_key_is_not_shown_again_and_does_not_get_in(master):
    peer = master.peer()
    master.until(lambda: peer.fingerprint in master.cli("nodes", "pending", "--json").stdout, "the key is pending")

    master.cli("nodes", "reject", "--key", peer.fingerprint)
    peer.connect()

    assert peer.wait_disconnected(10), "knocking again is refused at the handshake"
    assert json.loads(master.cli("nodes", "pending", "--json").stdout) == {"pending": []}


def test_accepting_twice_is_already_so_and_another_key_for_the_name_is_refused(master):
    peer, other = master.enrolled(), master.peer()

    again = master.cli("nodes", "accept", "n1", "--key", peer.fingerprint)
    refused = master.cli("nodes", "accept", "n1", "--key", other.public.decode(), ok=(2,))

    assert "already" in again.stderr
    assert "another key" in refused.stderr
    assert master.nodes()["n1"]["fingerprint"] == peer.fingerprint


def test_node_that_calls_itself_otherwise_is_refused_and_stores_nothing(master):
    peer = master.enrolled()
    liar = master.peer(node="n2")
    master.cli("nodes", "accept", "n2", "--key", liar.public.decode())
    liar.connect()

    answer = liar.hello(node="n1")
    liar.send(batch_of([1]))

    assert isinstance(answer, Refused)
    assert answer.code == "name"
    assert master.nodes()["n1"]["state"] == "online"
    peer.send(batch_of([1]))
    assert peer.wait_for(Ack).seq == 1
    assert [e["node"] for e in master.events()] == ["n1"]


def test_events_are_filed_under_the_key_they_came_under_whatever_they_say_themselves(master):
    master.enrolled("n1")
    second = master.enrolled("n2")

    second.send(batch_of([1], node="n1", epoch="e1"))
    second.wait_for(Ack)

    assert [(e["node"], e["epoch"], e["seq"]) for e in master.events()] == [("n2", "e1", 1)]


def test_clone_is_refused_while_the_first_lives_and_is_shown(master):
    first = master.enrolled()
    clone = master.peer(keypair=(first.public, first.secret))

    clone.send(Hello(node="n1", instance=clone.instance, epoch="e1"))
    first.send(batch_of([1]))
    first.wait_for(Ack)
    master.until(lambda: (first.next(0.2), master.nodes()["n1"]["clones"])[1], "the clone is shown")

    answer = clone.next()
    assert isinstance(answer, Refused)
    assert answer.code == "clone"
    assert master.nodes()["n1"]["clones"][0]["instance"] == clone.instance
    first.send(batch_of([2]))
    assert first.wait_for(Ack).seq == 2, "the first goes on"


def test_same_agent_on_a_new_connection_takes_its_place_over_at_once(master):
    peer = master.enrolled()
    old = master.peer(keypair=(peer.public, peer.secret))
    old.instance = peer.instance

    assert isinstance(old.hello(), Welcome), "the first connection never said goodbye"
    old.send(batch_of([1]))
    assert old.wait_for(Ack).seq == 1
    assert master.nodes()["n1"]["clones"] == []


def test_agent_that_was_started_again_is_let_in_when_the_first_is_gone(master):
    peer = master.enrolled()
    peer.close()
    master.peers.remove(peer)
    again = master.peer(keypair=(peer.public, peer.secret))

    assert again.instance != peer.instance
    assert isinstance(again.hello(), Welcome)


def test_retired_node_is_cut_off_and_stays_out(master):
    peer = master.enrolled()

    master.cli("nodes", "retire", "n1")

    assert peer.wait_for(Refused, 5).code == "retired"
    assert peer.wait_disconnected(5)
    peer.send(batch_of([1]))
    peer.connect()
    assert peer.wait_disconnected(10), "its key fails the handshake"
    assert master.nodes()["n1"]["state"] == "retired"
    assert master.events() == []
    assert "already" in master.cli("nodes", "retire", "n1").stderr


# ---- events ----------------------------------------------------------------------------------------------------------
def test_batch_sent_twice_is_acked_twice_and_stored_once(master):
    peer = master.enrolled()

    for _ in range(2):
        peer.send(batch_of([1, 4, 9]))
        assert peer.wait_for(Ack) == Ack(epoch="e1", lane=int(Lane.SHELL), seq=9)

    assert [e["seq"] for e in master.events()] == [1, 4, 9]


def test_welcome_tells_what_is_durable_by_lane_of_that_epoch_only(master):
    peer = master.enrolled()
    peer.send(batch_of([2, 5]))
    peer.wait_for(Ack)
    peer.send(batch_of([7], lane=Lane.ALERT))
    peer.wait_for(Ack)

    peer.connect()
    assert peer.hello().acked == {"0": 7, "1": 5}
    peer.connect()
    assert peer.hello(epoch="e2").acked == {}


def test_batch_before_the_hello_of_its_connection_is_not_acked(master):
    """libzmq may have lost what was sent before it: an ack would have the node delete events that never came."""
    peer = master.enrolled()
    peer.connect()

    peer.send(batch_of([5]))
    answer = peer.hello()

    assert isinstance(answer, Welcome)
    assert answer.acked == {}
    assert master.events() == []


def test_master_killed_between_events_ends_with_each_event_once(master):
    peer = master.enrolled()
    acked, unacked = [], list(range(1, 400))
    for round_ in range(3):
        sent = batch_of(unacked[:100])
        peer.send(sent)
        if round_ != 1:  # once the kill falls between commit and ack, or before the commit: both must end well
            acked.append(peer.wait_for(Ack).seq)
        master.end(signal.SIGKILL)
        master.start()
        peer.connect()
        durable = peer.hello().acked.get("1", 0)
        assert durable >= max(acked, default=0), "what was acked is durable"
        unacked = [seq for seq in unacked if seq > durable]
    while unacked:
        peer.send(batch_of(unacked[:100]))
        peer.wait_for(Ack)
        unacked = unacked[100:]

    assert [e["seq"] for e in master.events()] == list(range(1, 400))


def test_event_that_cannot_be_read_is_kept_aside_acked_and_counted(master):
    peer = master.enrolled()
    good = encode_event(event(object="/good"))
    late = encode_event(event(ts=(1 << 64) - 1))

    peer.send(Batch(epoch="e1", lane=1, seqs=[1, 2, 3, 4], events=[good, b"\xc1nonsense", late, good]))

    assert peer.wait_for(Ack).seq == 4
    assert [e["kind"] for e in master.events()] == ["exec", "quarantined", "quarantined", "exec"]
    assert master.nodes()["n1"]["quarantined"] == 2


def test_events_are_found_by_every_filter_and_followed_as_they_come(master):
    peer = master.enrolled()
    peer.send(batch_of([1], lane=Lane.ALERT, kind="alert", verdict="block", policy="p1", rule="p1/1", operation="exec"))
    peer.wait_for(Ack)
    peer.send(batch_of([2], ts=time.time_ns() - 3_600 * 10**9, actor=Actor(exe="/usr/bin/curl")))
    peer.wait_for(Ack)

    found = {
        args: [e["seq"] for e in master.events(*args)]
        for args in (
            ("--kind", "alert"),
            ("--lane", "shell"),
            ("--policy", "p1"),
            ("--verdict", "block", "--verdict", "audit"),
            ("--since", "10m"),
            ("--until", "10m"),
            ("--node", "n1"),
            ("--node", "other"),
            ("--limit", "1"),
            ("--exe", "/usr/bin/curl"),
        )
    }

    assert list(found.values()) == [[1], [2], [1], [1], [1], [2], [1, 2], [], [2], [2]]
    follow = subprocess.Popen([GARRISON, "events", "--follow", "--json"], stdout=subprocess.PIPE, env=master.env)
    assert follow.stdout is not None
    assert [json.loads(follow.stdout.readline())["seq"] for _ in range(2)] == [1, 2]
    peer.send(batch_of([3]))
    assert json.loads(follow.stdout.readline())["seq"] == 3
    follow.kill()
    follow.wait()


# ---- hostile and broken peers ----------------------------------------------------------------------------------------
def test_garbage_on_the_port_leaves_the_master_serving(master):
    peer = master.enrolled()
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(4096)
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), greeting) * 10:
        with socket.create_connection(("127.0.0.1", master.port), 5) as raw:
            raw.sendall(data)

    peer.send(batch_of([1]))
    assert peer.wait_for(Ack).seq == 1


@pytest.mark.parametrize(
    "frames",
    [
        (b"\x00\xc1",),
        (b"\x07junk",),
        (b"\x01" + b"\x28\xb5\x2f\xfd" + b"\xff" * 20,),
        (b"\x00" + msgspec.msgpack.encode({"t": "batch", "epoch": "e1", "lane": 9, "seqs": [1], "events": [b""]}),),
        (b"\x00" + msgspec.msgpack.encode({"t": "batch", "epoch": "e1", "lane": 1, "seqs": [1 << 63], "events": [b""]}),),
        (b"one", b"two"),
    ],
    ids=["msgpack", "encoding", "zstd", "lane", "number", "two-frames"],
)
def test_peer_that_breaks_the_protocol_is_counted_and_cut_off_and_the_other_goes_on(shared, request, frames):
    name = f"bad-{request.node.callspec.id}"
    bad, good = shared.enrolled(name), shared.enrolled(f"good-{request.node.callspec.id}")

    bad.send_raw(*frames)

    assert bad.wait_for(Refused).code == "protocol"
    assert bad.wait_disconnected(5)
    assert shared.nodes()[name]["bad_frames"] == 1
    good.send(batch_of([1]))
    assert good.wait_for(Ack).seq == 1
    bad.connect()
    assert isinstance(bad.hello(), Welcome), "a node that behaves again is served again"


def test_frame_over_the_limit_costs_the_peer_its_connection_and_nobody_else(master):
    bad, good = master.enrolled("n1"), master.enrolled("n2")

    bad.send_raw(b"\x00" * (limits.FRAME_MAX_BYTES + 1))

    assert bad.wait_disconnected(10)
    good.send(batch_of([1]))
    assert good.wait_for(Ack).seq == 1


def test_more_batches_than_credits_do_not_harm_others(master):
    bad, good = master.enrolled("n1"), master.enrolled("n2")
    flood = batch_of(list(range(1, limits.BATCH_MAX_EVENTS)))
    for _ in range(60):
        bad.send(flood)

    good.send(batch_of([1]))

    assert good.wait_for(Ack).seq == 1
    assert len(master.events("--node", "n1")) in {0, limits.BATCH_MAX_EVENTS - 1}


# ---- bundles ---------------------------------------------------------------------------------------------------------
def sign_bundle(master: Master, files: dict[str, dict[str, bytes]]) -> dict[str, str]:
    """Sign and hand in a bundle: node → path → content. Returns path → digest, and the metadata's under ''."""
    from datetime import UTC, datetime, timedelta

    from garrison.common.policy.rules import Mode
    from garrison.common.trust.bundle import NodeShare, build_bundle
    from garrison.common.trust.keyset import AuthorKeys
    from garrison.master.desk import BundleRequest

    author = AuthorKeys.load(master.work / "keys")
    contents = {path: data for share in files.values() for path, data in share.items()}
    bundle = build_bundle(
        contents,
        {node: NodeShare(files=dict.fromkeys(share, Mode.ENFORCE)) for node, share in files.items()},
        tenant="default",
        version=author.claim_version(0),
        expires=datetime.now(UTC) + timedelta(days=90),
        signers=author.signers,
    )
    request = BundleRequest(metadata=bundle.metadata, files=dict(bundle.files))
    master.api.post("/v1/bundles", msgspec.msgpack.encode(request))
    return {"": bundle.digest, **{path: digest_of(data) for path, data in contents.items()}}


def test_assignment_reaches_connected_and_returning_nodes_and_each_reads_only_its_own_files(master):
    one, two = master.enrolled("n1"), master.enrolled("n2")
    big = os.urandom(limits.CHUNK_BYTES + 10)

    digests = sign_bundle(master, {"n1": {"a.yaml": big}, "n2": {"b.yaml": b"for n2"}})

    assert one.wait_for(Assignment).assignment
    one.connect()
    assert one.hello().generation == 1
    assert one.wait_for(Assignment).bundle_roots
    got = b""
    while len(got) < len(big):
        one.send(ChunkRequest(digest=digests["a.yaml"], offset=len(got)))
        got += one.wait_for(Chunk).data
    assert got == big
    for digest in (digests["b.yaml"], digest_of(b"no such"), b"../store.db".hex()):
        one.send(ChunkRequest(digest=digest))
        assert one.wait_for(Chunk) == Chunk(digest=digest, offset=0, total=-1), "not its own: as if it were not there"
    two.send(ChunkRequest(digest=digests[""]))
    assert two.wait_for(Chunk).total > 0, "the signed metadata is everybody's who is assigned it"


def test_what_is_on_trial_is_confirmed_on_a_new_connection_if_it_is_what_was_assigned(master):
    one, two = master.enrolled("n1"), master.enrolled("n2")
    bundle = sign_bundle(master, {"n1": {"a.yaml": b"for n1"}, "n2": {"b.yaml": b"for n2"}})[""]
    one.wait_for(Assignment)
    again = Peer(master.endpoint, master.server_key, keypair=(one.public, one.secret), node="n1")
    master.peers.append(again)

    again.send(ConfirmRequest(generation=1, bundle=bundle, nonce="ab" * 16))

    assert again.next() == Confirmed(nonce="ab" * 16)
    one.send(Ping(n=1))
    assert one.wait_for(Pong).n == 1, "the other connection goes on"
    for generation, digest in ((2, bundle), (1, digest_of(b"another"))):
        again.connect()
        again.send(ConfirmRequest(generation=generation, bundle=digest, nonce="cd" * 16))
        answer = again.next()
        assert isinstance(answer, Refused)
        assert (answer.code, "n1 is assigned generation 1" in answer.reason) == ("confirm", True)
    master.cli("nodes", "retire", "n2")
    two.connect()
    two.send(ConfirmRequest(generation=1, bundle=bundle, nonce="ef" * 16))
    assert not isinstance(two.next(2), Confirmed)


@pytest.mark.parametrize("state", ["pending", "reverted", "quarantined"])
def test_report_of_a_trial_is_shown_and_leaves_what_is_enforced(master, state):
    peer = master.enrolled()
    peer.send(ApplyReport(generation=3, bundle="a" * 64, state="applied"))
    master.until(lambda: master.nodes()["n1"]["generation"] == 3, "the report is stored")

    peer.send(ApplyReport(generation=4, bundle="b" * 64, state=state, error="no ssh"))

    master.until(lambda: master.nodes()["n1"]["apply_state"] == state, "the second too")
    assert master.nodes()["n1"]["generation"] == 3
    assert "generation 4: " in master.cli("nodes", "show", "n1").stdout


def test_apply_report_is_shown_and_a_refusal_leaves_what_is_enforced(master):
    peer = master.enrolled()
    rules = [RuleReport(rule="p/1", status="enforced", backend="fanotify"), RuleReport(rule="p/2", status="inert", reason="why")]

    peer.send(ApplyReport(generation=3, bundle="ab", state="applied", rules=rules))
    peer.send(ApplyReport(generation=0, bundle="", state="refused", error="bad signature"))

    node = master.until(lambda: n if (n := master.nodes()["n1"])["apply_state"] == "refused" else None, "the refusal is shown")
    assert (node["generation"], node["bundle"], node["apply_error"]) == (3, "ab", "bad signature")
    assert node["assigned_generation"] == 0, "a generation the master does not know is shown, not lowered"
    shown = json.loads(master.cli("nodes", "show", "n1", "--json").stdout)
    assert [r["status"] for r in shown["report"]["rules"]] == ["enforced", "inert"]


# ---- jobs ------------------------------------------------------------------------------------------------------------
def start_job(master: Master, nodes: list[str], **how) -> str:
    return master.api.post("/v1/jobs", {"nodes": nodes, "argv": ["uname", "-r"], **how})["id"]


def stream(master: Master, job: str) -> list[dict]:
    return [json.loads(line) for line in master.api.lines(f"/v1/jobs/{job}/stream")]


def test_job_runs_on_connected_nodes_and_its_output_comes_once_and_in_order(master):
    peer = master.enrolled()
    master.cli("nodes", "accept", "away", "--key", master.peer().public.decode())

    job = start_job(master, ["n1", "away", "stranger"])
    asked = peer.wait_for(Job)
    assert (asked.job, asked.argv) == (job, ["uname", "-r"])
    for n in (0, 0, 1):
        peer.send(JobOutput(job=job, n=n, stream=1, data=b"part %d\n" % n))
    peer.send(JobResult(job=job, exit_code=3, outputs=2, duration_ms=5))
    lines = stream(master, job)

    output = [base64.b64decode(line["data"]) for line in lines if line["type"] == "output"]
    assert output == [b"part 0\n", b"part 1\n"]
    results = {line["node"]: (line["status"], line["exit_code"]) for line in lines if line["type"] == "result"}
    assert results == {"n1": ("done", 3), "away": ("unreachable", None), "stranger": ("unreachable", None)}
    assert lines[-1]["type"] == "end"
    shown = master.cli("jobs", "show", job[:8], ok=(1,))
    assert "n1: part 1" in shown.stdout
    assert "not connected" in shown.stderr


def test_unanswered_job_is_sent_again_to_a_node_that_comes_back_also_to_a_new_master(master):
    peer = master.enrolled()
    job = start_job(master, ["n1"])
    peer.wait_for(Job)
    peer.send(JobOutput(job=job, n=0, stream=1, data=b"before\n"))
    master.until(lambda: json.loads(master.cli("jobs", "--json").stdout)["jobs"][0]["nodes"][0]["status"] == "running", "it runs")

    master.end(signal.SIGKILL)
    master.start()
    peer.connect()
    peer.hello()

    assert peer.wait_for(Job).job == job
    peer.send(JobOutput(job=job, n=0, stream=1, data=b"before\n"))
    peer.send(JobResult(job=job, exit_code=0, outputs=1))
    assert [line["type"] for line in stream(master, job)] == ["output", "result", "end"]


def test_forks_bound_how_many_nodes_run_at_once(master):
    peers = [master.enrolled(name) for name in ("n1", "n2")]
    job = start_job(master, ["n1", "n2"], forks=1)

    peers[0].wait_for(Job)
    assert peers[1].next(0.5) is None
    peers[0].send(JobResult(job=job, exit_code=0))

    assert peers[1].wait_for(Job).job == job


def test_cancelled_job_is_stopped_on_the_node_and_ends(master):
    peer = master.enrolled()
    job = start_job(master, ["n1"])
    peer.wait_for(Job)

    master.cli("jobs", "cancel", job)

    assert peer.wait_for(JobCancel).job == job
    assert [line.get("status") for line in stream(master, job)] == ["cancelled", None]
    assert "already ended" in master.cli("jobs", "cancel", job).stderr


# ---- the process -----------------------------------------------------------------------------------------------------
def test_second_master_on_the_directory_is_refused_and_the_first_goes_on(master):
    second = master.cli("master", "--dir", str(master.directory), "--listen", "tcp://127.0.0.1:1", ok=(2,))

    assert "another master runs" in second.stderr
    assert master.nodes() == {}


def test_master_stops_cleanly_with_nodes_and_a_stream_connected_and_starts_again(master):
    peer = master.enrolled()
    peer.send(batch_of([1]))
    peer.wait_for(Ack)
    follow = subprocess.Popen([GARRISON, "events", "--follow", "--json"], stdout=subprocess.PIPE, env=master.env)
    assert follow.stdout is not None
    follow.stdout.readline()

    assert master.end() == 0

    assert follow.wait(timeout=10) == 0, "the stream ends, it does not break off"
    assert not (master.directory / "store.db-wal").exists() or (master.directory / "store.db-wal").stat().st_size == 0
    master.start()
    assert [e["seq"] for e in master.events()] == [1]
    assert master.nodes()["n1"]["state"] in {"late", "offline"}


def test_directory_without_keys_is_refused_with_the_remedy(master, tmp_path):
    done = master.cli("master", "--dir", str(tmp_path), ok=(2,))

    assert "garrison init" in done.stderr


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nosuch", b"", 404),
        ("GET", "/v1/nodes/nosuch", b"", 404),
        ("GET", "/v1/nodes?x=1", b"", 400),
        ("GET", "/v1/events?since=yesterday", b"", 400),
        ("GET", "/v1/events?limit=-1", b"", 400),
        ("GET", "/v1/events?lane=9", b"", 400),
        ("POST", "/v1/jobs", b"{", 400),
        ("POST", "/v1/jobs", b'{"nodes": [], "argv": ["true"]}', 400),
        ("POST", "/v1/jobs", b'{"nodes": ["n1"], "argv": ["true"], "sudo": true}', 400),
        ("POST", "/v1/jobs", b'{"nodes": ["../x"], "argv": ["true"]}', 400),
        ("POST", "/v1/nodes/UPPER/accept", b'{"key": "x"}', 400),
        ("POST", "/v1/nodes/n1/accept", b'{"key": 1}', 400),
        ("POST", "/v1/nodes/n1/accept", b'{"key": "' + b"x" * (5 << 20) + b'"}', 400),
        ("POST", "/v1/jobs/00/cancel", b"{}", 404),
        ("POST", "/v1/nodes/accept", b'{"nodes": {"UPPER": "x"}}', 400),
        ("POST", "/v1/nodes/accept", b'{"nodes": {"n1": "x"}}', 400),
        ("POST", "/v1/nodes/retire", b'{"nodes": "n1"}', 400),
    ],
)
def test_wrong_request_is_answered_with_a_reason(shared, method, path, body, status):
    import http.client

    connection = http.client.HTTPConnection("master", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(shared.directory / "api.sock"))

    with contextlib.suppress(BrokenPipeError):  # answered before all of it was read
        connection.request(method, path, body)
    answer = connection.getresponse()

    assert answer.status == status
    assert json.loads(answer.read())["error"]
    connection.close()
    assert "UPPER" not in shared.nodes()
