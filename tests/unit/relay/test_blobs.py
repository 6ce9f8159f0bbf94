"""Content at a site: fetched once, verified, bounded."""

import asyncio

import pytest

from garrison.common.errors import ConfigError, LinkError
from garrison.common.names import digest_of
from garrison.relay.blobs import Blobs


class Master:
    """Has what it is given; counts what it is asked for."""

    def __init__(self, *contents):
        self.contents = {digest_of(data): data for data in contents}
        self.asked = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def fetch(self, digest):
        self.asked.append(digest)
        await self.may_answer.wait()
        if digest not in self.contents:
            raise LinkError("the master does not have it")
        return self.contents[digest]


async def test_many_who_ask_at_once_cost_one_fetch(tmp_path):
    master = Master(b"policy")
    master.may_answer.clear()
    blobs, digest = Blobs(tmp_path, master.fetch), digest_of(b"policy")

    asking = [asyncio.create_task(blobs.get(digest)) for _ in range(20)]
    await asyncio.sleep(0)
    master.may_answer.set()

    assert await asyncio.gather(*asking) == [b"policy"] * 20
    assert master.asked == [digest]
    assert (blobs.fetched, blobs.fetched_bytes) == (1, 6)


async def test_one_who_gives_up_does_not_take_it_from_the_others(tmp_path):
    master = Master(b"policy")
    master.may_answer.clear()
    blobs, digest = Blobs(tmp_path, master.fetch), digest_of(b"policy")
    first, second = (asyncio.create_task(blobs.get(digest)) for _ in range(2))
    await asyncio.sleep(0)

    first.cancel()
    master.may_answer.set()

    assert await second == b"policy"
    assert len(master.asked) == 1


async def test_content_outlives_the_process_and_is_checked_again(tmp_path):
    master, digest = Master(b"policy"), digest_of(b"policy")
    await Blobs(tmp_path, master.fetch).get(digest)
    assert await Blobs(tmp_path, master.fetch).held(digest) == b"policy"

    (tmp_path / "blobs" / digest).write_bytes(b"changed")

    assert await Blobs(tmp_path, master.fetch).held(digest) is None
    assert await Blobs(tmp_path, master.fetch).get(digest) == b"policy"


async def test_what_has_another_digest_is_served_to_nobody(tmp_path):
    master, digest = Master(), digest_of(b"policy")
    master.contents[digest] = b"something else"
    blobs = Blobs(tmp_path, master.fetch)

    with pytest.raises(LinkError, match="something else"):
        await blobs.get(digest)

    assert await blobs.held(digest) is None
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_failure_is_not_remembered(tmp_path):
    master, digest = Master(), digest_of(b"policy")
    blobs = Blobs(tmp_path, master.fetch)
    with pytest.raises(LinkError):
        await blobs.get(digest)

    master.contents[digest] = b"policy"

    assert await blobs.get(digest) == b"policy"


async def test_what_was_not_read_longest_gives_way(tmp_path):
    contents = [bytes([n]) * 1_000 for n in range(10)]
    master = Master(*contents)
    blobs = Blobs(tmp_path, master.fetch, cap_bytes=3_000)
    for data in contents:
        await blobs.get(digest_of(data))

    kept = {path.name for path in (tmp_path / "blobs").iterdir()}

    assert kept == {digest_of(data) for data in contents[-3:]}


async def test_path_is_no_digest(tmp_path):
    with pytest.raises(ConfigError):
        await Blobs(tmp_path, Master().fetch).get("../../etc/passwd")
