"""What a link needs to know: where masters are, which keys, how patient to be."""

from __future__ import annotations

import msgspec

from garrison.common import limits
from garrison.common.errors import ConfigError

__all__ = ["LinkSettings"]

_Z85_KEY_CHARS = 40


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a link. Times are seconds.

    Attributes:
        masters: Endpoints, ``tcp://host:port``, in order of preference.
        server_key: Master's CURVE public key, Z85.
        public_key: This node's CURVE public key, Z85.
        secret_key: Its secret key, Z85; never shown.
        connect_s: A TCP connect that takes longer has failed.
        handshake_s: A CURVE handshake, and the wait for ``Welcome``, that take longer have failed.
        ping_s: After so long without sending anything a ``Ping`` is sent.
        dead_s: After so long without hearing anything the peer is gone.
        ack_s: After so long without an ack for a batch the connection is made anew.
        reconnect_min_s: Shortest wait between attempts.
        unreachable_max_s: Longest wait between attempts that reach nobody.
        reconnect_max_s: Longest wait after a refusal.
        chunk_s: After so long a missing chunk is asked for again.
        fetch_s: After so long without progress, over all connections, a fetch fails.
        batch_events: Events, or a relay's items, in one message.

    Raises:
        ConfigError: No master, or a key that is none.
    """

    masters: tuple[str, ...]
    server_key: bytes
    public_key: bytes
    secret_key: bytes
    connect_s: float = limits.CONNECT_MAX_S
    handshake_s: float = limits.HANDSHAKE_MAX_S
    ping_s: float = limits.IDLE_PING_S
    dead_s: float = limits.PEER_DEAD_S
    ack_s: float = limits.ACK_MAX_S
    reconnect_min_s: float = limits.RECONNECT_MIN_S
    unreachable_max_s: float = limits.UNREACHABLE_MAX_S
    reconnect_max_s: float = limits.RECONNECT_MAX_S
    chunk_s: float = limits.CHUNK_MAX_S
    fetch_s: float = limits.FETCH_MAX_S
    batch_events: int = limits.BATCH_MAX_EVENTS

    def __post_init__(self) -> None:
        if not self.masters:
            raise ConfigError("a link needs at least one master", hint="look at masters in the join file")
        for name in ("server_key", "public_key", "secret_key"):
            if len(getattr(self, name)) != _Z85_KEY_CHARS:
                raise ConfigError(
                    f"{name} is not a CURVE key: it has {len(getattr(self, name))} characters, not {_Z85_KEY_CHARS}"
                )

    def __repr__(self) -> str:
        return f"LinkSettings(masters={self.masters!r})"  # without keys: this ends up in tracebacks
