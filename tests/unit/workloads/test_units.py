"""What unit files say of units that run and of units that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.node import FakeNode
from garrison.minion.workloads.units import UnitFacts, parse_unit, read_units


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        pytest.param("[X-Garrison]\nLabels=app=web tier=front", [("app", "web"), ("tier", "front")], id="two in a line"),
        pytest.param("[X-Garrison]\nLabels=a=1\nLabels=b=2", [("a", "1"), ("b", "2")], id="lines add up"),
        pytest.param("[X-Garrison]\nLabels=a=1\nLabels=\nLabels=b=2", [("b", "2")], id="an empty line begins anew"),
        pytest.param("[X-Garrison]\nLabels=a=1 \\\n# why\n  b=2", [("a", "1"), ("b", "2")], id="continued over a comment"),
        pytest.param("[X-Garrison]\nLabels='a=one two' b=", [("a", "one two"), ("b", "")], id="quotes and no value"),
        pytest.param("[X-Garrison]\nLabels='a=1", [], id="a quote that does not end"),
        pytest.param("[X-Garrison]\nLabels=word a=1", [("a", "1")], id="a word that is no label"),
        pytest.param("[Service]\nLabels=a=1\n[Install]\nLabels=b=2", [], id="other sections"),
        pytest.param("Labels=a=1\n; [X-Garrison]\nLabels=b=2", [], id="no section"),
    ],
)
def test_labels_are_read_as_systemd_reads_lists(text: str, labels: list[tuple[str, str]]) -> None:
    assert list(parse_unit(text).labels) == labels


@pytest.mark.parametrize(
    ("name", "text", "cgroup"),
    [
        ("nginx.service", "", "/system.slice/nginx.service"),
        ("web.service", "[Service]\nSlice=machine.slice", "/machine.slice/web.service"),
        ("web.service", "[Service]\nSlice=shop-front.slice", "/shop.slice/shop-front.slice/web.service"),
        ("web.service", "[Service]\nSlice=-.slice", "/web.service"),
        ("web.service", "[Service]\nSlice=../../etc", ""),
        ("web.service", "[Service]\nSlice=a--b.slice", ""),
        ("getty@tty1.service", "", "/system.slice/system-getty.slice/getty@tty1.service"),
        ("serial-getty@ttyS0.service", "", "/system.slice/system-serial\\x2dgetty.slice/serial-getty@ttyS0.service"),
        ("pool@7.service", "[Service]\nSlice=pool-%i.slice", "/pool.slice/pool-7.slice/pool@7.service"),
    ],
)
def test_cgroup_of_a_unit_that_does_not_run_is_where_systemd_will_make_it(
    tmp_path: Path, name: str, text: str, cgroup: str
) -> None:
    node = FakeNode(tmp_path)
    node.unit(f"{name.partition('@')[0]}@.service" if "@" in name else name, text)

    assert read_units(tmp_path).cgroup(name) == cgroup


def test_files_of_more_important_folders_win_and_drop_ins_add_to_them(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.unit("web.service", "[X-Garrison]\nLabels=from=package", "usr/lib/systemd/system")
    node.unit("web.service", "[X-Garrison]\nLabels=from=admin", "etc/systemd/system")
    node.unit("web.service.d/20-more.conf", "[X-Garrison]\nLabels=more=2", "etc/systemd/system")
    node.unit("web.service.d/10-more.conf", "[X-Garrison]\nLabels=more=1", "usr/lib/systemd/system")
    node.unit("web.service.d/20-more.conf", "[X-Garrison]\nLabels=more=hidden", "usr/lib/systemd/system")

    assert read_units(tmp_path).facts("web.service").labels == (("from", "admin"), ("more", "1"), ("more", "2"))


def test_an_instance_has_the_labels_of_its_template_and_of_its_own_drop_ins(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.unit("db@.service", "[X-Garrison]\nLabels=app=db")
    node.unit("db@east.service.d/x.conf", "[X-Garrison]\nLabels=site=east")
    node.unit("multi-user.target.wants/db@west.service", "")
    units = read_units(tmp_path)

    assert units.facts("db@east.service").labels == (("app", "db"), ("site", "east"))
    assert units.facts("db@west.service").labels == (("app", "db"),)
    assert units.names() == {"db@west.service"}


def test_aliases_masked_units_and_links_to_nowhere_are_no_units(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.unit("true.service", "[X-Garrison]\nLabels=a=1")
    folder = tmp_path / "etc/systemd/system"
    (folder / "alias.service").symlink_to("true.service")
    (folder / "masked.service").symlink_to("/dev/null")
    (folder / "lost.service").symlink_to("nowhere.service")
    (folder / "loop.service").symlink_to("loop.service")
    node.file("srv/linked.service", "[X-Garrison]\nLabels=a=2")
    (folder / "linked.service").symlink_to(tmp_path / "srv/linked.service")

    units = read_units(tmp_path)

    assert set(units.files) & {"alias.service", "masked.service"} == set()
    assert units.facts("linked.service").labels == (("a", "2"),)
    assert units.facts("lost.service") == UnitFacts()
