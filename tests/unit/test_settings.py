"""Where a daemon's settings come from, and what is refused."""

from pathlib import Path

import pytest

from garrison.common.errors import ConfigError
from garrison.common.settings import load_settings
from garrison.minion.config import MinionSettings

ABSENT = Path("/nonexistent/minion.toml")


def load(file: Path | None = None, **flags: object) -> MinionSettings:
    return load_settings(MinionSettings, file=file, default_file=ABSENT, flags=flags)


def test_defaults_hold_when_nothing_is_given():
    assert load().resource_interval_s == 30.0


def test_flags_win_over_environment_and_environment_over_file(tmp_path, monkeypatch):
    file = tmp_path / "minion.toml"
    file.write_text('node = "from-file"\nresource_interval_s = 7\nself_interval_s = 8\n')
    monkeypatch.setenv("GARRISON_MINION_NODE", "from-env")
    monkeypatch.setenv("GARRISON_MINION_RESOURCE_INTERVAL_S", "9")

    settings = load(file, node="from-flag")

    assert (settings.node, settings.resource_interval_s, settings.self_interval_s) == ("from-flag", 9.0, 8.0)


def test_flag_that_was_not_given_does_not_hide_the_file(tmp_path):
    file = tmp_path / "minion.toml"
    file.write_text('node = "from-file"\n')

    assert load(file, node=None).node == "from-file"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resource_intervall_s = 3\n", "resource_intervall_s is no setting"),
        ("resource_interval_s = 0\n", "setting resource_interval_s is 0"),
        ("resource_interval_s = \n", "cannot be read as TOML"),
    ],
)
def test_wrong_file_is_named_with_its_key(tmp_path, text, says):
    file = tmp_path / "minion.toml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=says):
        load(file)


def test_misspelt_environment_variable_is_refused(monkeypatch):
    monkeypatch.setenv("GARRISON_MINION_NOED", "x")

    with pytest.raises(ConfigError, match="GARRISON_MINION_NOED is no setting"):
        load()


def test_list_from_environment_that_is_not_json_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("GARRISON_MINION_ERROR_FILES", "not json")

    with pytest.raises(ConfigError, match="error_files"):
        load()


def test_named_file_that_is_absent_is_an_error_with_a_remedy():
    with pytest.raises(ConfigError, match="no such file") as caught:
        load(ABSENT)
    assert "--config" in caught.value.hint
