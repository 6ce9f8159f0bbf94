"""Runs in a VM: holds rules with the kernel enforcer and answers requests on a UNIX socket, one JSON object a line each way.

Requests: {"do": "apply", "rules": RuleSet as JSON}, {"do": "swap", "turns": [...]}: several, one after the other,
{"do": "workloads", "workloads": [...]}, {"do": "events"}: those since the last request, {"do": "cgroups"}: likewise,
{"do": "status"},
{"do": "close"}, {"do": "release"}. Answers have "error" when the enforcer raised. Started by ``lsm.Guard``; ends by ``SIGKILL``.
"""

from __future__ import annotations

import json
import queue
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from garrison.common.errors import GarrisonError
from garrison.common.events import Event
from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.base import CgroupMade
from garrison.minion.enforcers.bpf_lsm import pins
from garrison.minion.enforcers.bpf_lsm.enforcer import BpfLsmEnforcer
from garrison.minion.enforcers.bpf_lsm.options import EventRate, LsmOptions, Tamper
from garrison.minion.workloads.model import Workload

cgroups: queue.SimpleQueue[CgroupMade] = queue.SimpleQueue()


def answer(enforcer: BpfLsmEnforcer, events: queue.SimpleQueue[Event], request: dict[str, Any]) -> Any:
    """Do what ``request`` asks and return what it came to."""
    match request["do"]:
        case "apply":
            return enforcer.apply(msgspec.convert(request["rules"], RuleSet))
        case "swap":
            return [enforcer.apply(rules) for rules in msgspec.convert(request["turns"], list[RuleSet])][-1]
        case "workloads":
            return enforcer.set_workloads(msgspec.convert(request["workloads"], list[Workload]))
        case "cgroups":
            return [cgroups.get() for _ in range(cgroups.qsize())]
        case "events":
            return [events.get() for _ in range(events.qsize())]
        case "status":
            return enforcer.status()
        case "close":
            return enforcer.close()
        case _:
            return enforcer.release()


def main() -> None:
    """Serve until killed. Arguments: the socket, a ``Tamper``, a version to pretend or nothing, events per second and burst."""
    if sys.argv[3]:
        pins.version = lambda: sys.argv[3]
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    per_s, burst = map(int, sys.argv[4:])
    options = LsmOptions(tamper=Tamper[sys.argv[2]], rate=EventRate(per_s=per_s, burst=burst))
    enforcer = BpfLsmEnforcer(events.put, options=options)
    enforcer.watch_cgroups(cgroups.put)
    listening = socket.socket(socket.AF_UNIX)
    Path(sys.argv[1]).unlink(missing_ok=True)
    listening.bind(sys.argv[1])
    listening.listen()
    while True:
        connection, _ = listening.accept()
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                try:
                    done = {"done": answer(enforcer, events, json.loads(line))}
                except GarrisonError as err:
                    done = {"error": f"{type(err).__name__}: {err} {err.hint or ''}"}
                stream.write(msgspec.json.encode(done) + b"\n")
                stream.flush()


if __name__ == "__main__":
    main()
