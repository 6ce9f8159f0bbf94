"""Tells the service manager how the service is doing: sd_notify(3) without a library.

Rules of this file:
- Fail-open: a service manager that does not listen never stops or delays the service; ``False`` is all that comes of it.
- Never blocks: a full socket counts as not told.
"""

from __future__ import annotations

import os
import socket

__all__ = ["notify"]


def notify(text: str) -> bool:
    """Send ``text`` to ``$NOTIFY_SOCKET``; returns whether it was handed over.

    Args:
        text: Lines of ``NAME=value``, e.g. ``READY=1`` or ``WATCHDOG=1``.

    Returns:
        ``False`` when the variable is unset, names no AF_UNIX address, or nobody takes the datagram.

    Source: sd_notify(3): a path begins with ``/``, an abstract name with ``@``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"} or len(address) < 2:  # noqa: PLR2004 - the prefix alone names nothing
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.connect(address)
            return sock.send(text.encode()) > 0
    except OSError:  # the manager is gone, its queue is full, or the path is too long: see the rule above
        return False
