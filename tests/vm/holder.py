"""Runs in a VM, beside the program that imports it: answers requests on a UNIX socket, one JSON object a line each way.

An answer has ``done``, or ``error`` when what was asked raised.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from garrison.common.errors import GarrisonError

__all__ = ["serve"]


def serve(path: Path, answer: Callable[[dict[str, Any]], Any]) -> None:
    """Serve until killed."""
    with socket.socket(socket.AF_UNIX) as listening:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        listening.listen()
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    try:
                        done = {"done": answer(json.loads(line))}
                    except GarrisonError as err:
                        done = {"error": f"{type(err).__name__}: {err} {err.hint or ''}"}
                    stream.write(msgspec.json.encode(done) + b"\n")
                    stream.flush()
