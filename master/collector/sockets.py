"""The socket that nodes connect to, and what libzmq knows about the connection of a message.

Rules of this file:
- Limits that libzmq enforces are set here: message size, handshake time, heartbeats, queues.
- libzmq has no call that closes one connection. Its descriptor is shut down instead, after a check that it is still the same
  connection, since numbers of descriptors are used again.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

import zmq

from garrison.common import limits
from garrison.common.errors import ConfigError
from garrison.master.collector.zap import DOMAIN

__all__ = ["Peer", "bind_router", "peer_of", "shut_down"]

_IN_QUEUE: Final = 64  # messages of one connection that wait to be read: eight times the credits
_OUT_QUEUE: Final = 1_000  # messages that wait to be sent to one connection


class Peer:
    """Whose message it is. What libzmq has to be asked for is asked for when it is needed: most messages need the key alone.

    Attributes:
        routing_id: The socket's name of the connection.
        key: Authenticated Z85 CURVE key.
    """

    __slots__ = ("_frame", "key", "routing_id")

    def __init__(self, routing_id: bytes, frame: zmq.Frame) -> None:
        self.routing_id, self._frame = routing_id, frame
        self.key = str(frame.get("User-Id"))

    @property
    def fd(self) -> int:
        """Descriptor of the connection, -1 when unknown."""
        return int(self._frame.get(zmq.SRCFD))

    @property
    def address(self) -> str:
        """``IP:PORT``, or ``IP`` when the connection has ended meanwhile."""
        return _name(self.fd) or str(self._frame.get("Peer-Address"))


def bind_router(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, public_key: bytes, secret_key: bytes
) -> zmq.Socket[bytes]:
    """Return the bound socket for nodes; the ZAP handler must be there already.

    Raises:
        ConfigError: The address cannot be used.
    """
    router = context.socket(zmq.ROUTER)
    router.curve_server = True
    router.curve_publickey, router.curve_secretkey = public_key, secret_key
    router.zap_domain = DOMAIN
    options = {
        zmq.ZAP_ENFORCE_DOMAIN: 1,
        zmq.ROUTER_MANDATORY: 1,  # sending to a connection that is gone is an error, not silence
        zmq.MAXMSGSIZE: limits.FRAME_MAX_BYTES + limits.CURVE_OVERHEAD_BYTES,
        zmq.HANDSHAKE_IVL: int(limits.HANDSHAKE_MAX_S * 1000),
        # No HEARTBEAT_IVL: our own Ping tells more (the agent lives, not only its I/O thread), and one a side would cost a quiet
        # node several megabytes a day.
        zmq.RCVHWM: _IN_QUEUE,
        zmq.SNDHWM: _OUT_QUEUE,
        zmq.BACKLOG: limits.LISTEN_BACKLOG,
        zmq.IPV6: int("[" in endpoint),
        zmq.LINGER: 0,
    }
    for option, value in options.items():
        router.setsockopt(option, value)
    try:
        router.bind(endpoint)
    except zmq.ZMQError as err:
        router.close()
        raise ConfigError(f"cannot listen on {endpoint}: {err.strerror}", hint="is another master running? see --listen") from err
    return router


def peer_of(frames: list[zmq.Frame]) -> Peer:
    """Return whose message this is.

    Args:
        frames: As received from the router, the routing id first.
    """
    return Peer(frames[0].bytes, frames[-1])


def shut_down(fd: int, address: str) -> None:
    """Close the connection on ``fd`` if it still is the one to ``address``; libzmq then forgets it."""
    if fd >= 0 and _name(fd) == address:
        with contextlib.suppress(OSError), _borrowed(fd) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def _name(fd: int) -> str:
    try:
        with _borrowed(fd) as connection:
            host, port = connection.getpeername()[:2]
    except (OSError, ValueError):  # closed meanwhile
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _borrowed(fd: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fd))
