"""Inventories are read by the real ansible-inventory; what is remembered is never wrong and never somebody else's."""

import os
import stat
from pathlib import Path

import pytest

from garrison.common.errors import InventoryError
from garrison.master.inventory import Inventory, find_inventory, read_inventory
from garrison.master.inventory import cache as cache_module


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GARRISON_INVENTORY", raising=False)
    return tmp_path / "cache" / "garrison"


@pytest.fixture
def inventory(tmp_path):
    folder = tmp_path / "inventory"
    (folder / "group_vars").mkdir(parents=True)
    (folder / "host_vars").mkdir()
    (folder / "hosts.ini").write_text("[web]\nweb-1 port=80\nweb-2\n[west:children]\nweb\n")
    (folder / "group_vars" / "web.yml").write_text("garrison_labels: {tier: front, metered: true, rack: 7}\n")
    return folder


def program_key(path):
    return cache_module.cache_key(path, Path("/bin/true"))


def test_hosts_groups_variables_and_labels_are_ansibles(inventory):
    read = read_inventory(inventory)

    assert read.hosts == ("web-1", "web-2")
    assert read.vars("web-1")["port"] == 80
    assert read.groups_of("web-1") == ("web", "west")
    assert read.labels("web-1") == {
        "group/web": "true",
        "group/west": "true",
        "kubearmor.io/hostname": "web-1",
        "tier": "front",
        "metered": "true",
        "rack": "7",
    }


def test_second_reading_is_remembered_and_equal(inventory, cache):
    first = read_inventory(inventory)
    [file] = cache.iterdir()
    second = read_inventory(inventory)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (second.hosts, second.labels("web-1")) == (first.hosts, first.labels("web-1"))


def test_what_is_remembered_is_really_used(inventory, cache):
    read_inventory(inventory)
    [file] = cache.iterdir()
    file.write_bytes(file.read_bytes().replace(b"web-2", b"web-9"))

    assert read_inventory(inventory).hosts == ("web-1", "web-9")


@pytest.mark.parametrize("change", ["hosts", "group_vars", "host_vars"])
def test_any_change_of_any_file_is_seen(inventory, change):
    read_inventory(inventory)
    if change == "hosts":
        (inventory / "hosts.ini").write_text("[web]\nweb-1 port=80\nweb-3\n[west:children]\nweb\n")
    elif change == "group_vars":
        (inventory / "group_vars" / "web.yml").write_text("garrison_labels: {tier: other}\n")
    else:
        (inventory / "host_vars" / "web-1.yml").write_text("garrison_labels: {tier: other}\n")

    read = read_inventory(inventory)

    assert read.labels("web-1")["tier"] == "other" if change != "hosts" else read.hosts == ("web-1", "web-3")


def test_variables_beside_a_single_file_count_too(inventory):
    before = program_key(inventory / "hosts.ini")
    (inventory / "group_vars" / "web.yml").write_text("garrison_labels: {tier: other}\n")

    assert program_key(inventory / "hosts.ini") != before


def test_file_of_another_user_or_open_to_others_is_not_trusted(inventory, cache):
    read_inventory(inventory)
    [file] = cache.iterdir()
    file.write_bytes(file.read_bytes().replace(b"web-2", b"evil-2"))
    file.chmod(0o644)

    assert read_inventory(inventory).hosts == ("web-1", "web-2")


def test_directory_that_others_may_write_is_not_used(inventory, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)

    assert read_inventory(inventory).hosts == ("web-1", "web-2")
    assert list(cache.iterdir()) == []


def test_damaged_memory_is_read_anew(inventory, cache):
    read_inventory(inventory)
    [file] = cache.iterdir()
    file.write_bytes(file.read_bytes()[:50])

    assert read_inventory(inventory).hosts == ("web-1", "web-2")


def test_script_is_run_every_time(inventory, tmp_path):
    script = inventory / "dynamic.sh"
    script.write_text(f'#!/bin/sh\necho x >>{tmp_path}/runs\necho \'{{"cloud": {{"hosts": ["vm-1"]}}}}\'\n')
    script.chmod(0o755)

    assert "vm-1" in read_inventory(inventory).hosts
    runs = len((tmp_path / "runs").read_text())
    read_inventory(inventory)

    assert len((tmp_path / "runs").read_text()) > runs


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plugin.yml", "plugin: ansible.builtin.constructed\n"),
        ("host_vars/web-1.yml", "secret: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  00\n"),
        ("group_vars/all.yml", "$ANSIBLE_VAULT;1.1;AES256\n00\n"),
    ],
)
def test_plugins_and_secrets_are_never_remembered(inventory, name, content):
    assert program_key(inventory) is not None

    (inventory / name).write_text(content)

    assert program_key(inventory) is None


def test_ansible_settings_in_the_environment_count(inventory, monkeypatch):
    before = program_key(inventory)
    monkeypatch.setenv("ANSIBLE_INVENTORY_IGNORE", ".ini")

    assert program_key(inventory) != before


def test_broken_inventory_is_an_error_that_says_what_ansible_says(inventory):
    (inventory / "broken.yml").write_text("all: [\n")

    with pytest.raises(InventoryError, match=r"broken\.yml"):
        read_inventory(inventory)


def test_missing_inventory_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InventoryError, match="does not exist"):
        read_inventory(tmp_path / "nosuch")


def test_inventory_is_found_by_environment_then_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not Path("/etc/garrison/inventory").exists():
        with pytest.raises(InventoryError, match="no inventory"):
            find_inventory()
    (tmp_path / "inventory").mkdir()
    assert find_inventory() == Path("inventory")
    monkeypatch.setenv("GARRISON_INVENTORY", "/srv/inv")
    assert find_inventory() == Path("/srv/inv")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("[a, b]", "not a mapping"),
        ("{x: [1]}", "not a plain value"),
        ("{x: '{{ y }}'}", "not a plain value"),
        ("{group/web: 'false'}", "may not set"),
        ("{kubearmor.io/hostname: other}", "may not set"),
    ],
)
def test_labels_that_cannot_be_signed_as_they_are_written_are_refused(inventory, labels, says):
    (inventory / "host_vars" / "web-1.yml").write_text(f"garrison_labels: {labels}\n")

    with pytest.raises(InventoryError, match=says):
        read_inventory(inventory).labels("web-1")


def test_host_that_cannot_be_a_node_is_refused_when_it_is_chosen():
    inventory = Inventory({"all": ((), ("web",)), "web": (("WEB_1", "web-2"), ())}, {})

    assert inventory.select("web-2") == ("web-2",)
    with pytest.raises(InventoryError, match="WEB_1"):
        inventory.select("web")


def test_unknown_host_is_refused_with_the_nearest_name(inventory):
    with pytest.raises(InventoryError, match="no host 'web-11'") as caught:
        read_inventory(inventory).vars("web-11")

    assert "web-1" in caught.value.hint


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"web": {"hosts": "x"}}', b'{"_meta": {"hostvars": []}}', b"\xff"])
def test_output_that_is_no_inventory_is_refused(raw):
    with pytest.raises(InventoryError, match="something else"):
        Inventory.from_json(raw, source="x")


def test_cycle_of_groups_ends():
    inventory = Inventory({"all": ((), ("a",)), "a": (("h1",), ("b",)), "b": (("h2",), ("a",))}, {})

    assert inventory.groups["b"] == ("h2", "h1")


def test_cache_without_a_home_is_no_cache(inventory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")

    assert read_inventory(inventory).hosts == ("web-1", "web-2")
    assert os.environ["XDG_CACHE_HOME"] == "/proc/nowhere"
