"""The desk: what it takes in, whom it gives a new generation, and who may read what."""

from __future__ import annotations

from datetime import timedelta

import pytest

from garrison.common.errors import BundleError, SignatureError
from garrison.common.names import NodeName, digest_of
from garrison.common.policy.rules import Mode
from garrison.common.trust.bundle import NodeShare
from garrison.common.trust.keyset import MasterTrust
from garrison.common.trust.metadata import RootChain
from garrison.master.desk import Desk
from garrison.master.records import NodeBrief
from garrison.minion.bundles import BundleStore
from unit.trust.memory_store import MemoryStore
from unit.trust.world import EDGE, NOW, OTHER, OTHER_PRINT, PRINT, Depot, World, policy


@pytest.fixture
def world():
    return World()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def desk(world, store):
    trust = MasterTrust(
        world.tenant, RootChain.start(world.bundle_roots[0]), RootChain.start(world.assignment_roots[0]), world.online
    )
    return Desk(store, trust, clock=lambda: NOW)


def share(*paths, mode=Mode.ENFORCE, **labels):
    return NodeShare(files=dict.fromkeys(paths, mode), labels=labels)


def generations(accepted):
    return {node: (outcome.state, outcome.generation) for node, outcome in accepted.nodes.items()}


A, B = {"a.yaml": policy("a")}, {"b.yaml": policy("b")}


def test_first_bundle_gives_every_accepted_node_that_it_names_generation_one(desk, world, store):
    bundle = world.bundle(1)

    accepted = desk.accept(bundle.metadata, bundle.files)

    assert generations(accepted) == {EDGE: ("assigned", 1), OTHER: ("assigned", 1)}
    assert (accepted.version, accepted.digest) == (1, bundle.digest)
    assert desk.frame_for(NodeName("stranger")) is None


async def test_node_follows_what_the_desk_hands_out(desk, world, store, tmp_path):
    bundle = world.bundle(1)
    desk.accept(bundle.metadata, bundle.files)
    node = BundleStore(tmp_path, world.join(), EDGE, PRINT, clock=lambda: NOW)

    staged = await node.stage(desk.frame_for(EDGE), Depot(bundle).fetch)

    assert node.commit(staged).number == 1


def test_same_bundle_again_changes_nothing(desk, world, store):
    bundle = world.bundle(1)
    desk.accept(bundle.metadata, bundle.files)
    before = dict(store.held)

    again = desk.accept(bundle.metadata, {})

    assert generations(again) == {EDGE: ("already", 1), OTHER: ("already", 1)}
    assert store.held == before


def test_only_nodes_whose_share_changed_get_a_new_generation(desk, world):
    one = world.bundle(1, A | B, nodes={EDGE: share("a.yaml"), OTHER: share("b.yaml")})
    desk.accept(one.metadata, one.files)
    two = world.bundle(2, {"a.yaml": policy("changed")} | B, nodes={EDGE: share("a.yaml"), OTHER: share("b.yaml")})

    accepted = desk.accept(two.metadata, two.files)

    assert generations(accepted) == {EDGE: ("assigned", 2), OTHER: ("already", 1)}


@pytest.mark.parametrize(
    "changed",
    [
        share("a.yaml", role="vault"),
        share("a.yaml", mode=Mode.AUDIT, role="edge"),
        share(role="edge"),
        share("a.yaml", "b.yaml", role="edge"),
    ],
    ids=["label", "mode", "file taken", "file added"],
)
def test_label_mode_and_files_each_make_a_new_generation(desk, world, changed):
    one = world.bundle(1, A | B, nodes={EDGE: share("a.yaml", role="edge")})
    desk.accept(one.metadata, one.files)

    two = world.bundle(2, A | B, nodes={EDGE: changed})

    assert generations(desk.accept(two.metadata, two.files)) == {EDGE: ("assigned", 2)}


def test_limit_leaves_the_others_as_they_are(desk, world):
    bundle = world.bundle(1)

    accepted = desk.accept(bundle.metadata, bundle.files, {EDGE})

    assert generations(accepted) == {EDGE: ("assigned", 1)}
    assert desk.frame_for(OTHER) is None


def test_again_gives_another_try_where_nothing_changed(desk, world):
    one, two = world.bundle(1, A), world.bundle(2, A)
    desk.accept(one.metadata, one.files)

    accepted = desk.accept(two.metadata, {}, again={EDGE})

    assert generations(accepted) == {EDGE: ("assigned", 2), OTHER: ("already", 1)}


def test_generation_is_above_what_the_node_reported_after_the_master_was_restored(desk, world, store):
    bundle = world.bundle(1)
    desk.accept(bundle.metadata, bundle.files)
    store.reported(EDGE, 7)
    two = world.bundle(2, {"policies/a.yaml": policy("version 1")})

    accepted = desk.accept(two.metadata, two.files)

    assert generations(accepted) == {EDGE: ("assigned", 8), OTHER: ("already", 1)}
    assert desk.current().nodes[EDGE].generation == 8


def test_node_accepted_with_another_key_gets_an_assignment_for_that_key(desk, world, store):
    one, two = world.bundle(1, A), world.bundle(2, A)
    desk.accept(one.metadata, one.files)
    store.nodes[EDGE] = NodeBrief(name=EDGE, fingerprint=OTHER_PRINT)
    assert desk.current().nodes[EDGE].generation == 0

    assert generations(desk.accept(two.metadata, {}))[EDGE] == ("assigned", 2)


def test_assignment_about_to_expire_is_renewed(desk, world):
    short, long = world.bundle(1, A, days=29), world.bundle(2, A, days=365)
    desk.accept(short.metadata, short.files)
    assert desk.current().nodes[EDGE].renew

    accepted = desk.accept(long.metadata, {})

    assert generations(accepted)[EDGE] == ("assigned", 2)
    assert not desk.current().nodes[EDGE].renew


@pytest.mark.parametrize(
    ("attack", "error", "says"),
    [
        ("other author", SignatureError, "signed by 0 of the 1"),
        ("other tenant", BundleError, "tenant 'ship'"),
        ("expired", BundleError, "expired"),
        ("older", BundleError, "not above 5"),
        ("same version", BundleError, "not above 5"),
        ("missing file", BundleError, "did not come along"),
        ("changed file", BundleError, "differs"),
        ("extra file", BundleError, "does not name"),
        ("no bundle", SignatureError, "no TUF metadata"),
    ],
)
def test_refused_bundle_leaves_no_trace(desk, world, store, *, attack, error, says):
    held = world.bundle(5)
    desk.accept(held.metadata, held.files)
    before = (dict(store.blobs), list(store.bundles), dict(store.held))
    bundle = {
        "other author": lambda: world.bundle(6, signer=World().author),
        "other tenant": lambda: world.bundle(6, tenant="ship"),
        "expired": lambda: world.bundle(6, days=0),
        "older": lambda: world.bundle(4),
        "same version": lambda: world.bundle(5, A),
    }.get(attack, lambda: world.bundle(6))()
    digest, data = next(iter(bundle.files.items()))
    files = {
        "missing file": {},
        "changed file": {digest: data[:-2] + b"?\n"},
        "extra file": bundle.files | {digest_of(b"x"): b"x"},
    }.get(attack, bundle.files)

    with pytest.raises(error, match=says):
        desk.accept(b"x" if attack == "no bundle" else bundle.metadata, files)

    assert (store.blobs, store.bundles, store.held) == before


def test_node_may_read_its_bundles_metadata_and_its_own_files_and_nothing_else(desk, world):
    bundle = world.bundle(1, A | B, nodes={EDGE: share("a.yaml"), OTHER: share("b.yaml")})
    old = world.bundle(2, {"c.yaml": policy("c")}, nodes={OTHER: share("c.yaml")})
    desk.accept(bundle.metadata, bundle.files)
    desk.accept(old.metadata, old.files)

    def may(node):
        return {name for name, data in (A | B | {"c.yaml": policy("c")}).items() if desk.may_read(node, digest_of(data))}

    assert may(EDGE) == {"a.yaml"}
    assert may(OTHER) == {"c.yaml"}
    assert may(NodeName("stranger")) == set()
    assert desk.may_read(EDGE, bundle.digest)
    assert not desk.may_read(OTHER, bundle.digest)


def test_current_says_what_is_assigned_and_which_authors_count(desk, world):
    bundle = world.bundle(3, A, nodes={EDGE: share("a.yaml", role="edge")})
    desk.accept(bundle.metadata, bundle.files)

    current = desk.current()

    assert (current.tenant, current.version, current.digest) == (world.tenant, 3, bundle.digest)
    assert (current.authors, current.threshold) == ([world.author.public_key.keyid], 1)
    assert current.nodes[EDGE].files["a.yaml"].digest == digest_of(A["a.yaml"])
    assert current.nodes[EDGE].labels == {"role": "edge"}
    assert current.nodes[OTHER].generation == 0


def test_damaged_bundle_in_the_store_counts_as_no_assignment_and_opens_nothing(desk, world, store):
    bundle = world.bundle(1, A)
    desk.accept(bundle.metadata, bundle.files)
    store.blobs[bundle.digest] = bundle.metadata + b" "
    digest = digest_of(A["a.yaml"])
    fresh = Desk(store, desk._trust, clock=lambda: NOW + timedelta(days=1))  # nothing cached, as after a restart

    assert not fresh.may_read(EDGE, digest)
    assert fresh.current().nodes[EDGE].generation == 0
