"""The master's settings: defaults, refusals, and that the manual has every one of them."""

from pathlib import Path

import pytest

from garrison.common.errors import ConfigError
from garrison.common.settings import load_settings
from garrison.master.config import MasterSettings

ROOT = Path(__file__).resolve().parents[3]


def load(**flags):
    return load_settings(MasterSettings, file=None, default_file=Path("/nonexistent"), flags=flags)


def test_socket_is_in_the_directory_unless_named():
    assert load(directory="/srv/g").socket_path == Path("/srv/g/api.sock")
    assert load(socket="/run/g.sock").socket_path == Path("/run/g.sock")


@pytest.mark.parametrize("listen", ["tcp://*:4515", "tcp://10.0.0.1:1", "tcp://[::1]:4515"])
def test_address_to_listen_on_is_tcp_with_a_port(listen):
    assert load(listen=listen).listen == listen


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"listen": "ipc:///tmp/x"}, "listen"),
        ({"listen": "tcp://*"}, "listen"),
        ({"late_after_s": 90}, "offline_after_s"),
        ({"socket": "/" + "x" * 120}, "--socket"),
    ],
)
def test_setting_that_cannot_work_is_refused_by_name(flags, says):
    with pytest.raises(ConfigError, match=says):
        load(**flags)


def test_manual_lists_every_setting_with_its_default():
    text = (ROOT / "docs" / "master.md").read_text()

    for name, field in MasterSettings.model_fields.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}`")), "")
        assert row, f"{name} is not in docs/master.md"
        if field.default is not None:
            default = field.default
            assert f"`{default:g}`" in row if isinstance(default, float) else f"`{default}`" in row
