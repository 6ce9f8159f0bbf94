"""Runs in a VM: holds USB device rules and answers requests (holder.py).

Requests: {"do": "apply", "rules": RuleSet as JSON}, {"do": "probe"}, {"do": "status"}, {"do": "close"}, {"do": "release"}.
Events are appended to a file.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from holder import serve

from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.usb import UsbEnforcer


def answer(enforcer: UsbEnforcer, request: dict[str, Any]) -> Any:
    """Do what ``request`` asks and return what it came to."""
    if request["do"] == "apply":
        return enforcer.apply(msgspec.convert(request["rules"], RuleSet))
    return getattr(enforcer, request["do"])()


def main() -> None:
    """Serve until killed. Arguments: the socket, the file for events, the runtime directory."""
    with Path(sys.argv[2]).open("ab", buffering=0) as told:
        enforcer = UsbEnforcer(lambda event: told.write(msgspec.json.encode(event) + b"\n"), runtime_dir=Path(sys.argv[3]))
        serve(Path(sys.argv[1]), partial(answer, enforcer))


if __name__ == "__main__":
    main()
