"""HTTP routes for bundles: what is assigned, a new bundle, the text behind a digest.

Rules of this file:
- Bodies are typed and limited before they are decoded; whoever reaches the socket may assign what authors signed, nothing else.
- Errors are raised; the application turns them into ``{"error", "hint"}``.
- The desk verifies and syncs: it runs in a thread, so that the collector goes on.
"""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from garrison.common import limits
from garrison.common.errors import BundleError, ConfigError
from garrison.common.names import Digest, parse_digest
from garrison.master.desk import BundleRequest, Desk

__all__ = ["BlobText", "bundle_routes"]

_JSON = "application/json"


class BlobText(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's metadata or a policy file as text, for diffs; bytes that are no UTF-8 are replaced."""

    digest: Digest
    text: str


def bundle_routes(desk: Desk) -> list[Route]:
    """Return the routes.

    ``GET /v1/bundle`` answers ``garrison.master.desk.Current``, ``POST /v1/bundles`` takes ``BundleRequest`` in msgpack and
    answers ``garrison.master.desk.Accepted``, both in JSON; ``GET /v1/blobs/DIGEST`` answers ``BlobText``.
    """

    async def current(_: Request) -> Response:
        return _json(await asyncio.to_thread(desk.current))

    async def accept(request: Request) -> Response:
        body = await _body(request)
        try:
            wanted = msgspec.msgpack.decode(body, type=BundleRequest)
        except (msgspec.DecodeError, RecursionError) as err:
            raise BundleError(f"the request is no bundle: {err}") from err
        done = await asyncio.to_thread(
            desk.accept,
            wanted.metadata,
            wanted.files,
            None if wanted.limit is None else set(wanted.limit),
            again=set(wanted.again),
        )
        return _json(done)

    async def blob(request: Request) -> Response:
        digest = parse_digest(request.path_params["digest"])
        data = await asyncio.to_thread(desk.blob, digest)
        if data is None:
            raise BundleError(f"{digest[:12]} is not held by this master")
        return _json(BlobText(digest=digest, text=data.decode(errors="replace")))

    return [
        Route("/v1/bundle", current, methods=["GET"]),
        Route("/v1/bundles", accept, methods=["POST"]),
        Route("/v1/blobs/{digest}", blob, methods=["GET"]),
    ]


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.API_BODY_MAX_BYTES:
            raise ConfigError(f"the request is over {limits.API_BODY_MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=_JSON)
