"""A ZeroMQ socket on the event loop: messages in by callback, messages out at once or not at all.

Rules of this file:
- Sends never block: a peer that does not take its messages is reported to the caller, others do not wait for it.
- libzmq's descriptor is edge-triggered: after every send and after every full round the socket is looked at again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import zmq

__all__ = ["Port"]

_ROUND: Final = 256  # messages taken before others on the loop get a turn
_RECHECK_S: Final = 0.5  # belt and braces: a lost edge costs at most this

_log = logging.getLogger(__name__)


class Port:
    """A bound socket.

    Args:
        socket: The socket; owned from now on.
        on_message: Called with the frames of each message. It must not raise; when it does, the message is dropped and logged.
    """

    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[zmq.Frame]], None]) -> None:
        self._socket, self._on_message = socket, on_message
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._paused = self._closed = False
        self._loop.add_reader(self._fd, self._drain)
        self._timer = self._loop.call_later(_RECHECK_S, self._recheck)

    def send(self, *frames: bytes) -> bool:
        """Send a message; return whether the socket took it. ``False``: the peer is gone or takes nothing."""
        if self._closed:
            return False
        try:
            self._socket.send_multipart(frames, flags=zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as err:
            if err.errno != zmq.EHOSTUNREACH:
                raise
            return False
        finally:
            self._look_again()
        return True

    def pause(self) -> None:
        """Take no messages; peers feel it once the socket's queues are full."""
        self._paused = True

    def resume(self) -> None:
        """Take messages again."""
        if self._paused:
            self._paused = False
            self._look_again()

    def close(self, linger_ms: int) -> None:
        """Close; what was sent may still leave for ``linger_ms``. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close(linger=linger_ms)

    def _look_again(self) -> None:
        if self._again is None and not self._closed and not self._paused:
            self._again = self._loop.call_soon(self._drain)

    def _recheck(self) -> None:
        self._timer = self._loop.call_later(_RECHECK_S, self._recheck)
        self._drain()

    def _drain(self) -> None:
        self._again = None
        for _ in range(_ROUND):
            if self._paused or self._closed:
                return
            try:
                frames = self._socket.recv_multipart(flags=zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._on_message(frames)
            except Exception:  # noqa: BLE001 - one peer's message must not end the others' service
                _log.exception("message=dropped")
        self._look_again()
