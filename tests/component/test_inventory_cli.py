"""`garrison inventory` as an operator runs it, on the shipped sample."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "inventory"
GARRISON = str(Path(sys.prefix) / "bin" / "garrison")


def garrison(*args, **env):
    environment = {**os.environ, "GARRISON_INVENTORY": str(SAMPLE), "NO_COLOR": "1", "COLUMNS": "160", **env}
    return subprocess.run([GARRISON, *args], capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_list_shows_hosts_groups_and_labels():
    done = garrison("inventory", "list", "edge")
    document = json.loads(garrison("inventory", "list", "edge", "--json").stdout)

    assert done.returncode == 0
    assert "site=north" in done.stdout
    assert [host["name"] for host in document["hosts"]] == ["edge-1", "edge-2"]
    assert document["hosts"][0]["labels"]["group/field"] == "true"


def test_pattern_that_means_nobody_ends_with_2_and_names_the_groups():
    done = garrison("inventory", "list", "nosuch")

    assert done.returncode == 2
    assert "'nosuch' matches no host" in done.stderr
    assert "gateway" in done.stderr
    assert done.stdout == ""


def test_part_of_a_pattern_that_means_nobody_is_a_warning_on_stderr():
    done = garrison("inventory", "list", "edge:nosuch", "--json")

    assert done.returncode == 0
    assert "'nosuch'" in done.stderr
    assert json.loads(done.stdout)["hosts"]


def test_graph_shows_every_group_with_its_hosts():
    text = garrison("inventory", "graph").stdout
    document = json.loads(garrison("inventory", "graph", "--json").stdout)

    assert "@edge:\n    edge-1\n    edge-2\n" in text
    assert document["cloud"] == {"children": ["gateway", "database"], "hosts": []}


def test_host_shows_labels_and_variables():
    document = json.loads(garrison("inventory", "host", "edge-1", "--json").stdout)

    assert document["groups"] == ["edge", "field"]
    assert document["vars"] == {"garrison_labels": {"tier": "edge", "site": "north"}}
    assert garrison("inventory", "host", "edge-9").returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_completion_script(shell):
    done = garrison(_GARRISON_COMPLETE=f"{shell}_source")

    assert done.returncode == 0
    assert "_GARRISON_COMPLETE" in done.stdout
