"""Who is on, who is silent, who is a clone; whose key is whose."""

import pytest

from garrison.common import limits
from garrison.common.errors import ConfigError
from garrison.common.frames import Hello
from garrison.common.names import NodeName, fingerprint
from garrison.master.collector.keys import KeyRing
from garrison.master.collector.sessions import Admission, Session, Sessions, node_state
from garrison.master.store import Store

N1 = NodeName("n1")
KEY1, KEY2 = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"


def session(routing_id=b"r1", instance="aa"):
    return Session(node=N1, routing_id=routing_id, hello=Hello(node=N1, instance=instance), address="a")


def state(**changes):
    facts = {"accepted": True, "connected": True, "silent_s": 0.0, "late_after_s": 20.0, "offline_after_s": 60.0}
    return node_state(**{**facts, **changes})


def test_silence_makes_a_node_late_then_offline():
    assert [state(silent_s=s) for s in (0, 19.9, 20, 59.9, 60)] == ["online", "online", "late", "late", "offline"]


def test_closed_connection_is_late_at_once_and_a_node_never_seen_is_offline():
    assert state(connected=False) == "late"
    assert state(connected=False, silent_s=float("inf")) == "offline"


def test_retired_node_is_retired_whatever_it_does():
    assert state(accepted=False) == "retired"


@pytest.mark.parametrize(
    ("routing_id", "instance", "admission"),
    [
        (b"r1", "aa", Admission.REPLACE),
        (b"r2", "aa", Admission.REPLACE),
        (b"r1", "bb", Admission.REPLACE),
        (b"r2", "bb", Admission.PROBE),
        (b"r2", "", Admission.PROBE),
    ],
    ids=["same-again", "reconnected", "restarted-on-the-connection", "other-agent", "no-instance"],
)
def test_second_hello_is_judged_by_instance_and_connection(routing_id, instance, admission):
    sessions = Sessions()
    assert sessions.judge(N1, b"r1", "aa") is Admission.ADMIT
    sessions.begin(session())

    assert sessions.judge(N1, routing_id, instance) is admission


def test_two_agents_without_an_instance_are_not_taken_for_one():
    sessions = Sessions()
    sessions.begin(session(instance=""))

    assert sessions.judge(N1, b"r2", "") is Admission.PROBE


def test_new_session_ends_the_one_it_replaces_and_ending_the_old_one_later_changes_nothing():
    sessions, old, new = Sessions(), session(), session(b"r2")
    sessions.begin(old)

    assert sessions.begin(new) is old
    assert not sessions.end(old)
    assert sessions.of_node("n1") is new
    assert sessions.of_connection(b"r1") is None
    assert sessions.end(new)
    assert sessions.all() == []


@pytest.fixture
def keys(tmp_path):
    store = Store(tmp_path / "store.db")
    yield KeyRing(store)
    store.close()


def test_strangers_are_remembered_up_to_a_limit_and_the_longest_silent_is_forgotten(keys):
    strangers = [f"{n:04d}".ljust(40, "x") for n in range(limits.PENDING_KEYS_MAX + 1)]
    keys.knock(strangers[0], "a")
    keys.knock(strangers[1], "a")
    keys.knock(strangers[0], "b")
    for key in strangers[2:]:
        assert not keys.knock(key, "a")

    pending = {p.key: p for p in keys.pending()}

    assert len(pending) == limits.PENDING_KEYS_MAX
    assert strangers[1] not in pending
    assert (pending[strangers[0]].attempts, pending[strangers[0]].address) == (2, "b")


def test_key_gets_in_only_between_acceptance_and_retirement(keys):
    print_ = fingerprint(KEY1.encode())
    assert not keys.knock(KEY1, "a")
    keys.accept(N1, print_)
    assert keys.knock(KEY1, "a")
    assert keys.node_of(KEY1) == N1
    keys.retire("n1")

    assert not keys.knock(KEY1, "a")
    assert keys.node_of(KEY1) is None
    assert keys.pending() == [], "a retired node is known; it is not pending"


def test_node_is_locked_out_before_that_is_durable_and_let_in_again_when_it_failed(keys):
    keys.accept(N1, KEY1)

    keys.lock_out([N1, "nosuch"])
    assert not keys.knock(KEY1, "a")
    assert keys.node_of(KEY1) is None
    assert keys.pending() == []

    keys.reload()
    assert keys.knock(KEY1, "a")


def test_many_keys_are_accepted_together_or_none_of_them(keys):
    assert keys.accept_all({N1: KEY1, NodeName("n2"): KEY2}) == 2
    assert keys.accept_all({N1: KEY1, NodeName("n2"): KEY2}) == 0
    assert keys.node_of(KEY2) == "n2"
    assert keys.retire_all(["n1", "n2"]) == 2

    with pytest.raises(ConfigError):
        keys.accept_all({N1: KEY1, NodeName("n3"): KEY2})
    assert keys.node_of(KEY1) is None
    assert not keys.has_node("n1")


def test_name_that_is_set_up_anew_forgets_its_former_key(keys):
    keys.accept(N1, KEY1)
    keys.retire("n1")
    keys.accept(N1, KEY2)

    assert keys.node_of(KEY2) == N1
    assert not keys.knock(KEY1, "a")
    assert [p.key for p in keys.pending()] == [KEY1], "it is nobody's any more"


def test_rejected_key_is_not_pending_again_but_can_be_accepted_later(keys):
    keys.knock(KEY2, "a")
    keys.reject(fingerprint(KEY2.encode()))
    assert not keys.knock(KEY2, "a")
    assert keys.pending() == []

    assert keys.accept(N1, fingerprint(KEY2.encode()))
    assert keys.knock(KEY2, "a")


def test_fingerprint_that_nobody_showed_and_text_that_is_no_key_are_refused(keys):
    with pytest.raises(ConfigError, match="has knocked"):
        keys.accept(N1, "SHA256:0000")
    with pytest.raises(ConfigError, match="no CURVE public key"):
        keys.accept(N1, "short")
    keys.accept(N1, KEY1)
    with pytest.raises(ConfigError, match="that of node n1"):
        keys.reject(KEY1)
    assert keys.knock(KEY1, "a")
