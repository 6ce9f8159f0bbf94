"""The host's end of the command channel into a VM. The other end, ``vagrant/image/guest/usr/local/sbin/vmsh``, has the protocol.

Rules of this file:
- One request at a time; an answer that comes after its request timed out is thrown away by its number.
- The channel ends when the VM does: ``ChannelClosedError``, and the caller knows why better than this file.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

__all__ = ["AgentError", "Channel", "ChannelClosedError"]


class ChannelClosedError(Exception):
    """The VM ended or closed the channel."""


class AgentError(Exception):
    """The agent could not do what it was asked, such as run a program that does not exist; the text is its own."""


class Channel:
    """Requests and answers over a UNIX socket that QEMU serves.

    Args:
        path: The socket; must accept connections by now.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._pending = bytearray()
        self._last_id = 0

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a booting VM's agent says that it serves.

        Raises:
            TimeoutError: It did not within ``timeout_s``.
            ChannelClosedError: The VM ended.
        """
        deadline = time.monotonic() + timeout_s
        while not self._receive(deadline).get("ready"):
            pass

    def ask(self, op: str, limit_s: float, **fields: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            AgentError: The agent refused or failed.
            TimeoutError: No answer within ``limit_s``.
            ChannelClosedError: The VM ended.
        """
        deadline = time.monotonic() + limit_s
        self.tell(op, **fields)
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._last_id:
                break
        if "error" in answer:
            raise AgentError(answer["error"])
        return answer

    def tell(self, op: str, **fields: Any) -> None:
        """Send a request whose answer nobody will wait for, such as one that ends the VM."""
        self._last_id += 1
        self._socket.settimeout(60)
        try:
            self._socket.sendall(json.dumps({"id": self._last_id, "op": op, **fields}).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as err:
            raise ChannelClosedError from err

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while (end := self._pending.find(b"\n")) < 0:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 20)
            except ConnectionResetError as err:
                raise ChannelClosedError from err
            if not data:
                raise ChannelClosedError
            self._pending += data
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        answer: dict[str, Any] = json.loads(line)
        return answer
