"""Values come out of a bolt file as of one transaction, and no file can mislead, hold up or exhaust its reader."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.bolt import PAGE_BYTES, write_bolt
from garrison.common import limits
from garrison.minion.workloads.bolt import BoltError, BoltFile
from garrison.minion.workloads.engines import containerd_labels, podman_config_in_bolt, podman_facts

DATA = Path(__file__).resolve().parents[2] / "data/workloads"
MANY = {b"key-%04d" % n: b"value-%d" % n for n in range(600)}


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A database that Podman 4.3 wrote, with one container."""
    path = tmp_path / "bolt_state.db"
    path.write_bytes(gzip.decompress((DATA / "podman-4.3-bolt_state.db.gz").read_bytes()))
    return path


def look(path: Path, what):
    file = BoltFile(path)
    try:
        return file.read(what)
    finally:
        file.close()


def test_podmans_own_database_gives_a_containers_name_image_and_labels(real: Path) -> None:
    (container_id, name), *others = look(real, lambda root: root.bucket(b"all-ctrs").items(10))

    facts = podman_facts(look(real, lambda root: podman_config_in_bolt(root, container_id.decode())) or b"")

    assert (name, others) == (b"web", [])
    assert facts is not None
    assert (facts.name, facts.image, facts.labels) == ("web", "localhost/lab:1", {"app": "web", "tier": "front"})
    assert look(real, lambda root: podman_config_in_bolt(root, "0" * 64)) is None


def test_containerds_own_database_gives_the_labels_of_every_container(tmp_path: Path) -> None:
    """It was copied while containerd 1.6 ran, with 41 containers in namespace demo."""
    path = tmp_path / "meta.db"
    path.write_bytes(gzip.decompress((DATA / "containerd-1.6-meta.db.gz").read_bytes()))

    for n in range(1, 41):
        found = look(path, lambda root, n=n: containerd_labels(root, "demo", f"box{n}"))
        assert found == ({"app": "many", "n": str(n)}, "")
    assert look(path, lambda root: containerd_labels(root, "demo", "redis")) == ({"app": "cache", "tier": "back"}, "")
    assert look(path, lambda root: containerd_labels(root, "demo", "other")) is None
    assert look(path, lambda root: containerd_labels(root, "default", "redis")) is None


@pytest.mark.parametrize("per_page", [2, 3, 50])
def test_every_key_is_found_in_a_tree_of_any_shape(tmp_path: Path, per_page: int) -> None:
    path = tmp_path / "many.db"
    write_bolt(path, {b"a": {b"deep": MANY}, b"small": {b"x": b"1"}, b"long": b"v" * 3 * PAGE_BYTES}, per_page=per_page)

    assert {key: look(path, lambda root, key=key: root.bucket(b"a", b"deep").get(key)) for key in MANY} == MANY
    assert look(path, lambda root: root.bucket(b"a", b"deep").items(1000)) == sorted(MANY.items())
    for absent in (b"key-0000x", b"a", b"z"):
        assert look(path, lambda root, key=absent: root.bucket(b"a", b"deep").get(key)) is None
    assert look(path, lambda root: root.bucket(b"small").items(9)) == [(b"x", b"1")]
    assert look(path, lambda root: root.get(b"long")) == b"v" * 3 * PAGE_BYTES
    assert look(path, lambda root: root.bucket(b"a", b"missing")) is None
    assert look(path, lambda root: root.bucket(b"long")) is None


def test_a_read_that_a_write_falls_into_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "busy.db"
    write_bolt(path, {b"key": b"old"}, txid=7)
    seen: list[bytes | None] = []

    def read_while_written(root):
        if not seen:
            write_bolt(path, {b"key": b"new"}, txid=8)
        seen.append(root.get(b"key"))
        return seen[-1]

    assert look(path, read_while_written) == b"new"
    assert len(seen) == 2


def test_a_file_that_is_always_being_written_is_an_error_and_no_guess(tmp_path: Path) -> None:
    path = tmp_path / "busy.db"
    write_bolt(path, {b"key": b"0"}, txid=7)
    turns = iter(range(8, 100))

    def written_again(root):
        write_bolt(path, {b"key": b"1"}, txid=next(turns))
        return root.get(b"key")

    with pytest.raises(BoltError, match="changed during each"):
        look(path, written_again)


def test_a_page_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "loop.db"
    write_bolt(path, {b"key-%d" % n: b"v" for n in range(20)}, per_page=2)
    raw = bytearray(path.read_bytes())
    root = struct.unpack_from("<Q", raw, PAGE_BYTES + 16 + 16)[0]
    for n in range(struct.unpack_from("<H", raw, root * PAGE_BYTES + 10)[0]):
        struct.pack_into("<Q", raw, root * PAGE_BYTES + 16 + 16 * n + 8, root)
    path.write_bytes(raw)

    for what in (lambda root: root.get(b"key-1"), lambda root: root.items(5)):
        with pytest.raises(BoltError, match=r"too deep|bytes would have to be read"):
            look(path, what)


def test_a_page_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.db"
    write_bolt(path, {b"key": b"v"})
    raw = bytearray(path.read_bytes())
    root = struct.unpack_from("<Q", raw, PAGE_BYTES + 16 + 16)[0]
    struct.pack_into("<I", raw, root * PAGE_BYTES + 12, 0xFFFFFFFF)
    path.write_bytes(raw)

    with pytest.raises(BoltError, match=f"more than {limits.BOLT_READ_MAX_BYTES} bytes"):
        look(path, lambda root: root.get(b"key"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 12 * PAGE_BYTES), st.integers(0, 255)), min_size=1, max_size=30))
def test_a_damaged_file_gives_a_value_or_a_bolt_error_and_nothing_else(tmp_path: Path, damage) -> None:
    path = tmp_path / "damaged.db"
    write_bolt(path, {b"ctr": {b"id": {b"config": b"{}", b"more": b"x" * 300}}, b"other": dict(list(MANY.items())[:40])})
    raw = bytearray(path.read_bytes())
    for where, value in damage:
        raw[where % len(raw)] = value
    path.write_bytes(raw)

    try:
        found = look(path, lambda root: (podman_config_in_bolt(root, "id"), root.items(100)))
    except BoltError:
        return
    assert found[0] is None or isinstance(found[0], bytes)


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    write_bolt(tmp_path / "true.db", {})
    (tmp_path / "link.db").symlink_to("true.db")
    os.mkfifo(tmp_path / "pipe.db")

    for name in ("link.db", "pipe.db"):
        with pytest.raises(OSError):
            BoltFile(tmp_path / name)
    (tmp_path / "text.db").write_bytes(b"hello" * 5000)
    with pytest.raises(BoltError, match="no bolt database"):
        look(tmp_path / "text.db", lambda root: root.items(1))
