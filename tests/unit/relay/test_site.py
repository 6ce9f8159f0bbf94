"""Which nodes a relay may serve, and what it holds for them: the master's word, on disk."""

import pytest
import zmq

from garrison.common import limits
from garrison.common.errors import ConfigError
from garrison.common.relay_frames import RelayAssignment, RelayNode, RelayNodes
from garrison.relay.site import Site

KEY1, KEY2 = (zmq.curve_keypair()[0].decode() for _ in range(2))
BOTH = RelayNodes(nodes=[RelayNode(node="n1", key=KEY1), RelayNode(node="n2", key=KEY2)])
ONE = RelayNodes(nodes=[RelayNode(node="n1", key=KEY1)])


def held(node="n1", generation=1, frame=b"f"):
    return RelayAssignment(node=node, generation=generation, frame=frame)


def test_nobody_is_let_in_before_the_master_said_so(tmp_path):
    site = Site(tmp_path)

    assert not site.knock(KEY1, "10.0.0.1")
    assert [knock.key for knock in site.take_knocks()] == [KEY1]
    assert site.take_knocks() == [], "told once"


def test_list_replaces_the_one_before_and_outlives_the_process(tmp_path):
    site = Site(tmp_path)
    assert site.set_nodes(BOTH) == []
    assert site.set_nodes(ONE) == ["n2"]

    again = Site(tmp_path)

    assert again.names == ["n1"]
    assert again.knock(KEY1, "a")
    assert again.node_of(KEY2) is None


def test_node_with_another_key_is_another_node(tmp_path):
    site = Site(tmp_path)
    site.set_nodes(ONE)

    assert site.set_nodes(RelayNodes(nodes=[RelayNode(node="n1", key=KEY2)])) == ["n1"]
    assert site.node_of(KEY1) is None


@pytest.mark.parametrize("wrong", [RelayNode(node="../x", key=KEY1), RelayNode(node="n1", key="no key")])
def test_wrong_list_leaves_the_one_before(tmp_path, wrong):
    site = Site(tmp_path)
    site.set_nodes(ONE)

    with pytest.raises(ConfigError):
        site.set_nodes(RelayNodes(nodes=[wrong]))

    assert site.names == Site(tmp_path).names == ["n1"]


def test_only_a_newer_assignment_replaces_one(tmp_path):
    site = Site(tmp_path)
    site.set_nodes(ONE)
    assert site.keep_assignment(held(generation=5, frame=b"five"))

    assert not site.keep_assignment(held(generation=4, frame=b"four"))
    assert not site.keep_assignment(held(generation=5, frame=b"other"))
    assert not site.keep_assignment(held(node="n2", generation=9)), "a node that is not of this site"

    assert Site(tmp_path).assignment("n1").frame == b"five"


def test_assignment_goes_with_its_node(tmp_path):
    site = Site(tmp_path)
    site.set_nodes(BOTH)
    site.keep_assignment(held("n2"))

    site.set_nodes(ONE)
    site.set_nodes(BOTH)

    assert site.assignment("n2") is None
    assert Site(tmp_path).assignment("n2") is None


def test_strangers_cost_bounded_memory(tmp_path):
    site = Site(tmp_path)
    for number in range(2 * limits.PENDING_KEYS_MAX):
        site.knock(f"key-{number}", "a")

    assert len(site.take_knocks()) == limits.PENDING_KEYS_MAX


def test_list_that_cannot_be_read_is_an_error_and_not_an_empty_site(tmp_path):
    (tmp_path / "nodes.json").write_text("{")

    with pytest.raises(ConfigError, match=r"nodes\.json"):
        Site(tmp_path)
