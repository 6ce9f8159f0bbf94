"""The site's copies of bundles and their files: fetched once for all nodes, by digest, and verified before anybody gets them.

Rules of this file:
- What is on disk has the digest that names it; it is checked when it comes and when it is read again after a start.
- One fetch for one digest, however many nodes ask; the others wait for it.
- Over the cap, what was not read for the longest time goes.
- Fail-closed: what does not have its digest is thrown away and not served.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import GarrisonError, KernelError, LinkError
from garrison.common.names import Digest, digest_of, parse_digest
from garrison.common.trust.durable import write_durably

__all__ = ["Blobs"]

_DIRECTORY: Final = "blobs"
_IN_MEMORY: Final = 4  # whole blobs, read piece by piece by many nodes at once

_log = logging.getLogger(__name__)


class Blobs:
    """The cache.

    Args:
        directory: The relay's; made already.
        fetch: Has the master send a blob; raises LinkError when that does not come about.
        cap_bytes: Size of all of them on disk.

    Attributes:
        fetched: Blobs that came from the master.
        fetched_bytes: Their size.
    """

    def __init__(
        self,
        directory: Path,
        fetch: Callable[[Digest], Awaitable[bytes]],
        *,
        cap_bytes: int = limits.RELAY_CACHE_MAX_BYTES,
    ) -> None:
        self._directory, self._fetch, self._cap_bytes = directory / _DIRECTORY, fetch, cap_bytes
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._hot: OrderedDict[Digest, bytes] = OrderedDict()
        self._coming: dict[Digest, asyncio.Task[bytes]] = {}
        self.fetched = self.fetched_bytes = 0

    async def held(self, digest: Digest) -> bytes | None:
        """Return a blob if it is at the site.

        Raises:
            ConfigError: ``digest`` is none.
        """
        if digest in self._hot:
            self._hot.move_to_end(digest)
            return self._hot[digest]
        data = await asyncio.to_thread(self._read, parse_digest(digest))
        if data is not None:
            self._warm(digest, data)
        return data

    async def get(self, digest: Digest) -> bytes:
        """Return a blob, from the site or else from the master.

        Raises:
            LinkError: The master does not have it, sends something else, or cannot be asked.
            ConfigError: ``digest`` is none.
        """
        data = await self.held(digest)
        if data is not None:
            return data
        task = self._coming.get(digest)
        if task is None:
            task = self._coming[digest] = asyncio.create_task(self._bring(digest))
            task.add_done_callback(lambda done: self._came(digest, done))
        return await asyncio.shield(task)

    async def _bring(self, digest: Digest) -> bytes:
        data = await self._fetch(digest)
        if digest_of(data) != digest:
            raise LinkError(f"the master sent something else for {digest[:12]}")
        try:
            await asyncio.to_thread(self._keep, digest, data)
        except (KernelError, OSError) as err:
            _log.error("blob=unkept digest=%s error=%s", digest[:12], err)  # served all the same, and fetched again later
        self.fetched, self.fetched_bytes = self.fetched + 1, self.fetched_bytes + len(data)
        self._warm(digest, data)
        return data

    def _came(self, digest: Digest, task: asyncio.Task[bytes]) -> None:
        self._coming.pop(digest, None)
        if not task.cancelled() and (err := task.exception()) is not None:
            level = logging.WARNING if isinstance(err, GarrisonError) else logging.ERROR
            _log.log(level, "blob=unfetched digest=%s error=%s", digest[:12], err)

    def _warm(self, digest: Digest, data: bytes) -> None:
        self._hot[digest] = data
        while len(self._hot) > _IN_MEMORY:
            self._hot.popitem(last=False)

    # ---- disk, in threads ------------------------------------------------------------------------------------------------
    def _read(self, digest: Digest) -> bytes | None:
        path = self._directory / digest
        try:
            data = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as err:
            _log.error("blob=unread digest=%s error=%s", digest[:12], err)
            return None
        if digest_of(data) != digest:
            _log.error("blob=damaged digest=%s", digest[:12])
            path.unlink(missing_ok=True)
            return None
        return data

    def _keep(self, digest: Digest, data: bytes) -> None:
        held = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._directory.iterdir())
        total = sum(size for _, size, _ in held) + len(data)
        for _, size, path in held:
            if total <= self._cap_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        write_durably(self._directory / digest, data)
