"""Key files, join files and the key set: made once, private, refused when anything is odd."""

from __future__ import annotations

import json
import os
import stat

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from garrison.cli.init import command as init
from garrison.common import limits
from garrison.common.errors import ConfigError, KernelError
from garrison.common.trust.curve import ensure_curve_key, load_curve_key
from garrison.common.trust.durable import write_durably
from garrison.common.trust.join import JoinFile, load_join, save_join
from garrison.common.trust.keys import load_key, make_key
from garrison.common.trust.keyset import AuthorKeys, MasterTrust, make_keyset
from unit.trust.world import World

MASTER = ("tcp://192.0.2.1:4515",)


# ---- CURVE ------------------------------------------------------------------------------------------------------------
def test_curve_key_is_made_once_and_private(tmp_path):
    made = ensure_curve_key(tmp_path / "curve.key")

    assert ensure_curve_key(tmp_path / "curve.key") == made == load_curve_key(tmp_path / "curve.key")
    assert [len(half) for half in made] == [40, 40]
    assert stat.S_IMODE((tmp_path / "curve.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["curve.key"], "no part file is left"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_curve_key_that_others_can_read_is_refused_and_kept(tmp_path, mode):
    path = tmp_path / "curve.key"
    ensure_curve_key(path)
    content = path.read_bytes()
    path.chmod(mode)

    with pytest.raises(ConfigError, match="open to others") as caught:
        ensure_curve_key(path)
    assert "chmod 600" in caught.value.hint
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"short\n", b"~" * 40, b"#" * 40, b"a" * 41, b"x" * 20_000])
def test_file_that_is_no_curve_key_is_refused_and_not_replaced(tmp_path, content):
    path = tmp_path / "curve.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(ConfigError):
        ensure_curve_key(path)
    assert path.read_bytes() == content


def test_directory_in_the_place_of_a_key_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        ensure_curve_key(tmp_path)


# ---- Ed25519 ----------------------------------------------------------------------------------------------------------
def test_signing_key_comes_back_as_the_key_it_was(tmp_path):
    made = make_key(tmp_path / "a.key")

    assert load_key(tmp_path / "a.key", "the key").public_key == made.public_key
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="there is a key already"):
        make_key(tmp_path / "a.key")
    assert load_key(tmp_path / "a.key", "the key").public_key == made.public_key


def test_key_of_another_kind_is_refused(tmp_path):
    pem = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_durably(tmp_path / "a.key", pem)

    with pytest.raises(ConfigError, match="no Ed25519 key"):
        load_key(tmp_path / "a.key", "the key")


def test_text_that_is_no_key_and_an_absent_file_are_refused(tmp_path):
    write_durably(tmp_path / "a.key", b"hello")

    with pytest.raises(ConfigError, match="the author's key is no key in PEM"):
        load_key(tmp_path / "a.key", "the author's key")
    with pytest.raises(ConfigError, match="No such file"):
        load_key(tmp_path / "b.key", "the author's key")


def test_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_durably(path, b"old")

    def full(fd):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KernelError, match="No space"):
        write_durably(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ---- join file --------------------------------------------------------------------------------------------------------
@pytest.fixture
def document(tmp_path):
    return json.loads((make(tmp_path) / "join.json").read_text())


def make(tmp_path):
    make_keyset(tmp_path / "m", tmp_path / "k", tenant="plant", masters=MASTER)
    return tmp_path / "m"


def test_join_file_comes_back_as_it_was_saved(tmp_path):
    join = load_join(make(tmp_path) / "join.json")
    save_join(join, tmp_path / "copy.json")

    assert load_join(tmp_path / "copy.json") == join
    assert stat.S_IMODE((tmp_path / "copy.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": "1"},
        {"tenant": ""},
        {"tenant": "../x"},
        {"masters": []},
        {"masters": ["tcp://h:1"] * (limits.JOIN_MASTERS_MAX + 1)},
        {"masters": ["ipc:///tmp/x"]},
        {"masters": ["tcp://h:0"]},
        {"masters": ["tcp://h:65536"]},
        {"masters": ["tcp://h:1\n"]},
        {"masters": ["tcp://*:4515"]},
        {"server_key": "short"},
        {"server_key": "~" * 40},
        {"bundle_root": "{}"},
        {"assignment_root": ""},
        {"unknown": 1},
    ],
    ids=str,
)
def test_join_file_with_a_wrong_field_is_refused(tmp_path, document, change):
    (tmp_path / "bad.json").write_text(json.dumps(document | change))

    with pytest.raises(ConfigError, match=r"bad\.json"):
        load_join(tmp_path / "bad.json")


@pytest.mark.parametrize("field", [name for name in JoinFile.__struct_fields__ if name != "master_key"])
def test_join_file_without_a_field_is_refused(tmp_path, document, field):
    del document[field]
    (tmp_path / "bad.json").write_text(json.dumps(document))

    with pytest.raises(ConfigError, match=field):
        load_join(tmp_path / "bad.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null", b"[" * 5_000], ids=["empty", "cut", "binary", "null", "deep"])
def test_what_is_no_join_file_is_refused(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)

    with pytest.raises(ConfigError, match="is no join file"):
        load_join(tmp_path / "bad.json")


def test_half_a_join_file_is_refused_whatever_half(tmp_path):
    whole = (make(tmp_path) / "join.json").read_bytes().rstrip()
    for end in range(0, len(whole), 97):
        (tmp_path / "cut.json").write_bytes(whole[:end])
        with pytest.raises(ConfigError):
            load_join(tmp_path / "cut.json")


# ---- key set ----------------------------------------------------------------------------------------------------------
def test_master_and_author_load_what_init_made_and_fit_together(tmp_path):
    directory = make(tmp_path)

    master, author = MasterTrust.load(directory), AuthorKeys.load(tmp_path / "k")

    assert (master.tenant, author.tenant, author.version) == ("plant", "plant", 0)
    assert [s.public_key.keyid for s in author.signers] == master.authors.newest.roles["targets"].keyids
    for path in (*directory.rglob("*"), *(tmp_path / "k").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_nothing_in_the_masters_directory_can_sign_policy_or_roots(tmp_path):
    directory = make(tmp_path)
    offline = {load_key(path, "key").private_bytes for path in (tmp_path / "k").glob("*.key")}

    assert len(offline) == 3
    assert not any(secret in path.read_bytes() for secret in offline for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("kept", ["m/trust", "m/join.json", "m/curve.key", "k/author.key"])
def test_init_refuses_to_overwrite_and_changes_nothing(tmp_path, kept):
    (tmp_path / kept).parent.mkdir()
    (tmp_path / kept).write_text("precious")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ConfigError, match="there is a key set already"):
        make(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_keys_inside_the_masters_directory_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="must not lie in the master's directory"):
        make_keyset(tmp_path / "m", tmp_path / "m" / "keys", tenant="plant", masters=MASTER)
    assert list(tmp_path.iterdir()) == []


def test_init_says_what_to_keep_off_the_master(tmp_path):
    done = CliRunner().invoke(init, ["--dir", f"{tmp_path}/m", "--keys", f"{tmp_path}/k", "--advertise", MASTER[0]])

    assert done.exit_code == 0, done.output
    assert f"Keep {tmp_path}/k off the master" in done.output
    assert load_join(tmp_path / "m" / "join.json").masters == MASTER


def test_master_with_a_foreign_assignment_key_does_not_start(tmp_path):
    directory = make(tmp_path)
    (directory / "trust" / "assignment.key").unlink()
    make_key(directory / "trust" / "assignment.key")

    with pytest.raises(ConfigError, match="not the key that the newest assignment root names"):
        MasterTrust.load(directory)


def test_master_with_a_broken_root_chain_does_not_start(tmp_path):
    directory = make(tmp_path)
    (directory / "trust" / "bundle-root" / "2.json").write_bytes(World().bundle_roots[0])
    (directory / "trust" / "bundle-root" / "3.json").write_bytes(b"{}")

    with pytest.raises(ConfigError, match="do not follow each other"):
        MasterTrust.load(directory)


def test_author_never_signs_one_version_twice_whatever_the_master_says(tmp_path):
    make(tmp_path)

    versions = [AuthorKeys.load(tmp_path / "k").claim_version(held) for held in (0, 1, 0, 40, 2)]

    assert versions == [1, 2, 3, 41, 42]
    with pytest.raises(ConfigError, match="last signed 42"):
        AuthorKeys.load(tmp_path / "k").claim_version(43 + limits.VERSION_STEP_MAX)
