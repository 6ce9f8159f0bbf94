"""Reading requests and writing answers: typed, limited, one place.

Rules of this file:
- A body is read up to a limit and decoded straight into a struct; a query parameter that no endpoint knows is an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from garrison.common import limits
from garrison.common.errors import ConfigError

__all__ = ["SMALL_BODY_MAX_BYTES", "body", "json_response", "ndjson", "query"]

SMALL_BODY_MAX_BYTES: Final = 4 << 20  # names of the largest fleet and a long command line
_T = TypeVar("_T")
_encoder: Final = msgspec.json.Encoder()


async def body(request: Request, kind: type[_T], max_bytes: int = SMALL_BODY_MAX_BYTES) -> _T:
    """Return the request's JSON body as ``kind``.

    Raises:
        ConfigError: Too long, cut short, not JSON, or not of that type.
    """
    raw = bytearray()
    try:
        async for piece in request.stream():
            raw += piece
            if len(raw) > max_bytes:
                raise ConfigError(f"the request's body is over {max_bytes} bytes")
    except ClientDisconnect as err:
        raise ConfigError("the request was cut short") from err
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(f"the request's body is wrong: {err}") from err


def query(request: Request, *known: str) -> dict[str, list[str]]:
    """Return query parameters, each with all its values.

    Raises:
        ConfigError: One that is not ``known``, or too many values.
    """
    found: dict[str, list[str]] = {}
    for key, value in request.query_params.multi_items():
        if key not in known:
            raise ConfigError(f"parameter {key[:40]!r} is not known", hint=f"known are {', '.join(known) or 'none'}")
        found.setdefault(key, []).append(value)
    if any(len(values) > limits.API_QUERY_MAX_VALUES for values in found.values()):
        raise ConfigError(f"more than {limits.API_QUERY_MAX_VALUES} values of one parameter")
    return found


def json_response(value: Any, status: int = 200) -> Response:
    """Return ``value`` (structs, dicts, lists) as JSON."""
    return Response(_encoder.encode(value), status, media_type="application/json")


def ndjson(lines: AsyncIterator[bytes]) -> Response:
    """Return a stream of JSON lines."""
    return StreamingResponse(lines, media_type="application/x-ndjson")
