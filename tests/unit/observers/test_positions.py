"""Positions survive what happens to files, and never run ahead of what is durable."""

import json
import stat

import pytest

from garrison.minion.observers._positions import SETTLE_S, Positions


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "kernel.json"


def test_position_is_written_only_when_it_has_settled(path):
    positions = Positions(path)

    positions.note({"seq": 1}, 0.0)
    positions.note({"seq": 2}, SETTLE_S / 2)
    assert not path.exists()
    positions.note({"seq": 3}, SETTLE_S)

    assert Positions(path).load() == {"seq": 1}, "seq 2 and 3 were emitted too lately to be safe"


def test_steady_stream_of_positions_is_written_again_and_again(path):
    positions, now = Positions(path), 0.0
    for seq in range(100):
        positions.note(seq, now)
        now += SETTLE_S / 4

    assert 99 - Positions(path).load() <= 8


def test_clean_stop_writes_the_last_position_at_once(path):
    positions = Positions(path)
    positions.note(1, 0.0)

    positions.settle(2)

    assert Positions(path).load() == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99, "position": 1}', b"\xff", b"[" * 100_000])
def test_damaged_file_counts_as_none(path, content):
    path.parent.mkdir()
    path.write_bytes(content)

    assert Positions(path).load() is None


def test_directory_that_cannot_be_written_shows_and_raises_nothing(tmp_path):
    (tmp_path / "state").write_text("a file where the directory should be")
    positions = Positions(tmp_path / "state" / "x.json")

    positions.settle(1)

    assert "cannot be written" in positions.error


def test_nothing_is_written_when_nothing_changed(path):
    positions = Positions(path)
    positions.settle(1)
    before = path.stat().st_ino

    for now in range(100):
        positions.note(1, float(now))

    assert path.stat().st_ino == before
    assert json.loads(path.read_text())["position"] == 1
