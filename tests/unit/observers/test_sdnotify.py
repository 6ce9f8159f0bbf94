"""The service manager is told over a real socket, and its absence stops nothing."""

import secrets
import socket

import pytest

from garrison.common.sdnotify import notify


def listener(address):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(5)
    return sock


def test_text_arrives_at_a_path(tmp_path, monkeypatch):
    with listener(str(tmp_path / "n")) as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))

        assert notify("READY=1\nSTATUS=enforcing") is True
        assert sock.recv(100) == b"READY=1\nSTATUS=enforcing"


def test_text_arrives_at_an_abstract_name(monkeypatch):
    name = f"garrison-test-{secrets.token_hex(8)}"
    with listener("\0" + name) as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)

        assert notify("WATCHDOG=1") is True
        assert sock.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("value", [None, "", "@", "/", "relative", "/nonexistent/socket", "/" + "x" * 200])
def test_without_a_listener_it_says_false_and_raises_nothing(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)

    assert notify("READY=1") is False


def test_full_socket_does_not_block(tmp_path, monkeypatch):
    with listener(str(tmp_path / "n")):
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))

        assert False in {notify("WATCHDOG=1") for _ in range(100_000)}
