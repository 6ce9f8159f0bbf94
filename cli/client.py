"""The API's client: HTTP over the master's Unix socket, with the standard library, since a command must start fast.

Rules of this file:
- Errors of the master come back as the errors they were, with hint and causes; so exit codes hold across the socket.
- A stream ends when the master says so; one that breaks off is an error.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from garrison.common import errors
from garrison.common.errors import ConfigError, GarrisonError, LinkError

__all__ = ["DEFAULT_SOCKET", "Api", "as_error", "open_api", "segment"]

DEFAULT_SOCKET: Final = Path("/var/lib/garrison/master/api.sock")
SOCKET_VARIABLE: Final = "GARRISON_SOCKET"
_TIMEOUT_S: Final = 60.0
_OK: Final = range(200, 300)

Param = str | int | None | list[str]


def open_api(socket_path: Path | None = None) -> Api:
    """Return a client of the master.

    Args:
        socket_path: Its socket; ``GARRISON_SOCKET`` or the usual place when ``None``.
    """
    return Api(socket_path or Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET))


class Api:
    """Asks the master. Every call is a connection of its own.

    Args:
        path: The master's socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, path: str, **params: Param) -> Any:
        """Return the JSON answer of a GET.

        Args:
            path: Such as ``/v1/nodes``.
            params: Query parameters; ``None`` is left out, a list is repeated.

        Raises:
            LinkError: The master does not answer.
            GarrisonError: What the master says.
        """
        return json.loads(self.get_bytes(path, **params))

    def get_bytes(self, path: str, **params: Param) -> bytes:
        """Return the answer of a GET as it came; raises as ``get``."""
        response = self._ask("GET", _target(path, params), None, {}, _TIMEOUT_S)
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as err:
            raise self._gone() from err

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON answer of a POST; raises as ``get``.

        Args:
            path: Such as ``/v1/jobs``.
            body: Bytes are sent as msgpack, anything else as JSON.
        """
        raw = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        kind = "application/msgpack" if isinstance(body, bytes) else "application/json"
        response = self._ask("POST", path, raw, {"Content-Type": kind}, _TIMEOUT_S)
        try:
            return json.loads(response.read())
        except (OSError, http.client.HTTPException) as err:
            raise self._gone() from err

    def lines(self, path: str, **params: Param) -> Iterator[bytes]:
        """Return the lines of a stream as they come; raises as ``get``, also in the middle."""
        return self._lines(self._ask("GET", _target(path, params), None, {}, None))

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while line := response.readline():
                if not line.endswith(b"\n"):
                    raise self._gone()
                yield line
        except (OSError, http.client.HTTPException) as err:
            raise self._gone() from err
        finally:
            response.close()

    def post_lines(self, path: str, body: Any) -> Iterator[bytes]:
        """Yield the lines of the stream that a POST answers with; raises as ``lines``."""
        kind = {"Content-Type": "application/json"}
        return self._lines(self._ask("POST", path, json.dumps(body).encode(), kind, None))

    def _ask(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], timeout_s: float | None
    ) -> http.client.HTTPResponse:
        connection = _UnixConnection(self._path, timeout_s)
        try:
            # A master that refuses a request may answer and close before it has read the body; its answer counts.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, target, body, {"Host": "master", "Connection": "close", **headers})
            response = connection.getresponse()
        except PermissionError as err:
            raise LinkError(f"{self._path} is not yours to use", hint="run this as the user that runs the master") from err
        except (OSError, http.client.HTTPException) as err:
            raise self._absent() from err
        if response.status not in _OK:
            raise as_error(response.status, response.read())
        return response

    def _absent(self) -> LinkError:
        return LinkError(
            f"no master answers on {self._path}",
            hint=f"is it running? start it with `garrison master`, or set {SOCKET_VARIABLE} to its socket",
        )

    def _gone(self) -> LinkError:
        return LinkError(f"the master on {self._path} went away in the middle of an answer", hint="look at its log, then repeat")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("master", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _target(path: str, params: dict[str, Param]) -> str:
    pairs = {key: value for key, value in params.items() if value is not None and value != []}
    return f"{path}?{urlencode(pairs, doseq=True)}" if pairs else path


def segment(text: str) -> str:
    """Return ``text`` as one segment of a path."""
    return quote(text, safe="")


def as_error(status: int, raw: bytes) -> GarrisonError:
    """Return the error that the master's answer, or a line of a stream, tells of."""
    try:
        said = json.loads(raw)
        text, hint, kind = str(said["error"]), str(said.get("hint", "")), str(said.get("kind", ""))
        causes = [str(cause) for cause in said.get("cause", [])]
    except (ValueError, KeyError, TypeError):
        return LinkError(f"the master answered with status {status} and no reason")
    if kind in {"PolicyError", "NotFoundError"}:  # the first makes its text from parts; the second is the API's own
        error: GarrisonError = ConfigError(text, hint=hint)
    else:
        made = getattr(errors, kind, GarrisonError)
        simple = isinstance(made, type) and issubclass(made, GarrisonError) and made is not errors.KernelError
        error = made(text, hint=hint) if simple else GarrisonError(text, hint=hint)
    link: BaseException = error
    for cause in causes:
        link.__cause__ = GarrisonError(cause)
        link = link.__cause__
    return error
