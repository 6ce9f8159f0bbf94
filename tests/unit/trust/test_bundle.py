"""What a bundle says is what its author put in; what no node would accept is not signed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.errors import BundleError, SignatureError
from garrison.common.names import NodeName, digest_of
from garrison.common.policy.rules import Mode, Posture, Postures
from garrison.common.trust.bundle import NodeShare, build_bundle, check_path
from garrison.common.trust.metadata import RootChain, make_root
from garrison.common.trust.verify import verify_bundle
from unit.trust.world import EDGE, NOW, OTHER, World

WORLD = World()
names = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
files = st.dictionaries(names.map(lambda name: f"policies/{name}.yaml"), st.binary(max_size=50), max_size=5)
postures = st.builds(Postures, **dict.fromkeys(("file", "network", "capability"), st.sampled_from(Posture)))


def build(content, nodes, **changes):
    values = {"tenant": WORLD.tenant, "version": 1, "expires": NOW + timedelta(days=1), "signers": [WORLD.author]}
    return build_bundle(content, nodes, **(values | changes))


@settings(max_examples=50, deadline=None)
@given(st.data(), files)
def test_node_gets_exactly_the_share_that_was_signed(data, content):
    share = st.builds(
        NodeShare,
        files=st.dictionaries(st.sampled_from(sorted(content)), st.sampled_from(Mode)) if content else st.just({}),
        labels=st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=3),
        postures=postures,
    )
    nodes = data.draw(st.dictionaries(names.map(NodeName), share, max_size=5))

    bundle = build(content, nodes)
    read = verify_bundle(WORLD.trust().bundles, bundle.metadata, tenant=WORLD.tenant, now=NOW)

    assert read.nodes == nodes
    assert {path: entry.digest for path, entry in read.files.items()} == {path: digest_of(c) for path, c in content.items()}


@given(st.text(alphabet="a./\\\0\n ", max_size=12))
def test_accepted_path_stays_below_whatever_it_is_joined_to(path):
    try:
        check_path(path)
    except BundleError:
        return
    assert path
    assert not path.startswith("/")
    assert {"", ".", ".."}.isdisjoint(path.split("/"))
    assert "\0" not in path


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\0b", "a\nb", "a" * 5_000])
def test_path_that_could_lead_astray_is_not_signed(path):
    with pytest.raises(BundleError, match="is no path of a file"):
        build({path: b""}, {})


def test_share_of_an_absent_file_is_not_signed():
    with pytest.raises(BundleError, match=r"b\.yaml is given to nodes and is not among"):
        build({"a.yaml": b""}, {EDGE: NodeShare(files={"b.yaml": Mode.AUDIT})})


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        ("BUNDLE_FILES_MAX", 1, "2 files, the limit is 1"),
        ("BUNDLE_FILE_MAX_BYTES", 2, "has 3 bytes, the limit is 2"),
        ("BUNDLE_MAX_BYTES", 5, "6 bytes together, the limit is 5"),
        ("BUNDLE_NODES_MAX", 1, "names 2 nodes, the limit is 1"),
        ("LABELS_MAX", 0, "has 1 labels, the limit is 0"),
        ("LABEL_MAX_CHARS", 3, "over 3 characters"),
        ("METADATA_MAX_BYTES", 100, "bytes of metadata, the limit is 100"),
    ],
)
def test_bundle_over_a_limit_is_not_signed(monkeypatch, limit, value, says):
    monkeypatch.setattr(limits, limit, value)
    share = NodeShare(labels={"role": "edge"})

    with pytest.raises(BundleError, match=says):
        build({"a.yaml": b"one", "b.yaml": b"two"}, {EDGE: share, OTHER: share})


def test_two_authors_are_needed_where_the_root_says_so():
    second = World()
    root = World()

    chain = RootChain.start(
        make_root(
            version=1,
            expires=NOW + timedelta(days=1),
            root_keys=[root.author_root.public_key],
            targets_keys=[WORLD.author.public_key, second.author.public_key],
            signers=[root.author_root],
            thresholds=(1, 2),
        )
    )
    both = build({}, {}, signers=[WORLD.author, second.author])
    one = build({}, {}, signers=[WORLD.author])

    assert verify_bundle(chain, both.metadata, tenant=WORLD.tenant, now=NOW).version == 1
    with pytest.raises(SignatureError, match="signed by 1 of the 2 keys"):
        verify_bundle(chain, one.metadata, tenant=WORLD.tenant, now=NOW)
