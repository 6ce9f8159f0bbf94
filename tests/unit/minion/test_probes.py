"""Probes ask for real, say what is wrong, and end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from garrison.minion import probes
from garrison.minion.probes import Probes, local_probes


def test_only_what_worked_before_is_asked_again():
    asked = []

    def probe(name, trouble):
        return lambda: asked.append(name) or trouble

    before = Probes({"good": probe("good", ""), "bad": probe("bad", "refused")})

    working = before.that_work()

    assert sorted(asked) == ["bad", "good"]
    assert list(working.asked) == ["good"]
    assert working.trouble() == ""


def test_trouble_is_named_with_its_probe():
    assert Probes({"a": lambda: "", "ssh": lambda: "refused"}).trouble() == "ssh: refused"


def test_files_programs_and_the_deadman_work_here_and_are_named_when_not(tmp_path):
    (tmp_path / "node").write_text("edge-1\n")
    asked = local_probes(tmp_path).asked

    assert [asked[name]() for name in ("files", "programs", "deadman")] == ["", "", ""]
    assert not (tmp_path / ".probe").exists()
    assert "No such file" in local_probes(tmp_path / "gone").asked["files"]()


def test_deadman_that_cannot_be_started_is_trouble(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "interpreter", lambda: ["/nonexistent/python"])
    assert "cannot be started" in local_probes(tmp_path).asked["deadman"]()

    monkeypatch.setattr(probes, "interpreter", lambda: ["/bin/false"])
    assert "ends with 1" in local_probes(tmp_path).asked["deadman"]()


@contextmanager
def server(answer: bytes, kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    listening = socket.socket(socket.AF_INET, kind)
    listening.bind(("127.0.0.1", 0))

    def serve_tcp() -> None:
        with suppress(OSError):  # nobody came
            connection, _ = listening.accept()
            connection.sendall(answer)
            connection.close()

    if kind == socket.SOCK_STREAM:
        listening.listen()
        threading.Thread(target=serve_tcp, daemon=True).start()
    yield listening.getsockname()[1]
    listening.close()


@pytest.mark.parametrize(("greeting", "good"), [(b"SSH-2.0-test\r\n", True), (b"220 mail", False), (b"", False)])
def test_sshd_counts_by_its_greeting_not_by_its_port(greeting, good):
    with server(greeting) as port:
        assert (probes._ssh(("127.0.0.1", port)) == "") is good


def test_port_that_nobody_listens_on_is_trouble():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

    assert "refused" in probes._ssh(("127.0.0.1", port))


def test_name_servers_that_are_not_there_are_trouble_and_cost_little(tmp_path, monkeypatch):
    conf = tmp_path / "resolv.conf"
    assert "No such file" in probes._dns(conf)
    conf.write_text("search lan\n")
    assert "names no server" in probes._dns(conf)
    monkeypatch.setattr(probes, "_DNS_S", 0.2)
    conf.write_text("nameserver 127.0.0.254\nnameserver ::1\n")
    assert probes._dns(conf) != ""
