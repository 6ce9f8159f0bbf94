"""docs/minion.md says what the code says."""

import re
from pathlib import Path

import pytest

from garrison.minion.config import MinionSettings
from garrison.minion.observers._sample import Sampler

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEXT = (DOCS / "minion.md").read_text()
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<default>.*?) \| (?P<meaning>.+) \|$", re.MULTILINE)
SETTINGS = {found["name"]: found["default"] for found in ROW.finditer(TEXT.partition("## Settings")[2].partition("```toml")[0])}


def test_every_setting_is_documented_and_nothing_else():
    assert set(SETTINGS) == set(MinionSettings.model_fields)


@pytest.mark.parametrize("name", sorted(MinionSettings.model_fields))
def test_documented_default_is_the_real_one(name):
    default = MinionSettings.model_fields[name].default
    text = SETTINGS[name]
    if isinstance(default, tuple):
        assert re.findall(r"`([^`]+)`", text) == list(default)
    elif default not in (None, ""):
        assert re.findall(r"`([^`]+)`", text) == [str(int(default) if isinstance(default, float) else default)]


def test_every_figure_of_a_sample_is_documented():
    sampler = Sampler()
    sampler.sample()
    names = {re.sub(r"^(disk|net|temp)\..+\.", ".", name) for name in sampler.sample()}

    assert [name for name in sorted(names) if name not in TEXT] == []
