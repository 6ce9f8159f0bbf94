"""Why there is no link, in one line for a person. Pure but for one look at the network.

Rules of this file:
- A cause names what was tried and what to do about it.
- ``diagnose`` tries the same TCP connection once more, because libzmq does not say why it failed.
"""

from __future__ import annotations

import asyncio
import os
import socket
from enum import Enum

from garrison.common.names import fingerprint

__all__ = ["Failure", "LinkFailure", "diagnose", "key_not_accepted", "refused", "split_endpoint", "wrong_key"]


class Failure(Enum):
    """What kind of failure ended an attempt or a connection; decides how long to wait."""

    UNREACHABLE = "unreachable"  # nobody was disturbed: try again soon
    REFUSED = "refused"  # a master said no, or speaks with another key: try again slowly
    LOST = "lost"  # was connected: try again at once, spread out
    PROTOCOL = "protocol"  # the master sent what it must not: as refused


class LinkFailure(Exception):  # noqa: N818 - not an error: the ordinary end of a connection
    """A connection ended or never began; ``str()`` is the cause."""

    def __init__(self, kind: Failure, cause: str) -> None:
        super().__init__(cause)
        self.kind = kind


def key_not_accepted(node: str, public_key: bytes) -> LinkFailure:
    """The master answered and does not know this node's key."""
    return LinkFailure(
        Failure.REFUSED,
        f"key not accepted yet: run garrison nodes accept {node} --key {fingerprint(public_key)} on the master",
    )


def wrong_key(endpoint: str) -> LinkFailure:
    """Something answered at the endpoint and could not read what was sealed with the join file's key."""
    return LinkFailure(
        Failure.REFUSED, f"{endpoint}: master's key is not the one in the join file, or no garrison master answers there"
    )


def refused(code: str, reason: str) -> LinkFailure:
    """The master sent ``Refused``."""
    return LinkFailure(Failure.REFUSED, f"refused: {code[:40]}: {reason[:400]}" if reason else f"refused: {code[:40]}")


def split_endpoint(endpoint: str) -> tuple[str, int] | None:
    """Return host and port of a TCP endpoint; ``None`` for any other."""
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


async def diagnose(endpoint: str, timeout_s: float) -> LinkFailure:
    """Return why ``endpoint`` cannot be reached, by trying."""
    address = split_endpoint(endpoint)
    if address is None:
        return LinkFailure(Failure.UNREACHABLE, f"cannot reach {endpoint}: not a tcp://host:port endpoint")
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(*address)
    except TimeoutError:
        why = "timeout"
    except socket.gaierror as err:
        why = f"no address for {address[0]}: {err.strerror}"
    except OSError as err:
        why = os.strerror(err.errno).lower() if err.errno else str(err)
    else:
        writer.close()
        why = "it closed the connection, and answers now"
    return LinkFailure(Failure.UNREACHABLE, f"cannot reach {endpoint}: {why}")
