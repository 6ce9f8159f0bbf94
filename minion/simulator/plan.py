"""What to simulate: which nodes, against which master, at which rate."""

from __future__ import annotations

import msgspec
import zmq

from garrison.common.names import NodeName, node_name

__all__ = ["FleetPlan", "NodeKey", "make_keys"]


class NodeKey(msgspec.Struct, frozen=True):
    """A simulated node's name and CURVE keys, Z85."""

    name: NodeName
    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"NodeKey(name={self.name!r})"  # without keys: this ends up in tracebacks


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet to simulate.

    Attributes:
        endpoint: The master, ``tcp://host:port``.
        server_key: Its CURVE public key, Z85.
        rate: Events a second that each node makes; 0 for none.
        event_bytes: About so many bytes an event, encoded.
        processes: Over which the nodes are spread.
    """

    endpoint: str
    server_key: bytes
    rate: float = 1.0
    event_bytes: int = 200
    processes: int = 1


def make_keys(prefix: str, count: int) -> list[NodeKey]:
    """Return ``count`` new nodes, named ``prefix`` and a number.

    Raises:
        ConfigError: The prefix does not make node names.
    """
    width = len(str(count - 1))
    return [NodeKey(node_name(f"{prefix}{number:0{width}}"), *zmq.curve_keypair()) for number in range(count)]
