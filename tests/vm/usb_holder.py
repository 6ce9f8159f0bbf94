"""Runs in a VM: holds USB device rules and answers requests on a UNIX socket, one JSON object a line each way.

Requests: {"do": "apply", "rules": RuleSet as JSON}, {"do": "probe"}, {"do": "status"}, {"do": "close"}, {"do": "release"}.
Events are appended to a file.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from garrison.common.errors import GarrisonError
from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.usb import UsbEnforcer


def answer(enforcer: UsbEnforcer, request: dict[str, Any]) -> Any:
    """Do what ``request`` asks and return what it came to."""
    if request["do"] == "apply":
        return enforcer.apply(msgspec.convert(request["rules"], RuleSet))
    return getattr(enforcer, request["do"])()


def main() -> None:
    """Serve until killed. Arguments: the socket, the file for events, the runtime directory."""
    with Path(sys.argv[2]).open("ab", buffering=0) as told, socket.socket(socket.AF_UNIX) as listening:
        enforcer = UsbEnforcer(lambda event: told.write(msgspec.json.encode(event) + b"\n"), runtime_dir=Path(sys.argv[3]))
        Path(sys.argv[1]).unlink(missing_ok=True)
        listening.bind(sys.argv[1])
        listening.listen()
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    try:
                        done = {"done": answer(enforcer, json.loads(line))}
                    except GarrisonError as err:
                        done = {"error": f"{type(err).__name__}: {err} {err.hint or ''}"}
                    stream.write(msgspec.json.encode(done) + b"\n")
                    stream.flush()


if __name__ == "__main__":
    main()
