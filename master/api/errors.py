"""Errors of the API: what went wrong, why, and the remedy, as JSON with a status that programs can tell apart.

``{"error": text, "kind": class name, "hint": text, "cause": [texts]}``. A bug is a 500 without details; they are in the log.
"""

from __future__ import annotations

import logging
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from garrison.common.errors import BundleError, ConfigError, GarrisonError, PolicyError, SignatureError, StoreError

__all__ = ["NotFoundError", "body_of", "on_bug", "on_garrison_error", "on_http_error"]

_log = logging.getLogger(__name__)


class NotFoundError(GarrisonError, LookupError):
    """There is nothing of that name."""


_STATUS: Final[tuple[tuple[type[GarrisonError], int], ...]] = (
    (NotFoundError, 404),
    (SignatureError, 403),
    (BundleError, 409),
    (PolicyError, 422),
    (ConfigError, 400),
    (StoreError, 503),
)


def on_garrison_error(_: Request, err: Exception) -> Response:
    """Answer with what the error says."""
    status = next((code for kind, code in _STATUS if isinstance(err, kind)), 400 if isinstance(err, ValueError) else 500)
    return JSONResponse(body_of(err), status)


def body_of(err: Exception) -> dict[str, object]:
    """Return what the API says of an error."""
    causes, cause = list[str](), err.__cause__
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    return {"error": str(err), "kind": type(err).__name__, "hint": getattr(err, "hint", ""), "cause": causes}


def on_http_error(_: Request, err: Exception) -> Response:
    """Answer an unknown path or method in the same form."""
    status = err.status_code if isinstance(err, HTTPException) else 500
    detail = str(err.detail) if isinstance(err, HTTPException) else "error"
    return JSONResponse({"error": detail, "kind": "HTTPException", "hint": "", "cause": []}, status)


def on_bug(request: Request, err: Exception) -> Response:
    """Answer a bug, and log it."""
    _log.error("request=%s failed", request.url.path, exc_info=err)
    hint = "this is a bug; the master's log has the traceback"
    return JSONResponse({"error": "the master failed to answer", "kind": type(err).__name__, "hint": hint, "cause": []}, 500)
