"""How this side speaks and what it believes: straight with the master, or through a relay that it does not trust.

Rules of this file:
- Straight: the connection's key says who speaks, and nothing is added.
- Through a relay: what this node says is signed, since the relay keeps it and passes it on; commands and confirmations count only
  under the master's seal. A relay can delay and withhold, it can neither speak for the node nor command it.
- Whether there is a relay is told by the pinned join file, never by who answers.
- Fail-closed: what lacks a seal ends the connection; what has a wrong one is not obeyed.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

import msgspec

from garrison.common import limits
from garrison.common.errors import FrameError, SignatureError
from garrison.common.frames import (
    ChunkRequest,
    Confirmed,
    Down,
    Hello,
    Job,
    JobCancel,
    Ping,
    Pong,
    Refused,
    Up,
    Welcome,
    decode_down,
    encode_frame,
)
from garrison.common.relay_frames import Sealed, Signed
from garrison.common.trust.pair import NodeSigner, PairSecret

__all__ = ["DIRECT", "DirectVoice", "RelayedVoice", "Voice"]


_log = logging.getLogger(__name__)


class Voice(Protocol):
    """Turns messages into what is sent, and what came into messages that are believed."""

    def said(self, message: Up) -> Up:
        """Return what to send for ``message``.

        Raises:
            FrameError: It is too large.
        """

    def heard(self, message: Down, instance: str) -> Down | None:
        """Return the message to obey; ``None`` for one that was sealed for somebody else, such as an earlier life of this agent.

        Args:
            message: As it came.
            instance: Of this agent.

        Raises:
            FrameError: It must not come on this way.
        """

    def refuses_for_itself(self, message: Down) -> bool:
        """Tell whether ``message``, as it came, is a refusal of who carries, and not the master's."""

    def check_welcome(self, welcome: Welcome) -> None:
        """Check that who answers can take what this side says.

        Raises:
            FrameError: It cannot.
        """


class DirectVoice:
    """A node that speaks with its master."""

    def said(self, message: Up) -> Up:
        """Return ``message``."""
        return message

    def heard(self, message: Down, instance: str) -> Down:  # noqa: ARG002 - part of the protocol
        """Return ``message``."""
        if isinstance(message, Sealed):
            raise FrameError("a sealed message on a connection without a relay")
        return message

    def refuses_for_itself(self, message: Down) -> bool:  # noqa: ARG002
        """Return ``False``: the master itself answers."""
        return False

    def check_welcome(self, welcome: Welcome) -> None:
        """Any master will do."""


DIRECT: Final = DirectVoice()


class RelayedVoice:
    """A node that speaks through a relay.

    Args:
        node: Its name.
        secret_key: Its CURVE secret key, Z85.
        master_key: The master's CURVE public key, Z85.
    """

    def __init__(self, node: str, secret_key: bytes, master_key: bytes) -> None:
        self._node = node
        self._signer = NodeSigner(node, secret_key)
        self._pair = PairSecret(secret_key, master_key)
        self._signing_key = self._signer.public_key
        self._vouch = self._pair.vouch(node, self._signing_key)

    def said(self, message: Up) -> Up:
        """Return ``message`` signed; what is for the relay alone goes as it is."""
        if isinstance(message, Hello):
            return msgspec.structs.replace(message, signing_key=self._signing_key.hex(), vouch=self._vouch.hex())
        if isinstance(message, ChunkRequest | Ping | Pong):
            return message
        frame = encode_frame(message)
        if len(frame) > limits.SIGNED_FRAME_MAX_BYTES:
            raise FrameError(f"{type(message).__name__} takes {len(frame)} bytes, more than a relay passes on")
        return Signed(frame=frame, signature=self._signer.sign(frame))

    def heard(self, message: Down, instance: str) -> Down | None:
        """Return what the master sealed, or what a relay may say by itself; ``None`` for what is not sealed for this life."""
        if isinstance(message, Job | JobCancel | Confirmed):
            raise FrameError(f"the relay sent a {type(message).__name__} that its master did not seal")
        if not isinstance(message, Sealed):
            return message
        try:
            self._pair.check_seal(self._node, instance, message.frame, message.seal)
        except SignatureError as err:
            _log.warning("message=ignored reason=%s", err)
            return None
        inner = decode_down(message.frame)
        if not isinstance(inner, Job | JobCancel | Confirmed | Refused):
            raise FrameError(f"a sealed {type(inner).__name__}")
        return inner

    def refuses_for_itself(self, message: Down) -> bool:
        """Tell whether it is an unsealed refusal."""
        return isinstance(message, Refused)

    def check_welcome(self, welcome: Welcome) -> None:
        """Any relay will do."""
