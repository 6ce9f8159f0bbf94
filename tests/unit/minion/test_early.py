"""Early enforcement never holds a boot up, never fails it, and leaves what came of it for the agent to tell."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from garrison.minion import early
from garrison.minion.config import MinionSettings


@pytest.fixture
def settings(tmp_path: Path) -> MinionSettings:
    return MinionSettings(directory=tmp_path / "data", runtime_dir=tmp_path / "run", backends=("audit",))


def told(settings: MinionSettings) -> list[tuple[object, object, int]]:
    return [(e.data["outcome"], e.data["detail"], e.severity) for e in early.take_outcome(settings.runtime_dir)]


def test_node_without_a_data_directory_gets_none_and_nothing_is_enforced(settings):
    assert early.enforce_early(settings).state == "nothing"

    assert not settings.directory.exists()
    assert [(state, severity) for state, _, severity in told(settings)] == [("nothing", 3)]
    assert told(settings) == [], "told once"


def test_attempt_that_hangs_is_killed_at_the_deadline_and_told(settings, monkeypatch):
    def hang(*_):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        time.sleep(3600)

    monkeypatch.setattr(early, "_attempt", hang)

    outcome = early.enforce_early(settings, deadline_s=1)

    assert outcome.state == "failed"
    assert told(settings) == [("failed", "not done within 1 s; killed", 8)]
    _, status = os.waitpid(-1, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.parametrize("how", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 1 / 0, lambda: os._exit(3)])
def test_attempt_that_dies_is_told(settings, monkeypatch, how):
    monkeypatch.setattr(early, "_attempt", lambda *_: how())

    assert early.enforce_early(settings).state == "failed"
    assert [(state, severity) for state, _, severity in told(settings)] == [("failed", 8)]


@pytest.mark.parametrize(("detail", "severity"), [("", 3), ("but for rules about some workloads: no cgroups", 8)])
def test_enforcement_without_all_workloads_is_told_louder(settings, monkeypatch, detail, severity):
    outcome = early.Outcome(state="enforced", generation=1, detail=detail)
    monkeypatch.setattr(early, "_attempt", lambda *_: outcome)

    assert early.enforce_early(settings).state == "enforced"
    assert told(settings) == [("enforced", detail, severity)]


def test_runtime_directory_that_cannot_be_made_stops_nothing(settings, tmp_path):
    (tmp_path / "file").write_text("")
    broken = settings.model_copy(update={"runtime_dir": tmp_path / "file" / "run"})

    assert early.enforce_early(broken).state == "failed"


def test_outcome_that_cannot_be_read_is_told_as_a_failure(settings):
    settings.runtime_dir.mkdir()
    (settings.runtime_dir / "early.json").write_bytes(b"{")

    assert [state for state, _, _ in told(settings)] == ["failed"]
