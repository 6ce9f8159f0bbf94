"""The node's bundle store: what is committed stays, whatever fails while something newer comes in."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from garrison.common.errors import BundleError, GarrisonError, KernelError, SignatureError
from garrison.minion.bundles import BundleStore
from unit.trust.world import EDGE, NOW, OTHER, OTHER_PRINT, PRINT, Depot, World, policy


@pytest.fixture
def world():
    return World()


@pytest.fixture
def depot():
    return Depot()


def open_store(directory: Path, world: World, now=NOW) -> BundleStore:
    return BundleStore(directory, world.join(), EDGE, PRINT, clock=lambda: now)


def frame_of(world: World, depot: Depot, number: int, **changes):
    bundle = world.bundle(number, {"policies/a.yaml": policy(f"a {number}"), "policies/b.yaml": policy("b, always the same")})
    depot.add(bundle)
    return world.frame(world.assign(bundle, number, **changes))


async def take(store: BundleStore, world: World, depot: Depot, number: int):
    return store.commit(await store.stage(frame_of(world, depot, number), depot.fetch))


def number_of(store: BundleStore) -> int:
    found = store.current()
    return found.number if found else 0


# ---- the ordinary way -------------------------------------------------------------------------------------------------
def test_new_node_holds_nothing_and_says_so(tmp_path, world):
    assert open_store(tmp_path / "b", world).current() is None


async def test_committed_generation_is_current_after_a_restart_and_means_its_rules(tmp_path, world, depot):
    committed = await take(open_store(tmp_path, world), world, depot, 1)

    found = open_store(tmp_path, world).current()

    assert found is not None
    assert (found.number, found.bundle, found.version, found.stale) == (1, committed.bundle, 1, False)
    assert {rule.policy for rule in found.normalised().rules.rules} == {"no-base64"}


async def test_staged_generation_is_not_current_before_its_commit(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    await take(store, world, depot, 1)

    staged = await store.stage(frame_of(world, depot, 2), depot.fetch)

    assert number_of(store) == 1
    assert number_of(open_store(tmp_path, world)) == 1
    assert store.commit(staged).number == 2
    assert number_of(open_store(tmp_path, world)) == 2


async def test_generation_that_is_staged_while_the_one_before_is_committed_is_whole(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    await take(store, world, depot, 1)
    on_trial = await store.stage(frame_of(world, depot, 2), depot.fetch)
    newer = await store.stage(frame_of(world, depot, 3), depot.fetch)

    store.commit(on_trial)

    assert {rule.policy for rule in newer.generation.normalised().rules.rules} == {"no-base64"}
    assert store.commit(newer).number == 3
    assert number_of(open_store(tmp_path, world)) == 3


async def test_only_what_is_missing_is_fetched(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    await take(store, world, depot, 1)
    depot.asked.clear()

    await take(store, world, depot, 2)

    assert len(depot.asked) == 2, "the metadata and the one policy that changed"


async def test_same_assignment_again_is_staged_without_fetching_anything(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    frame = frame_of(world, depot, 1)
    store.commit(await store.stage(frame, depot.fetch))
    depot.asked.clear()

    staged = await store.stage(frame, depot.fetch)

    assert staged.generation.number == 1
    assert depot.asked == []


async def test_three_generations_are_kept_and_nothing_else(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    for number in range(1, 6):
        await take(store, world, depot, number)

    assert len(list((tmp_path / "records").iterdir())) == 3
    assert len(list((tmp_path / "blobs").iterdir())) == 3 + 3 + 1, "three bundles, three versions of one file, one of the other"


async def test_files_are_private_to_root(tmp_path, world, depot):
    await take(open_store(tmp_path / "bundles", world), world, depot, 1)

    for path in (tmp_path / "bundles").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_expired_bundle_stays_current_and_is_stale(tmp_path, world, depot):
    await take(open_store(tmp_path, world), world, depot, 1)

    found = open_store(tmp_path, world, NOW + timedelta(days=400)).current()

    assert found is not None
    assert (found.number, found.stale) == (1, True)


# ---- attacks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("attack", "error"),
    [
        ("older generation", BundleError),
        ("older bundle", BundleError),
        ("other node", BundleError),
        ("other master", SignatureError),
        ("other author", SignatureError),
        ("changed file", BundleError),
        ("short file", BundleError),
        ("changed metadata", BundleError),
        ("expired", BundleError),
    ],
)
async def test_refused_assignment_changes_neither_what_is_current_nor_the_files(tmp_path, world, depot, attack, error):
    store = open_store(tmp_path, world)
    await take(store, world, depot, 1)
    await take(store, world, depot, 2)
    before = snapshot(tmp_path)
    new = world.bundle(3)
    depot.add(new)
    frame = world.frame(world.assign(new, 3))
    if attack == "older generation":
        frame = frame_of(world, depot, 1)
    elif attack == "older bundle":
        frame = world.frame(world.assign(world.bundle(1), 3))
    elif attack == "other node":
        frame = world.frame(world.assign(new, 3, node=OTHER, fingerprint=OTHER_PRINT))
    elif attack == "other master":
        frame = world.frame(world.assign(new, 3, signer=World().online))
    elif attack == "other author":
        forged = world.bundle(3, signer=World().author)
        depot.add(forged)
        frame = world.frame(world.assign(forged, 3))
    elif attack == "expired":
        ended = world.bundle(3, days=0)
        depot.add(ended)
        frame = world.frame(world.assign(ended, 3))
    elif attack == "changed metadata":
        depot.blobs[new.digest] = new.metadata.replace(b'"enforce"', b'"audit"  ')
    else:
        digest = next(iter(new.files))
        depot.blobs[digest] = depot.blobs[digest][:-1] + (b"?" if attack == "changed file" else b"")

    with pytest.raises(error):
        await store.stage(frame, depot.fetch)

    assert number_of(store) == 2
    assert snapshot(tmp_path) == before
    assert number_of(open_store(tmp_path, world)) == 2


async def test_rollback_is_refused_after_a_restart_too(tmp_path, world, depot):
    await take(open_store(tmp_path, world), world, depot, 7)

    store = open_store(tmp_path, world)

    with pytest.raises(BundleError, match="generation 6 is older than 7"):
        await store.stage(frame_of(world, depot, 6), depot.fetch)


async def test_rotated_root_counts_after_a_restart_even_if_its_assignment_failed(tmp_path, world, depot):
    new = World()
    await take(open_store(tmp_path, world), world, depot, 1)
    rotated = world.root(world.author_root, new.author, version=2)
    old_author = frame_of(world, depot, 2)
    world.bundle_roots.append(rotated)
    store = open_store(tmp_path, world)
    with pytest.raises(SignatureError, match="signed by 0"):
        await store.stage(frame_of(world, depot, 2), depot.fetch)

    again = open_store(tmp_path, world)

    assert number_of(again) == 1, "what the old author had signed before is still enforced"
    with pytest.raises(SignatureError, match="signed by 0"):
        await again.stage(old_author, depot.fetch)
    world.author = new.author
    assert (await take(again, world, depot, 3)).number == 3


async def test_join_file_of_another_tenant_makes_nothing_of_this_one_current(tmp_path, world, depot):
    await take(open_store(tmp_path, world), world, depot, 1)

    with pytest.raises(BundleError, match="none of the 1 generations"):
        open_store(tmp_path, World()).current()


# ---- failures on the node ---------------------------------------------------------------------------------------------
async def test_rejected_generation_is_not_tried_again_even_after_a_restart_but_a_new_one_is(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    await take(store, world, depot, 1)
    frame = frame_of(world, depot, 2)
    store.reject(await store.stage(frame, depot.fetch), "the kernel has no such map")

    for again in (store, open_store(tmp_path, world)):
        assert number_of(again) == 1
        with pytest.raises(BundleError, match="is quarantined on this node: the kernel has no such map"):
            await again.stage(frame, depot.fetch)
    assert (await take(store, world, depot, 3)).number == 3


async def test_rejecting_what_is_current_keeps_it(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    frame = frame_of(world, depot, 1)
    store.commit(await store.stage(frame, depot.fetch))

    store.reject(await store.stage(frame, depot.fetch), "once")

    assert number_of(open_store(tmp_path, world)) == 1
    assert (await store.stage(frame, depot.fetch)).generation.number == 1


def victims(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "remove"])
async def test_any_damaged_file_leaves_a_verified_generation_and_the_newest_can_be_fetched_again(tmp_path, world, depot, how):
    store = open_store(tmp_path / "good", world)
    await take(store, world, depot, 1)
    frame = frame_of(world, depot, 2)
    store.commit(await store.stage(frame, depot.fetch))

    for victim in victims(tmp_path / "good"):
        directory = tmp_path / "bad"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "good", directory)
        path, data = directory / victim.relative_to(tmp_path / "good"), victim.read_bytes()
        if how == "remove":
            path.unlink()
        else:
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            path.write_bytes({"flip": flipped, "cut": data[:middle], "empty": b""}[how])
        damaged = open_store(directory, world)
        shared = "always the same" in data.decode(errors="replace")  # one policy that both generations need

        if shared:
            with pytest.raises(BundleError, match="none of the 2"):
                damaged.current()
        else:
            assert number_of(damaged) in {1, 2}, victim
        with pytest.raises(BundleError):
            await damaged.stage(frame_of(world, depot, 1, confirm_s=1), depot.fetch)
        assert damaged.commit(await damaged.stage(frame, depot.fetch)).number == 2
        assert number_of(open_store(directory, world)) == 2, victim


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in victims(directory)}


class Steps:
    """Counts the system calls that make files durable, and does something before the chosen one."""

    def __init__(self, monkeypatch, act) -> None:
        self.count = 0
        for owner, name in ((os, "fsync"), (os, "open"), (Path, "replace"), (Path, "unlink")):
            genuine = getattr(owner, name)

            def step(*args, genuine=genuine, **kwargs):
                self.count += 1
                act(self.count)
                return genuine(*args, **kwargs)

            monkeypatch.setattr(owner, name, step)


async def test_kill_at_every_step_leaves_the_old_or_the_new_generation(tmp_path, world, depot, monkeypatch):
    live, copies = tmp_path / "live", []
    store = open_store(live, world)
    await take(store, world, depot, 1)
    frame = frame_of(world, depot, 2)

    def copy(step: int) -> None:
        if not copying:
            copying.append(True)
            copies.append(snapshot(live))
            copying.clear()

    copying: list[bool] = []
    with monkeypatch.context() as patch:
        Steps(patch, copy)
        store.commit(await store.stage(frame, depot.fetch))

    assert len(copies) >= 20
    seen = set()
    for number, files in enumerate(copies):
        directory = tmp_path / f"killed-{number}"
        for name, data in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        found = open_store(directory, world)
        seen.add(number_of(found))
        assert found.commit(await found.stage(frame, depot.fetch)).number == 2
        shutil.rmtree(directory)
    assert seen == {1, 2}


async def test_full_disk_at_every_step_keeps_the_old_generation_and_the_next_try_succeeds(tmp_path, world, depot, monkeypatch):
    pristine = tmp_path / "pristine"
    await take(open_store(pristine, world), world, depot, 1)
    frame, failures = frame_of(world, depot, 2), 0

    for failing in range(1, 200):
        directory = tmp_path / "full"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(pristine, directory)
        store = open_store(directory, world)

        def full(step: int, failing=failing) -> None:
            if step == failing:
                raise OSError(errno.ENOSPC, "no space")

        with monkeypatch.context() as patch:
            steps = Steps(patch, full)
            try:
                store.commit(await store.stage(frame, depot.fetch))
            except KernelError:
                failures += 1
                assert number_of(open_store(directory, world)) in {1, 2}
        if steps.count < failing:
            break
        assert store.commit(await store.stage(frame, depot.fetch)).number == 2
        assert number_of(open_store(directory, world)) == 2
    assert failures > 10


async def test_fetch_that_fails_changes_nothing(tmp_path, world, depot):
    store = open_store(tmp_path, world)
    await take(store, world, depot, 1)
    before = snapshot(tmp_path)

    async def broken(digest, length):
        raise GarrisonError("the link is gone")

    with pytest.raises(GarrisonError, match="link is gone"):
        await store.stage(frame_of(world, depot, 2), broken)
    assert snapshot(tmp_path) == before
