"""One test for each attack on what a node believes; after each, what it trusted before is what it trusts still."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from garrison.common import limits
from garrison.common.errors import BundleError, SignatureError
from garrison.common.names import digest_of
from garrison.common.trust.bundle import FileEntry
from garrison.common.trust.metadata import CUSTOM, RootChain, make_root, sign_targets, verify_targets
from garrison.common.trust.order import build_release_order, check_release_order
from garrison.common.trust.verify import verify_blob, verify_bundle
from unit.trust.world import EDGE, NOW, OTHER, OTHER_PRINT, World, policy


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def held(world):
    """A node that committed generation 5 of bundle version 7, and what it committed."""
    bundle = world.bundle(7)
    data = world.assign(bundle, 5)
    trust = world.trust()
    assignment = trust.new_assignment(data, NOW)
    return trust.committed(assignment, trust.new_bundle(assignment, bundle.metadata, NOW)), bundle, data


@contextmanager
def refused(trust, error, says):
    """The block is refused, and the trust that it used is unchanged."""
    before = (trust.floor, trust.bundles.files, trust.assignments.files)
    with pytest.raises(error, match=says):
        yield
    assert (trust.floor, trust.bundles.files, trust.assignments.files) == before


def resign(metadata: bytes, signer, change) -> bytes:
    """Change the signed part as a holder of ``signer`` could."""
    targets = Metadata[Targets].from_bytes(metadata).signed
    change(targets)
    return sign_targets(targets, [signer])


def named(metadata: bytes) -> dict:
    """How an assignment names a bundle."""
    return {"bundle": digest_of(metadata), "bundle_bytes": len(metadata)}


# ---- the good case first: otherwise a refusal would prove nothing -----------------------------------------------------
def test_newer_assignment_of_a_newer_bundle_is_believed(world, held):
    trust, _, _ = held
    bundle = world.bundle(8)

    assignment = trust.new_assignment(world.assign(bundle, 6), NOW)
    content = trust.new_bundle(assignment, bundle.metadata, NOW)
    risen = trust.committed(assignment, content)

    assert (risen.floor.generation, risen.floor.bundle_version) == (6, 8)
    assert trust.share(content).labels == {"role": "edge"}


def test_same_generation_with_the_same_content_is_believed_again(held):
    trust, bundle, data = held

    assignment = trust.new_assignment(data, NOW)

    assert assignment.bundle == bundle.digest


# ---- rollback, replay, freeze, mix and match --------------------------------------------------------------------------
def test_rollback_of_the_generation_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "generation 4 is older than 5"):
        trust.new_assignment(world.assign(world.bundle(8), 4), NOW)


def test_held_generation_with_other_content_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "held with other content"):
        trust.new_assignment(world.assign(world.bundle(8), 5), NOW)


def test_rollback_of_the_bundle_under_a_higher_generation_is_refused_before_it_is_fetched(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "version 6 is older than 7"):
        trust.new_assignment(world.assign(world.bundle(6), 6), NOW)


def test_rollback_of_the_bundle_behind_a_false_version_in_the_assignment_is_refused(world, held):
    trust, _, _ = held
    old = world.bundle(6)
    assignment = trust.new_assignment(world.assign(old, 6, bundle_version=8), NOW)

    with refused(trust, BundleError, "has version 6, its assignment says 8"):
        trust.new_bundle(assignment, old.metadata, NOW)


def test_second_bundle_of_the_same_version_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "bundle version 7 was held with other content"):
        trust.new_assignment(world.assign(world.bundle(7, {"policies/b.yaml": policy("other")}), 6), NOW)


def test_replay_of_another_nodes_assignment_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "for node 'edge-2'"):
        trust.new_assignment(world.assign(world.bundle(8), 6, node=OTHER, fingerprint=OTHER_PRINT), NOW)


def test_assignment_for_a_namesake_with_another_key_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "another key of this node"):
        trust.new_assignment(world.assign(world.bundle(8), 6, fingerprint=OTHER_PRINT), NOW)


def test_assignment_of_another_tenant_signed_with_the_right_key_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "tenant 'ship'"):
        trust.new_assignment(world.assign(world.bundle(8), 6, tenant="ship"), NOW)


def test_bundle_of_another_tenant_signed_with_the_right_key_is_refused(world, held):
    trust, _, _ = held
    bundle = world.bundle(8, tenant="ship")
    assignment = trust.new_assignment(world.assign(bundle, 6), NOW)

    with refused(trust, BundleError, "tenant 'ship'"):
        trust.new_bundle(assignment, bundle.metadata, NOW)


def test_mix_and_match_of_an_assignment_with_another_bundle_is_refused(world, held):
    trust, _, _ = held
    assignment = trust.new_assignment(world.assign(world.bundle(8), 6), NOW)
    other = world.bundle(8, {"policies/a.yaml": policy("other 8")})

    with refused(trust, BundleError, "differs from what was signed|were signed"):
        trust.new_bundle(assignment, other.metadata, NOW)


def test_bundle_without_a_share_for_this_node_is_refused(world, held):
    trust, _, _ = held
    bundle = world.bundle(8, nodes={})
    assignment = trust.new_assignment(world.assign(bundle, 6), NOW)

    with refused(trust, BundleError, "no share for node 'edge-1'"):
        trust.new_bundle(assignment, bundle.metadata, NOW)


def test_new_bundle_that_has_expired_is_refused(world, held):
    trust, _, _ = held
    bundle = world.bundle(8, days=0)
    assignment = trust.new_assignment(world.assign(bundle, 6), NOW)

    with refused(trust, BundleError, "the bundle expired"):
        trust.new_bundle(assignment, bundle.metadata, NOW)


def test_new_assignment_that_has_expired_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "the assignment expired"):
        trust.new_assignment(world.assign(world.bundle(8), 6, expires=NOW), NOW)


def test_freeze_makes_what_is_held_stale_and_takes_nothing_away(held):
    trust, bundle, data = held
    later = NOW + timedelta(days=366)

    assignment = trust.read_held(data)
    content = trust.read_bundle(assignment, bundle.metadata)

    assert trust.share(content).files
    assert not trust.is_stale(assignment, content, NOW)
    assert trust.is_stale(assignment, content, later)
    assert trust.new_assignment(data, later) == assignment, "what was committed may be fetched again after a disk error"


def test_clock_set_back_does_not_revive_what_expired_before_the_last_bundle_was_signed(world, held):
    trust, _, _ = held
    bundle = world.bundle(8, days=-2)  # the held one was signed a day before NOW
    assignment = trust.new_assignment(world.assign(bundle, 6), NOW)

    with refused(trust, BundleError, "the bundle expired"):
        trust.new_bundle(assignment, bundle.metadata, NOW - timedelta(days=20_000))


def test_fast_forward_that_would_use_up_all_numbers_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, BundleError, "generation jumps"):
        trust.new_assignment(world.assign(world.bundle(8), 5 + limits.VERSION_STEP_MAX + 1), NOW)
    with refused(trust, BundleError, "bundle version jumps"):
        trust.new_assignment(world.assign(world.bundle(7 + limits.VERSION_STEP_MAX + 1), 6), NOW)


# ---- wrong keys, changed bytes ----------------------------------------------------------------------------------------
def test_assignment_signed_by_another_master_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, SignatureError, "signed by 0 of the 1 keys"):
        trust.new_assignment(world.assign(world.bundle(8), 6, signer=CryptoSigner.generate_ed25519()), NOW)


def test_bundle_signed_by_another_author_is_refused(world, held):
    trust, _, _ = held
    bundle = world.bundle(8, signer=CryptoSigner.generate_ed25519())
    assignment = trust.new_assignment(world.assign(bundle, 6), NOW)

    with refused(trust, SignatureError, "signed by 0 of the 1 keys"):
        trust.new_bundle(assignment, bundle.metadata, NOW)


def test_master_cannot_sign_a_bundle_with_its_own_key(world, held):
    trust, _, _ = held
    bundle = world.bundle(8, signer=world.online)
    assignment = trust.new_assignment(world.assign(bundle, 6), NOW)

    with refused(trust, SignatureError, "signed by 0"):
        trust.new_bundle(assignment, bundle.metadata, NOW)


@pytest.mark.parametrize("share", ["labels", "files"])
def test_master_cannot_change_labels_or_modes_of_a_signed_bundle(world, held, share):
    trust, _, _ = held

    def loosen(targets):
        body = targets.unrecognized_fields[CUSTOM]
        if share == "labels":
            body["nodes"][EDGE]["labels"] = {}
        else:
            body["grants"] = [dict.fromkeys(grant, "audit") for grant in body["grants"]]

    changed = resign(world.bundle(8).metadata, world.online, loosen)
    assignment = trust.new_assignment(world.assign(world.bundle(8), 6, **named(changed)), NOW)

    with refused(trust, SignatureError, "signed by 0"):
        trust.new_bundle(assignment, changed, NOW)


def test_assignment_and_bundle_cannot_take_each_others_place_even_under_one_key(world, held):
    """An operator who uses one key for both roles must not turn one kind of signature into the other."""
    trust, _, _ = held
    bundle = world.bundle(8, signer=world.online)
    assignment = world.assign(bundle, 6, signer=world.author)

    with refused(trust, BundleError, "no assignment"):
        trust.new_assignment(bundle.metadata, NOW)
    with pytest.raises(BundleError, match="no bundle"):
        verify_bundle(trust.bundles, assignment, tenant=world.tenant, now=NOW)


def test_every_flipped_byte_in_signed_metadata_is_refused_or_changes_nothing_that_was_signed(world, held):
    trust, _, _ = held
    data = world.assign(world.bundle(8), 6)
    genuine = trust.new_assignment(data, NOW)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        try:
            found = trust.new_assignment(bytes(changed), NOW)
        except (SignatureError, BundleError):
            continue
        assert found == genuine, f"byte {position}"


def test_flipped_byte_in_a_file_is_refused(world):
    data = policy("file")
    entry = FileEntry(len(data), digest_of(data))

    verify_blob("a.yaml", entry, data)
    with pytest.raises(BundleError, match="differs"):
        verify_blob("a.yaml", entry, data[:-1] + b"?")
    with pytest.raises(BundleError, match="were signed"):
        verify_blob("a.yaml", entry, data + b"\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"signed": {"_type": "targets"}, "signatures": []}',
        b"[" * 100_000,
        b'{"signed":{"_type":"root"}}',
    ],
    ids=["empty", "truncated", "list", "object", "hollow", "deep", "half-a-root"],
)
def test_what_is_no_metadata_is_refused(world, held, data):
    trust, _, _ = held

    with refused(trust, SignatureError, "assignment"):
        trust.new_assignment(data, NOW)


def test_root_in_the_place_of_an_assignment_is_refused(world, held):
    trust, _, _ = held

    with refused(trust, SignatureError, "root metadata, not the assignment"):
        trust.new_assignment(world.assignment_roots[0], NOW)


def test_oversize_metadata_is_refused_before_it_is_parsed(world, held, monkeypatch):
    trust, _, _ = held
    data = world.assign(world.bundle(8), 6)
    monkeypatch.setattr(limits, "METADATA_MAX_BYTES", len(data) - 1)
    monkeypatch.setattr(Metadata, "from_bytes", lambda *_: pytest.fail("parsed"))

    with refused(trust, SignatureError, "the limit is"):
        trust.new_assignment(data, NOW)


def test_unknown_fields_in_signed_metadata_are_ignored(world, held):
    """A newer author or master may say more; what must not be ignored raises the format's version."""
    trust, _, _ = held

    def extend(targets):
        targets.unrecognized_fields["x-new"] = {"a": [1]}
        targets.unrecognized_fields[CUSTOM]["new"] = "field"

    bundle = resign(world.bundle(8).metadata, world.author, extend)
    data = resign(world.assign(world.bundle(8), 6, **named(bundle)), world.online, extend)

    assignment = trust.new_assignment(data, NOW)
    assert trust.new_bundle(assignment, bundle, NOW).version == 8


def test_newer_format_is_refused_with_its_number(world, held):
    trust, _, _ = held

    def newer(targets):
        targets.unrecognized_fields[CUSTOM]["v"] = 2

    with refused(trust, BundleError, "version 2 of the assignment format"):
        trust.new_assignment(resign(world.assign(world.bundle(8), 6), world.online, newer), NOW)


def test_delegations_are_refused(world):
    def delegate(targets):
        targets.unrecognized_fields["delegations"] = {"keys": {}, "roles": []}

    changed = resign(world.bundle(8).metadata, world.author, delegate)

    with pytest.raises(SignatureError, match="delegates"):
        verify_bundle(world.trust().bundles, changed, tenant=world.tenant, now=NOW)


def test_fraction_as_a_version_is_refused(world):
    document = json.loads(world.bundle(8).metadata)
    document["signed"]["version"] = 8.5

    with pytest.raises(SignatureError):
        verify_targets(world.trust().bundles.newest, json.dumps(document).encode(), "bundle")


# ---- roots ------------------------------------------------------------------------------------------------------------
def test_rotation_signed_by_old_and_new_root_keys_replaces_the_author(world):
    new_root, new_author = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    rotated = world.root(new_root, new_author, version=2, signers=[world.author_root, new_root])

    trust = world.trust().with_roots([], [world.bundle_roots[0], rotated])

    new = world.bundle(1, signer=new_author)
    assignment = trust.new_assignment(world.assign(new), NOW)
    assert trust.new_bundle(assignment, new.metadata, NOW).version == 1
    old = world.bundle(1)
    with refused(trust, SignatureError, "signed by 0"):
        trust.new_bundle(trust.new_assignment(world.assign(old), NOW), old.metadata, NOW)


@pytest.mark.parametrize("signed_by", ["old", "new"])
def test_rotation_without_both_signatures_is_refused(world, signed_by):
    new_root = CryptoSigner.generate_ed25519()
    signers = {"old": [world.author_root], "new": [new_root]}[signed_by]
    rotated = world.root(new_root, CryptoSigner.generate_ed25519(), version=2, signers=signers)
    trust = world.trust()

    with refused(trust, SignatureError, "lacks signatures"):
        trust.with_roots([], [rotated])


def test_rotation_under_the_threshold_is_refused():
    keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
    public, author = [key.public_key for key in keys], CryptoSigner.generate_ed25519().public_key

    def root(version, signers):
        return make_root(
            version=version,
            expires=NOW + timedelta(days=1),
            root_keys=public,
            targets_keys=[author],
            signers=signers,
            thresholds=(2, 1),
        )

    chain = RootChain.start(root(1, keys[:2]))

    assert chain.extend([root(2, keys[1:])]).newest.version == 2
    with pytest.raises(SignatureError, match="lacks signatures: 1 of the keys before it"):
        chain.extend([root(2, keys[:1])])


def test_rotation_with_a_missing_version_is_refused_and_with_all_of_them_believed(world):
    roots = [world.root(world.author_root, world.author, version=version) for version in (2, 3, 4)]
    trust = world.trust()

    assert trust.with_roots([], roots).bundles.newest.version == 4
    with refused(trust, SignatureError, "version 3 of the trust root is missing"):
        trust.with_roots([], [roots[0], roots[2]])


def test_older_root_in_the_offer_is_passed_over(world):
    two = world.root(world.author_root, world.author, version=2)
    forged_one = World().bundle_roots[0]
    trust = world.trust().with_roots([], [two])

    assert trust.with_roots([], [forged_one]).bundles.files == trust.bundles.files


def test_expired_root_refuses_what_is_new_and_keeps_what_is_held(world, held):
    held_trust, bundle, data = held
    ended = world.root(world.author_root, world.author, version=2, expires=NOW - timedelta(days=1))
    trust = held_trust.with_roots([], [ended])
    new = world.bundle(8)
    assignment = trust.new_assignment(world.assign(new, 6), NOW)

    with refused(trust, BundleError, "the bundle root expired"):
        trust.new_bundle(assignment, new.metadata, NOW)
    old = trust.read_held(data)
    assert trust.is_stale(old, trust.read_bundle(old, bundle.metadata), NOW)


def test_endless_roots_are_refused(world):
    with pytest.raises(SignatureError, match="versions of the trust root were offered"):
        world.trust().with_roots([], [world.bundle_roots[0]] * (2 * limits.ROOT_ROTATIONS_MAX))


def test_root_that_nobody_signed_cannot_be_pinned(world):
    unsigned = make_root(
        version=1,
        expires=NOW + timedelta(days=1),
        root_keys=[world.author_root.public_key],
        targets_keys=[world.author.public_key],
        signers=[],
    )

    with pytest.raises(SignatureError, match="not signed by its own keys"):
        RootChain.start(unsigned)


# ---- release orders ------------------------------------------------------------------------------------------------------
def order(world, *, tenant=None, node=EDGE, hours=1, signers=None):
    expires = NOW + timedelta(hours=hours)
    return build_release_order(tenant=tenant or world.tenant, node=node, expires=expires, signers=signers or [world.author])


def test_order_of_the_authors_lets_a_node_release(world):
    trust = world.trust()

    check_release_order(trust.bundles, order(world), tenant=world.tenant, node=EDGE, now=NOW)


@pytest.mark.parametrize(
    ("forge", "error", "says"),
    [
        (lambda w: order(w, signers=[w.online]), SignatureError, "signed by 0"),
        (lambda w: order(w, signers=[CryptoSigner.generate_ed25519()]), SignatureError, "signed by 0"),
        (lambda w: order(w, node=OTHER), BundleError, "is for edge-2"),
        (lambda w: order(w, tenant="other"), BundleError, "of other"),
        (lambda w: order(w, hours=0), BundleError, "expired"),
        (lambda w: w.bundle(7).metadata, BundleError, "no release order"),
        (lambda _: b"{", SignatureError, "no TUF metadata"),
    ],
    ids=["master's key", "stranger's key", "another node", "another tenant", "expired", "a bundle", "no metadata"],
)
def test_anything_else_is_no_order(world, forge, error, says):
    with pytest.raises(error, match=says):
        check_release_order(world.trust().bundles, forge(world), tenant=world.tenant, node=EDGE, now=NOW)


def test_order_is_no_bundle(world):
    with pytest.raises(BundleError):
        verify_bundle(world.trust().bundles, order(world), tenant=world.tenant, now=NOW)
