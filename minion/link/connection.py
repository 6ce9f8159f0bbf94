"""One encrypted connection to one master: made, watched, used, closed. Never made again: a new one is a new object.

Rules of this file:
- libzmq does not reconnect by itself here: each connection has one beginning, so credits, chunks and acks have one life.
- The monitor tells how the handshake ended; nothing is sent before it succeeded.
- Liveness is the application's Ping (``session``): a libzmq heartbeat proves only that an I/O thread lives, at twice the traffic.
Source: zmq_socket_monitor(3); HANDSHAKE_FAILED_AUTH carries the ZAP status code, 400 for a key that is not accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.minion.link.causes import Failure, LinkFailure, diagnose, key_not_accepted, wrong_key
from garrison.minion.link.settings import LinkSettings

__all__ = ["Connection"]

_T = TypeVar("_T")

_QUEUE_MESSAGES: Final = 64  # at most so many frames in libzmq's hands: output of jobs must not pile up before an alert
_WATCHED: Final = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Connection:
    """A DEALER socket with one life.

    Args:
        context: Made by the link.
        settings: Keys and patience.
        endpoint: Where to.
        node: This node's name, for the text that tells how to accept its key.
    """

    def __init__(self, context: zmq.asyncio.Context, settings: LinkSettings, endpoint: str, node: str) -> None:
        self.endpoint, self._settings, self._node = endpoint, settings, node
        self._socket = context.socket(zmq.DEALER)
        for option, value in self._options().items():
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        self._closed = False

    def _options(self) -> dict[int, int | bytes]:
        s = self._settings
        return {
            zmq.IPV6: 1,
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,
            zmq.RECONNECT_IVL: -1,
            zmq.CONNECT_TIMEOUT: int(s.connect_s * 1000),
            zmq.HANDSHAKE_IVL: int(s.handshake_s * 1000),
            zmq.TCP_MAXRT: int(s.dead_s * 1000),  # Linux TCP_USER_TIMEOUT: unacknowledged for so long, the network is gone
            zmq.MAXMSGSIZE: limits.FRAME_MAX_BYTES + limits.CURVE_OVERHEAD_BYTES,
            zmq.SNDHWM: _QUEUE_MESSAGES,
            zmq.RCVHWM: _QUEUE_MESSAGES,
            zmq.CURVE_SERVERKEY: s.server_key,
            zmq.CURVE_PUBLICKEY: s.public_key,
            zmq.CURVE_SECRETKEY: s.secret_key,
        }

    async def open(self) -> None:
        """Connect and shake hands.

        Raises:
            LinkFailure: It did not come about, and why.
        """
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as err:
            raise LinkFailure(Failure.UNREACHABLE, f"cannot reach {self.endpoint}: {err.strerror}") from err
        connected = False
        while True:
            patience_s = self._settings.handshake_s if connected else self._settings.connect_s
            try:
                async with asyncio.timeout(patience_s):
                    event, value = await self._next_event()
            except TimeoutError:
                raise await self._silence(connected=connected) from None
            if event == zmq.EVENT_CONNECTED:
                connected = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            else:
                raise await self._handshake_failure(event, value, connected=connected)

    async def _silence(self, *, connected: bool) -> LinkFailure:
        return wrong_key(self.endpoint) if connected else await diagnose(self.endpoint, self._settings.connect_s)

    async def _handshake_failure(self, event: int, value: int, *, connected: bool) -> LinkFailure:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            if value == 400:  # noqa: PLR2004 - ZAP's status for credentials that are not accepted
                return key_not_accepted(self._node, self._settings.public_key)
            return LinkFailure(Failure.REFUSED, f"{self.endpoint}: the master cannot check keys now (ZAP status {value})")
        if connected:
            return wrong_key(self.endpoint)
        return await diagnose(self.endpoint, self._settings.connect_s)

    async def _next_event(self) -> tuple[int, int]:
        message = parse_monitor_message(await self._monitor.recv_multipart())
        return int(message["event"]), int(message["value"])

    async def watch(self) -> None:
        """Wait until the other side or the network ends the connection.

        Raises:
            LinkFailure: Always, then.
        """
        while True:
            event, _ = await self._next_event()
            if event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                raise LinkFailure(Failure.LOST, f"lost: {self.endpoint} closed the connection")

    async def send(self, frame: bytes) -> None:
        """Hand ``frame`` to the wire, waiting while it is full.

        Raises:
            LinkFailure: The connection is closed.
        """
        await self._unless_closed(self._socket.send(frame))

    def try_send(self, frame: bytes) -> bool:
        """Hand ``frame`` to the wire if there is room; for messages that are repeated anyway."""
        if self._closed:
            return False
        done = asyncio.ensure_future(self._socket.send(frame, zmq.DONTWAIT))  # resolved, or behind others that wait for room
        return not (done.done() and done.exception() is not None)

    async def receive(self) -> bytes:
        """Return the next frame.

        Raises:
            FrameError: A message of several parts.
            LinkFailure: The connection is closed.
        """
        parts = await self._unless_closed(self._socket.recv_multipart())
        if len(parts) != 1:
            raise FrameError(f"a message of {len(parts)} parts")
        return bytes(parts[0])

    async def _unless_closed(self, work: Awaitable[_T]) -> _T:
        try:
            return await work
        except zmq.ZMQError as err:
            raise LinkFailure(Failure.LOST, f"lost: {err.strerror}") from err

    def close(self) -> None:
        """Close; what was not yet on the wire is gone. Idempotent."""
        if not self._closed:
            self._closed = True
            with suppress(zmq.ZMQError):  # the monitor of a socket that already failed
                self._socket.disable_monitor()
            self._socket.close(linger=0)
