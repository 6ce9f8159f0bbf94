"""A node's end of the link for tests: real sockets, real CURVE, real frames; no agent behind it.

Blocking, one thread; every wait has a limit.
"""

from __future__ import annotations

import secrets
import time

import zmq

from garrison.common.events import Event, Kind, Lane, encode_event
from garrison.common.frames import Batch, Down, Hello, Ping, Pong, Up, decode_down, encode_frame
from garrison.common.names import fingerprint

__all__ = ["Peer", "batch_of", "event"]


class Peer:
    """One DEALER connection with a key of its own. libzmq does not knock again after a refused handshake: ``connect`` does.

    Args:
        endpoint: Where the master listens.
        server_key: The master's public key, Z85.
        keypair: ``(public, secret)``; new when not given.
        node: Name it says it has.
    """

    def __init__(self, endpoint: str, server_key: bytes, *, keypair: tuple[bytes, bytes] | None = None, node: str = "n1") -> None:
        self.endpoint, self.server_key = endpoint, server_key
        self.public, self.secret = keypair or zmq.curve_keypair()
        self.node, self.instance = node, secrets.token_hex(16)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self.connect()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)

    def connect(self) -> None:
        """Connect anew: what was in flight on the old connection is lost, as on a cut link."""
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.curve_serverkey = self.server_key
        self._socket.curve_publickey, self._socket.curve_secretkey = self.public, self.secret
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._socket.connect(self.endpoint)

    def close(self) -> None:
        """Vanish."""
        if self._socket is not None:
            self._socket.disable_monitor()
        self._context.destroy(linger=0)

    def send(self, message: Up) -> None:
        self.send_raw(encode_frame(message))

    def send_raw(self, *frames: bytes) -> None:
        assert self._socket is not None
        self._socket.send_multipart(frames)

    def next(self, timeout_s: float = 10) -> Down | None:
        """Return the next message, answering pings on the way; ``None`` if nothing comes in time."""
        assert self._socket is not None
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if not self._socket.poll(int(left * 1000) + 1):
                return None
            message = decode_down(self._socket.recv())
            if isinstance(message, Ping):
                self.send(Pong(n=message.n))
                continue
            return message
        return None

    def wait_for(self, kind: type, timeout_s: float = 10):
        """Return the next message of ``kind``, passing over others."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            message = self.next(left)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} within {timeout_s} s")

    def hello(self, **changes):
        """Say hello and return the master's answer: ``Welcome`` or ``Refused``."""
        facts = {
            "node": self.node,
            "instance": self.instance,
            "epoch": "e1",
            "version": "test",
            "next_seq": 1 << 40,
            "backends": {"audit": "ok"},
            "grains": {"kernel": "6.18"},
        }
        self.send(Hello(**{**facts, **changes}))
        return self.next()

    def wait_disconnected(self, timeout_s: float) -> bool:
        """Return whether the connection was closed, or refused, by the master in time."""
        assert self._monitor is not None
        return bool(self._monitor.poll(int(timeout_s * 1000)))


def event(**fields) -> Event:
    """An event as an observer makes it."""
    return Event(**{"ts": time.time_ns(), "kind": Kind.EXEC, "lane": Lane.SHELL, **fields})


def batch_of(seqs: list[int], *, epoch: str = "e1", lane: Lane = Lane.SHELL, **fields) -> Batch:
    """A batch of events with these numbers."""
    events = [encode_event(event(**{"lane": lane, "object": f"/{seq}", **fields})) for seq in seqs]
    return Batch(epoch=epoch, lane=int(lane), seqs=seqs, events=events)
