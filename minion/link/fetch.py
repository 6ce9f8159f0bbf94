"""Blobs in pieces from the master, over as many connections as it takes.

Rules of this file:
- A fetch belongs to the link, not to a connection: after a cut it goes on with the pieces it lacks.
- Length is checked here, the digest by the caller. A master that says something else than the length asked for is an error.
- Fail-closed: what cannot be had completely is not had at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from garrison.common import limits
from garrison.common.errors import FrameError, LinkError
from garrison.common.frames import Chunk, ChunkRequest
from garrison.common.names import Digest, parse_digest

__all__ = ["Fetcher"]

_MAX_BYTES: Final = max(limits.METADATA_MAX_BYTES, limits.BUNDLE_FILE_MAX_BYTES)


class _Blob:
    """One fetch under way."""

    def __init__(self, digest: Digest, length: int | None) -> None:
        self.digest, self.length = digest, length
        self.pieces: dict[int, bytes] = {}
        self.asked: dict[int, float] = {}
        self.changed = asyncio.Event()
        self.error = ""

    def missing(self) -> list[int]:
        # Of unknown length: the first piece tells it.
        length = 1 if self.length is None else self.length
        return [offset for offset in range(0, length, limits.CHUNK_BYTES) if offset not in self.pieces]

    def take(self, chunk: Chunk) -> None:
        if self.length is None and 0 <= chunk.total <= _MAX_BYTES:
            self.length = chunk.total
        if chunk.total != self.length:
            here = (
                "does not have it"
                if chunk.total < 0
                else f"has {chunk.total} bytes of it, not {self.length if self.length is not None else f'up to {_MAX_BYTES}'}"
            )
            self.error = f"the master {here}"
        elif self.length == 0:
            self.pieces[0] = b""
        elif chunk.offset % limits.CHUNK_BYTES or len(chunk.data) != min(limits.CHUNK_BYTES, self.length - chunk.offset):
            raise FrameError(f"chunk at {chunk.offset} has {len(chunk.data)} bytes")
        else:
            self.pieces[chunk.offset] = chunk.data
        self.changed.set()


class Fetcher:
    """All fetches of a link.

    Args:
        request: Sends a request on the current connection; returns whether there was one.
        chunk_s: After so long a missing piece is asked for again.
        fetch_s: After so long without any progress a fetch fails.
    """

    def __init__(self, request: Callable[[ChunkRequest], bool], *, chunk_s: float, fetch_s: float) -> None:
        self._request, self._chunk_s, self._fetch_s = request, chunk_s, fetch_s
        self._blobs: dict[Digest, list[_Blob]] = {}

    async def fetch(self, digest: Digest, length: int | None) -> bytes:
        """Return what the master has for ``digest``; the caller checks that they are the right bytes.

        Args:
            digest: Of the blob.
            length: Of the blob; ``None`` when it is not known.

        Raises:
            LinkError: Too long, the master lacks it or has another length, or nothing came for ``fetch_s``.
            ConfigError: ``digest`` is none.
        """
        if length is not None and not 0 <= length <= _MAX_BYTES:
            raise LinkError(f"a blob of {length} bytes is not fetched")
        blob = _Blob(parse_digest(digest), length)
        self._blobs.setdefault(blob.digest, []).append(blob)
        try:
            await self._complete(blob)
        finally:
            self._blobs[blob.digest].remove(blob)
            if not self._blobs[blob.digest]:
                del self._blobs[blob.digest]
        return b"".join(blob.pieces[offset] for offset in sorted(blob.pieces))

    async def _complete(self, blob: _Blob) -> None:
        loop = asyncio.get_running_loop()
        progress_at = loop.time()
        while missing := blob.missing():
            now = loop.time()
            if now - progress_at > self._fetch_s:
                raise LinkError(f"{blob.digest[:12]}: {len(missing)} pieces are missing and none came for {self._fetch_s:g} s")
            self._ask(blob, missing, now)
            had = len(blob.pieces)
            await _wait(blob.changed, self._chunk_s)
            if blob.error:
                raise LinkError(f"{blob.digest[:12]}: {blob.error}")
            if len(blob.pieces) > had:
                progress_at = loop.time()

    def _ask(self, blob: _Blob, missing: list[int], now: float) -> None:
        for offset in missing[: limits.CHUNKS_IN_FLIGHT]:
            if now - blob.asked.get(offset, -self._chunk_s) >= self._chunk_s:
                if not self._request(ChunkRequest(digest=blob.digest, offset=offset)):
                    return  # no connection: ``reconnected`` wakes this up
                blob.asked[offset] = now

    def on_chunk(self, chunk: Chunk) -> None:
        """Take a piece; one that nobody waits for is ignored.

        Raises:
            FrameError: It is not what was asked for.
        """
        for blob in self._blobs.get(Digest(chunk.digest), ()):
            blob.take(chunk)

    def reconnected(self) -> None:
        """Ask for everything missing again: what was asked on the connection before will not come."""
        for blobs in self._blobs.values():
            for blob in blobs:
                blob.asked.clear()
                blob.changed.set()

    def give_up(self, why: str) -> None:
        """Fail all fetches."""
        for blobs in self._blobs.values():
            for blob in blobs:
                blob.error = why
                blob.changed.set()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
