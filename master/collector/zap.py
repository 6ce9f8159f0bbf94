"""Who may finish the CURVE handshake: the process's one ZAP handler.

Rules of this file:
- Every connection is asked about before it can send a byte of a message; what is not understood is denied.
- The authenticated key becomes the ``User-Id`` of every message of that connection.
Source: ZeroMQ RFC 27 (ZAP), RFC 26 (CurveZMQ).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils import z85

from garrison.master.collector.port import Port

__all__ = ["DOMAIN", "ZapHandler"]

ENDPOINT: Final = "inproc://zeromq.zap.01"  # fixed by RFC 27
DOMAIN: Final = b"garrison"
_VERSION: Final = b"1.0"
_REQUEST_FRAMES: Final = 7  # version, request id, domain, address, routing id, mechanism, one CURVE credential
_KEY_BYTES: Final = 32

_log = logging.getLogger(__name__)


class ZapHandler:
    """Answers libzmq's questions. Must be there before the socket that it guards is bound.

    Args:
        context: The context of the guarded socket.
        knock: Called with the Z85 key and the address; returns whether to let it in.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], knock: Callable[[str, str], bool]) -> None:
        self._knock = knock
        socket = context.socket(zmq.REP)
        socket.bind(ENDPOINT)
        self._port = Port(socket, self._on_request)

    def close(self) -> None:
        """Stop answering; connections that come later are denied by libzmq."""
        self._port.close(linger_ms=0)

    def _on_request(self, frames: list[zmq.Frame]) -> None:
        parts = [frame.bytes for frame in frames]
        request = parts[1] if len(parts) > 1 else b""
        user = b""
        try:
            user = self._user(parts)
        finally:  # whatever happens, the handshake gets an answer
            code, text = (b"200", b"OK") if user else (b"400", b"key not accepted")
            self._port.send(_VERSION, request, code, text, user, b"")

    def _user(self, parts: list[bytes]) -> bytes:
        if len(parts) != _REQUEST_FRAMES or parts[0] != _VERSION or parts[5] != b"CURVE" or len(parts[6]) != _KEY_BYTES:
            _log.warning("zap=denied reason=malformed parts=%d", len(parts))
            return b""
        key = z85.encode(parts[6])
        return key if self._knock(key.decode(), parts[3].decode("ascii", "replace")) else b""
