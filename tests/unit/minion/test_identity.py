"""A node's way to its master may change; its master may not."""

import msgspec
import pytest
import zmq

from garrison.common.errors import ConfigError
from garrison.common.trust.join import load_join, save_join
from garrison.common.trust.keyset import make_keyset
from garrison.minion.identity import Identity


@pytest.fixture
def direct(tmp_path):
    return make_keyset(tmp_path / "m", tmp_path / "k", tenant="plant", masters=["tcp://10.0.0.1:4515"])


def by_relay(join, address="tcp://10.1.0.1:4515"):
    key = zmq.curve_keypair()[0].decode()
    return msgspec.structs.replace(join, masters=(address,), server_key=key, master_key=join.master)


@pytest.fixture
def opened(tmp_path):
    def open_(join):
        save_join(join, tmp_path / "offered.json")
        identity = Identity.open(tmp_path / "node", wanted_name="n1", join=tmp_path / "offered.json")
        identity.close()
        return identity

    return open_


def test_node_follows_a_join_file_to_the_same_master_on_another_way(tmp_path, direct, opened):
    key = opened(direct).public_key
    relayed = by_relay(direct)

    for join in (relayed, by_relay(direct, "tcp://10.2.0.1:4515"), direct, relayed):
        identity = opened(join)
        assert identity.join == join
        assert identity.public_key == key
        assert load_join(tmp_path / "node/join.json") == join


def test_relay_of_another_master_is_refused(tmp_path, direct, opened):
    opened(direct)
    other = make_keyset(tmp_path / "m2", tmp_path / "k2", tenant="plant", masters=["tcp://10.0.0.2:4515"])

    for join in (other, by_relay(other), msgspec.structs.replace(by_relay(direct), bundle_root=other.bundle_root)):
        with pytest.raises(ConfigError, match="another master"):
            opened(join)

    assert load_join(tmp_path / "node/join.json") == direct


def test_join_file_whose_relay_is_the_master_is_wrong(direct):
    with pytest.raises(ConfigError, match="key of its own"):
        msgspec.structs.replace(direct, master_key=direct.server_key).check()
    with pytest.raises(ConfigError):
        msgspec.structs.replace(direct, master_key="no key").check()


def test_join_file_without_a_relay_reads_as_before(tmp_path, direct):
    """Agents of before relays refuse fields that they do not know."""
    save_join(direct, tmp_path / "join.json")

    assert "master_key" not in (tmp_path / "join.json").read_text()
