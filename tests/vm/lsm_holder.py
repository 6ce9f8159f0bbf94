"""Runs in a VM: holds rules with the kernel enforcer and answers requests (holder.py).

Requests: {"do": "apply", "rules": RuleSet as JSON}, {"do": "swap", "turns": [...]}: several, one after the other,
{"do": "workloads", "workloads": [...]}, {"do": "events"}: those since the last request, {"do": "cgroups"}: likewise,
{"do": "try", "rules": RuleSet, "timeout_s": seconds}: on trial under a deadman, which "keep" and "go back" end; {"do": "status"},
{"do": "close"}, {"do": "release"}. Started by ``lsm.Guard``; ends by ``SIGKILL``.
"""

from __future__ import annotations

import queue
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from holder import serve

from garrison.common.errors import KernelError
from garrison.common.events import Event
from garrison.common.names import Digest
from garrison.common.policy.rules import RuleSet
from garrison.minion.arming import arm
from garrison.minion.enforcers.base import CgroupMade
from garrison.minion.enforcers.bpf_lsm import pins
from garrison.minion.enforcers.bpf_lsm.enforcer import BpfLsmEnforcer
from garrison.minion.enforcers.bpf_lsm.options import EventRate, LsmOptions, Tamper
from garrison.minion.workloads.model import Workload

cgroups: queue.SimpleQueue[CgroupMade] = queue.SimpleQueue()
BUNDLE = Digest("0" * 64)


class Trial:
    """Rules on trial, as ``duty`` tries them.

    Args:
        enforcer: Holds them.
        request: Has them, and how long the deadman waits.
        before: Rules to go back to.
    """

    def __init__(self, enforcer: BpfLsmEnforcer, request: dict[str, Any], before: RuleSet) -> None:
        self._enforcer, self._before = enforcer, before
        self._armed = arm(
            Path("/run"), generation=1, digest=BUNDLE, boot="this", timeout_s=request["timeout_s"], writes=enforcer.hold()
        )
        enforcer.apply(msgspec.convert(request["rules"], RuleSet))

    def end(self, how: str) -> None:
        """Keep them or go back."""
        if how == "go back":
            self._enforcer.go_back(self._before)
            self._armed.stand_down("as asked")
        elif self._armed.disarm(BUNDLE):
            self._enforcer.keep()
        else:
            raise KernelError(0, "disarm the deadman")


held, trials = [RuleSet()], list[Trial]()


def answer(enforcer: BpfLsmEnforcer, events: queue.SimpleQueue[Event], request: dict[str, Any]) -> Any:  # noqa: PLR0911 - a line each
    """Do what ``request`` asks and return what it came to."""
    match request["do"]:
        case "apply":
            held.append(msgspec.convert(request["rules"], RuleSet))
            return enforcer.apply(held[-1])
        case "try":
            return trials.append(Trial(enforcer, request, held[-1]))
        case "keep" | "go back" as end:
            return trials.pop().end(end)
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
    serve(Path(sys.argv[1]), partial(answer, enforcer, events))


if __name__ == "__main__":
    main()
