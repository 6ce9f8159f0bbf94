"""The relay's settings: the manual has every one of them."""

from pathlib import Path

import pytest

from garrison.common.errors import ConfigError
from garrison.common.settings import load_settings
from garrison.relay.config import RelaySettings

ROOT = Path(__file__).resolve().parents[3]


def load(**flags):
    return load_settings(RelaySettings, file=None, default_file=Path("/nonexistent"), flags=flags)


@pytest.mark.parametrize("flags", [{"listen": "tcp://*"}, {"spool_max_bytes": 1_000}, {"late_after_s": 0}])
def test_setting_that_cannot_work_is_refused_by_name(flags):
    with pytest.raises(ConfigError, match=next(iter(flags))):
        load(**flags)


def test_name_is_the_hosts_unless_given():
    assert load(name="site-1").wanted_name == "site-1"
    assert load().wanted_name == load().wanted_name.lower() != ""


def test_manual_lists_every_setting_with_its_default():
    text = (ROOT / "docs" / "relay.md").read_text()

    for name, field in RelaySettings.model_fields.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}`")), "")
        assert row, f"{name} is not in docs/relay.md"
        if field.default not in {None, ""}:
            default = field.default
            assert f"`{default:g}`" in row if isinstance(default, float) else f"`{default}`" in row
