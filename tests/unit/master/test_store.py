"""The store: each event once, acks that hold, questions that find what they should, failures that undo themselves."""

import sqlite3
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.peer import batch_of
from garrison.common.errors import ConfigError, StoreError
from garrison.common.events import Actor, Lane
from garrison.common.frames import ApplyReport, Batch, Hello, JobOutput, JobResult, RuleReport
from garrison.common.names import Digest, NodeName
from garrison.common.relay_frames import Forward
from garrison.master.jobs.records import JobNode, JobRequest, Status
from garrison.master.records import StoredAssignment
from garrison.master.store import EventFilter, Inflow, Store
from garrison.master.store.query import conditions, numbers, parse_lane, parse_when
from garrison.master.store.relays import Delivery
from garrison.master.store.schema import SCHEMA_VERSION

N1, N2 = NodeName("n1"), NodeName("n2")
KEY1, KEY2 = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store.db")
    yield made
    made.close()


def put(store, batch, node=N1):
    return store.submit_batch(node, batch).result(10)


def seqs(store, **wanted):
    return [e.seq for _, e in store.events_page(EventFilter(**wanted), after=0)]


# ---- events ----------------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([N1, N2]), st.sampled_from(["aa", "bb"]), st.integers(1, 40), st.integers(1, 10))))
def test_any_order_of_repeated_batches_stores_each_event_once_and_acks_the_highest(tmp_path_factory, sends):
    store = Store(tmp_path_factory.mktemp("store") / "store.db")
    sent: dict[tuple[str, str], set[int]] = {}
    for node, epoch, first, count in sends:
        numbers = list(range(first, first + count))
        stored = put(store, batch_of(numbers, epoch=epoch), node)
        mine = sent.setdefault((node, epoch), set())
        assert stored.new == len(set(numbers) - mine)
        mine.update(numbers)
        assert stored.acked == max(mine)

    found = [(e.node, e.epoch, e.seq) for _, e in store.events_page(EventFilter(), after=0)]

    assert len(found) == len(set(found))
    assert set(found) == {(node, epoch, seq) for (node, epoch), numbers in sent.items() for seq in numbers}
    for (node, epoch), numbers in sent.items():
        assert store.acked(NodeName(node), epoch) == {int(Lane.SHELL): max(numbers)}
    store.close()


def forward(store, batches, *, last, own=()):
    items = [b"as the relay sent it"] * (len(batches) + len(own))
    message = Forward(epoch="cc", lane=int(Lane.SHELL), seqs=list(range(last - len(items) + 1, last + 1)), items=items)
    return store.submit_forward(Delivery(NodeName("site-1"), message, batches, own)).result(10)


def test_what_a_relay_brings_is_stored_once_and_moves_no_ack_but_the_relays(store):
    put(store, batch_of([1, 2]))
    told = batch_of([9]).events[0]

    first = forward(store, [(N1, batch_of([2, 3, 4])), (N2, batch_of([1], epoch="e2"))], last=12, own=[(12, told)])
    again = forward(store, [(N1, batch_of([3, 4, 5]))], last=13)

    assert (first.new, first.repeated, first.acked) == (4, 1, 12)
    assert (again.new, again.repeated, again.acked) == (1, 2, 13)
    assert seqs(store, nodes=("n1",)) == [1, 2, 3, 4, 5]
    assert seqs(store, nodes=("site-1",)) == [12]
    assert store.acked(N1, "e1") == {1: 2}
    assert store.acked(N2, "e2") == {}
    assert (store.highest(N1, "e1"), store.highest(N2, "e2")) == (5, 1)
    assert store.acked(NodeName("site-1"), "cc") == {1: 13}


def test_relays_message_is_stored_whole_or_not_at_all(store):
    with pytest.raises(OverflowError):  # which the decoder would have refused
        forward(store, [(N1, batch_of([1])), (N2, batch_of([2**63], epoch="e2"))], last=2)
    put(store, batch_of([7]), N2)

    assert seqs(store) == [7]
    assert store.highest(N1, "e1") == 0
    assert forward(store, [(N1, batch_of([1])), (N2, batch_of([2], epoch="e2"))], last=2).new == 2
    assert sorted(seqs(store)) == [1, 2, 7]


def test_events_and_acks_survive_a_reopening(tmp_path):
    first = Store(tmp_path / "store.db")
    put(first, batch_of([3]))
    first.close()
    second = Store(tmp_path / "store.db")

    assert seqs(second) == [3]
    assert second.acked(N1, "e1") == {1: 3}
    second.close()


def test_what_an_event_says_of_its_node_epoch_and_lane_is_not_believed(store):
    lying = batch_of([7], node="n2", epoch="e1").events
    put(store, Batch(epoch="e9", lane=int(Lane.ALERT), seqs=[8], events=lying))

    ((_, e),) = store.events_page(EventFilter())

    assert (e.node, e.epoch, e.seq, e.lane) == ("n1", "e9", 8, Lane.ALERT)


def test_unreadable_event_is_kept_and_acked_and_its_neighbours_are_unharmed(store):
    good = batch_of([1]).events[0]

    stored = put(store, Batch(epoch="e1", lane=1, seqs=[1, 2, 3], events=[good, b"\xff\xff", good]))

    assert (stored.acked, stored.new, stored.quarantined) == (3, 3, 1)
    kinds = [e.kind for _, e in store.events_page(EventFilter())]
    assert kinds == ["exec", "quarantined", "exec"]


def test_limit_means_the_newest_and_after_means_the_next(store):
    put(store, batch_of(list(range(1, 11))))

    newest = store.events_page(EventFilter(), limit=3)
    following = store.events_page(EventFilter(), after=newest[0][0] - 2, limit=2)

    assert [e.seq for _, e in newest] == [8, 9, 10]
    assert [e.seq for _, e in following] == [7, 8]


def test_filters_are_joined_by_and_their_values_by_or(store):
    put(store, batch_of([1], kind="alert", lane=Lane.ALERT, policy="p", verdict="block", ts=100))
    put(store, batch_of([2], kind="alert", lane=Lane.ALERT, policy="q", verdict="audit", ts=200))
    put(store, batch_of([3], ts=300), N2)

    assert seqs(store, kinds=("alert",), policies=("q",)) == [2]
    assert seqs(store, verdicts=("block", "audit")) == [1, 2]
    assert seqs(store, nodes=("n1",), since_ns=200) == [2]
    assert seqs(store, until_ns=200) == [1]
    assert seqs(store, lanes=(int(Lane.SHELL),)) == [3]
    assert seqs(store, kinds=("alert",), nodes=("n2",)) == []


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (EventFilter(nodes=("n1",)), "events_spool"),
        (EventFilter(kinds=("alert",)), "events_kind"),
        (EventFilter(policies=("p",)), "events_policy"),
        (EventFilter(verdicts=("block",)), "events_verdict"),
        (EventFilter(exes=("/bin/sh",)), "events_exe"),
        (EventFilter(since_ns=5), "events_ts"),
        (EventFilter(until_ns=15), "events_ts"),
    ],
    ids=["node", "kind", "policy", "verdict", "actor", "since", "until"],
)
@pytest.mark.parametrize("newest", [True, False], ids=["newest", "next"])
def test_each_question_is_answered_by_an_index(store, wanted, index, newest):
    for seq, ts in ((1, 1), (2, 20)):
        put(store, batch_of([seq], kind="alert", policy="p", verdict="block", ts=ts, actor=Actor(exe="/bin/sh")))
    ((file, facts),) = [one for one in store.event_log.catalogue.files() if one[1].events]

    with store.event_log.catalogue.reading(file) as conn:
        conds = conditions(conn, wanted, facts)
        values = [value for one in conds for value in one.values]
        plan = conn.execute(f"EXPLAIN QUERY PLAN {numbers(conds, newest=newest)}", (*values, 0, 100, 10)).fetchall()

    assert f"SEARCH events USING COVERING INDEX {index}" in plan[0][3], plan


def test_rarest_condition_leads_whatever_it_is(store):
    put(store, batch_of(list(range(1, 1_000)), kind="exec", actor=Actor(exe="/bin/sh")))
    put(store, batch_of([1], kind="exec", actor=Actor(exe="/bin/sh")), N2)
    put(store, batch_of([2_000], kind="exit", actor=Actor(exe="/bin/sh")))
    ((file, facts),) = [one for one in store.event_log.catalogue.files() if one[1].events]

    with store.event_log.catalogue.reading(file) as conn:
        by_node = conditions(conn, EventFilter(nodes=("n2",), exes=("/bin/sh",), kinds=("exec",)), facts)
        by_kind = conditions(conn, EventFilter(nodes=("n1",), exes=("/bin/sh",), kinds=("exit",)), facts)

    assert (by_node[0].column, by_kind[0].column) == ("spool", "kind")


def test_newest_resource_sample_of_each_node_is_found(store):
    for seq, used in ((1, 10), (2, 20)):
        put(store, batch_of([seq], kind="metric", lane=Lane.METRIC, data={"mem_total_bytes": 100, "mem_used_bytes": used}))
    put(store, batch_of([3], kind="metric", lane=Lane.METRIC, data={"spool_bytes": 1}))

    (sample,) = store.newest_metrics(["n1", "n2"])

    assert sample.data["mem_used_bytes"] == 20


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("10m", 10**18 - 600 * 10**9),
        ("2h", 10**18 - 7_200 * 10**9),
        ("123", 123),
        ("1970-01-01T00:00:01", 10**9),
        ("1970-01-01T01:00:01+01:00", 10**9),
    ],
)
def test_times_are_read_in_every_form(text, ns):
    assert parse_when(text, 10**18) == ns


@pytest.mark.parametrize("text", ["", "yesterday", "10 m", "-5m", "9" * 30, "2026-13-01"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="is no time"):
        parse_when(text, 0)


def test_lanes_are_known_by_name_and_number():
    assert (parse_lane("alert"), parse_lane("METRIC"), parse_lane("2")) == (0, 4, 2)
    for wrong in ("5", "-1", "nosuch", "", "9" * 40):
        with pytest.raises(ConfigError, match="is no lane"):
            parse_lane(wrong)


# ---- the writer ------------------------------------------------------------------------------------------------------
def test_work_that_fails_is_undone_alone_and_what_else_was_queued_is_kept(store):
    def bad(conn):
        conn.execute("INSERT INTO rejected_keys (key, at) VALUES ('x', 1)")
        raise ValueError("no")

    before = store.submit_batch(N1, batch_of([1]))
    failing = store._writer.submit(bad)
    after = store.submit_batch(N1, batch_of([2]))

    assert (before.result(10).new, after.result(10).new) == (1, 1)
    with pytest.raises(ValueError, match="no"):
        failing.result(10)
    assert store.rejected_keys() == set()


def test_full_disk_fails_the_batch_without_an_ack_and_the_store_goes_on_when_there_is_room(store):
    put(store, batch_of([1]))
    conn = store.event_log._lanes[Lane.SHELL].connection()
    (pages,) = conn.execute("PRAGMA page_count").fetchone()
    conn.execute(f"PRAGMA max_page_count={pages}")
    failed = store.submit_batch(N1, batch_of(list(range(2, 2_000))))
    with pytest.raises(StoreError, match="cannot"):
        failed.result(10)
    assert store.acked(N1, "e1") == {int(Lane.SHELL): 1}
    assert seqs(store) == [1]

    conn.execute("PRAGMA max_page_count=1000000")

    assert put(store, batch_of([2])).acked == 2


def test_after_a_failed_batch_no_later_one_of_its_connection_is_stored(store):
    """An ack is cumulative: it would cover the one that failed, and the node would delete it."""
    put(store, batch_of([1]))
    conn = store.event_log._lanes[Lane.SHELL].connection()
    (pages,) = conn.execute("PRAGMA page_count").fetchone()
    conn.execute(f"PRAGMA max_page_count={pages}")
    connection, other = Inflow(), Inflow()
    first = store.submit_batch(N1, batch_of(list(range(2, 2_000))), connection)
    with pytest.raises(StoreError):
        first.result(10)
    conn.execute("PRAGMA max_page_count=1000000")

    with pytest.raises(StoreError, match="earlier batch"):
        store.submit_batch(N1, batch_of([2_000]), connection).result(10)

    assert store.acked(N1, "e1") == {int(Lane.SHELL): 1}
    assert store.submit_batch(N1, batch_of([2, 3]), other).result(10).acked == 3


def test_closed_store_takes_nothing_and_keeps_what_was_queued(tmp_path):
    store = Store(tmp_path / "store.db")
    queued = [store.submit_batch(N1, batch_of([n])) for n in range(1, 200)]
    store.close()

    assert all(f.result(0).new == 1 for f in queued)
    with pytest.raises(StoreError, match="closed"):
        store.submit_batch(N1, batch_of([999]))


def test_commits_are_synced(store):
    store.flush()
    conns = [store._writer._target._conn, *(log._conn for log in store.event_log._lanes.values())]

    assert [conn.execute("PRAGMA synchronous").fetchone() for conn in conns] == [(2,)] * 6
    assert [conn.execute("PRAGMA journal_mode").fetchone() for conn in conns] == [("wal",)] * 6


def test_store_of_a_newer_garrison_is_refused_and_not_touched(tmp_path):
    Store(tmp_path / "store.db").close()
    conn = sqlite3.connect(tmp_path / "store.db")
    conn.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    conn.close()

    with pytest.raises(StoreError, match="version"):
        Store(tmp_path / "store.db")


def test_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "store.db").write_bytes(b"not a database, but long enough to be read as one" * 100)

    with pytest.raises(StoreError):
        Store(tmp_path / "store.db")


# ---- nodes -----------------------------------------------------------------------------------------------------------
def test_key_belongs_to_one_node_and_a_name_to_one_key_until_it_is_retired(store):
    assert store.accept_nodes({N1: KEY1})
    assert not store.accept_nodes({N1: KEY1}), "already so"
    with pytest.raises(ConfigError, match="that of node n1"):
        store.accept_nodes({N2: KEY1})
    with pytest.raises(ConfigError, match="another key"):
        store.accept_nodes({N1: KEY2})

    assert store.retire_nodes([N1])
    assert not store.retire_nodes([N1])
    assert store.accept_nodes({N1: KEY2}), "a retired name may be set up anew"
    assert [(n.name, n.key, n.state) for n in store.nodes()] == [(N1, KEY2, "accepted")]


def test_retiring_an_unknown_node_is_an_error(store):
    with pytest.raises(StoreError, match="no node"):
        store.retire_nodes(["nosuch"])


def test_refused_assignment_leaves_generation_and_rules_and_the_highest_reported_one_stays(store):
    store.accept_nodes({N1: KEY1})
    applied = ApplyReport(generation=4, bundle="ab", state="applied", rules=[RuleReport(rule="r", status="enforced")])
    store.submit_report(N1, applied).result(10)
    store.submit_report(N1, ApplyReport(generation=0, bundle="", state="refused", error="why")).result(10)
    store.submit_hello(N1, Hello(node="n1", generation=2), "10.0.0.1:5").result(10)

    node = store.node("n1")

    assert node is not None
    assert (node.generation, node.apply_state, node.apply_error, node.address) == (2, "refused", "why", "10.0.0.1:5")
    assert [r.rule for r in store.node_rules("n1")] == ["r"]
    assert store.node_states()[N1].reported_generation == 4


def test_last_seen_never_goes_back(store):
    store.accept_nodes({N1: KEY1})
    store.submit_seen([("n1", 200)]).result(10)
    store.submit_seen([("n1", 100)]).result(10)

    assert store.node("n1").last_seen == 200


# ---- bundles ---------------------------------------------------------------------------------------------------------
def test_bundles_and_files_are_found_by_digest_and_the_newest_by_version(store):
    for version in (1, 3, 2):
        store.put_bundle(Digest(f"{version}" * 64), version, b"m%d" % version, {Digest("f" * 64): b"file"}, 5)

    newest = store.newest_bundle()

    assert newest is not None
    assert (newest.version, newest.metadata) == (3, b"m3")
    assert store.bundle_metadata(Digest("1" * 64)) == b"m1"
    assert store.bundle_metadata(Digest("f" * 64)) is None, "a file is no bundle"
    assert [store.blob(Digest("f" * 64)) for _ in range(2)] == [b"file"] * 2
    assert store.blob(Digest("0" * 64)) is None


def test_assignment_is_replaced_only_by_a_higher_generation_and_listeners_are_told_afterwards(store):
    told = []
    store.on_assignments(lambda nodes: told.append((nodes, store.assignment(N1).generation)))

    def assignment(generation):
        return StoredAssignment(node=N1, generation=generation, bundle=Digest("a" * 64), metadata=b"%d" % generation, at_ns=1)

    for generation in (2, 1, 3):
        store.put_assignments([assignment(generation)])

    assert store.assignments()[N1].metadata == b"3"
    assert told == [((N1,), 2), ((N1,), 2), ((N1,), 3)]


# ---- jobs ------------------------------------------------------------------------------------------------------------
def job(store, *nodes):
    request = JobRequest(nodes=list(nodes), argv=["true"])
    store.create_job("ab", request, [JobNode(node=n, status=Status.RUNNING) for n in nodes], time.time_ns() + 10**12)


def test_repeated_answer_and_output_are_kept_once_and_the_first_answer_stands(store):
    job(store, "n1")
    pieces = [store.submit_job_output(N1, JobOutput(job="ab", n=n, stream=1, data=b"x")).result(10) for n in (0, 1, 0)]
    answers = [store.submit_job_result(N1, JobResult(job="ab", exit_code=code)).result(10) for code in (0, 9)]

    assert pieces == [True, True, False]
    assert answers == [True, False]
    assert [(n.status, n.exit_code) for n in store.job("ab").nodes] == [(Status.DONE, 0)]
    assert [p.n for _, p in store.job_outputs("ab", after=0, limit=10)] == [0, 1]
    assert store.job("ab").ended


def test_output_and_answers_of_a_node_that_was_not_asked_are_dropped(store):
    job(store, "n1")

    assert not store.submit_job_output(N2, JobOutput(job="ab", n=0, stream=1, data=b"x")).result(10)
    assert not store.submit_job_result(N2, JobResult(job="ab", exit_code=0)).result(10)
    assert not store.submit_job_output(N1, JobOutput(job="cd", n=0, stream=1, data=b"x")).result(10)
    assert not store.job("ab").ended


def test_output_over_the_limit_is_counted_not_kept(store, monkeypatch):
    job(store, "n1")
    big = b"x" * (3 << 20)

    kept = [store.submit_job_output(N1, JobOutput(job="ab", n=n, stream=1, data=big)).result(10) for n in (0, 1)]

    assert kept == [True, False]
    assert store.job("ab").nodes[0].dropped_bytes == len(big)


def test_answer_that_comes_after_the_deadline_tells_more_and_is_kept(store):
    job(store, "n1", "n2")
    store.submit_job_end("ab", Status.LOST, "no answer").result(10)
    store.submit_job_result(N1, JobResult(job="ab", exit_code=0)).result(10)

    assert [n.status for n in store.job("ab").nodes] == [Status.DONE, Status.LOST]
    assert store.unfinished_jobs() == []
