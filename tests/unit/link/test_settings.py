"""Settings refuse what cannot work and never show the secret key; endpoints are taken apart the same way everywhere."""

import pytest

from garrison.common.errors import ConfigError
from garrison.minion.link.causes import split_endpoint
from garrison.minion.link.settings import LinkSettings

KEYS = {"server_key": b"s" * 40, "public_key": b"p" * 40, "secret_key": b"x" * 40}


def test_secret_key_is_not_in_the_text():
    assert "x" * 10 not in repr(LinkSettings(masters=("tcp://a:1",), **KEYS))


@pytest.mark.parametrize("name", KEYS)
def test_key_of_the_wrong_length_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=name):
        LinkSettings(masters=("tcp://a:1",), **(KEYS | {name: b"short"}))


def test_no_master_is_refused():
    with pytest.raises(ConfigError, match="master"):
        LinkSettings(masters=(), **KEYS)


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("tcp://10.0.0.1:4515", ("10.0.0.1", 4515)),
        ("tcp://[fd00::1]:4515", ("fd00::1", 4515)),
        ("tcp://host", None),
        ("tcp://:1", None),
        ("ipc:///run/x", None),
        ("", None),
    ],
)
def test_endpoint_is_taken_apart_or_refused(endpoint, parts):
    assert split_endpoint(endpoint) == parts
