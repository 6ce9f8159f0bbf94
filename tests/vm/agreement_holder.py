"""Runs in a VM: holds rules with an enforcer, has programs act under them, and says what came of it.

A connection is one JSON object each way. Request: ``rules`` (a RuleSet), ``operations``: (actor, line for agreement.c). Answer:
``results``, one per operation, and ``told``: what was told of the actors, by operation, as (operation, object, verdict, rule).
Started by test_agreement.py with the socket, the enforcer's name, and the actors as JSON: (program, user, whether it has a
terminal). One enforcer a VM: fanotify's responder opens what is asked about, which another enforcer would refuse to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import pwd
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from garrison.common.errors import GarrisonError
from garrison.common.events import Event, Kind
from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.base import Emit, Enforcer
from garrison.minion.enforcers.bpf_lsm.enforcer import BpfLsmEnforcer
from garrison.minion.enforcers.fanotify import FanotifyEnforcer

_TOLD_TIMEOUT_S = 30.0


_ENFORCERS: dict[str, Callable[[Emit], Enforcer]] = {
    "bpf_lsm": BpfLsmEnforcer,
    "fanotify": lambda emit: FanotifyEnforcer(emit, runtime_dir=Path(tempfile.mkdtemp())),
}


class Actor:
    """One program that acts; started before there are rules."""

    def __init__(self, program: str, user: str, tty: bool) -> None:
        uid = pwd.getpwnam(user).pw_uid
        self.program = program
        self._terminal = pty.openpty() if tty else ()

        def prepare() -> None:
            os.setsid()
            if self._terminal:
                fcntl.ioctl(self._terminal[1], termios.TIOCSCTTY, 0)
            os.setresuid(uid, uid, uid)

        self._process = subprocess.Popen(
            [program, "act"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            preexec_fn=prepare,  # noqa: PLW1509 - no thread runs yet
        )

    def act(self, line: str) -> str:
        """Have it do something; returns what came of it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{line}\n")
        return self._process.stdout.readline().strip()


class Held:
    """An enforcer and what it told."""

    def __init__(self, make: Callable[[Emit], Enforcer]) -> None:
        self._lock, self._events = threading.Lock(), list[Event]()
        self.enforcer = make(self._emit)

    def _emit(self, event: Event) -> None:
        if event.kind == Kind.ALERT:
            with self._lock:
                self._events.append(event)

    def told(self) -> list[Event]:
        """Wait until everything that was decided has been told, and return all of it so far."""
        deadline = time.monotonic() + _TOLD_TIMEOUT_S
        while time.monotonic() < deadline:
            counters = self.enforcer.status().counters
            with self._lock:
                if len(self._events) >= counters["blocks"] + counters["audits"] - counters.get("suppressed", 0):
                    return list(self._events)
            time.sleep(0.005)
        raise TimeoutError(f"{len(self._events)} alerts of {counters}")

    def runs(self, rules: RuleSet, operations: list[tuple[int, str]], actors: list[Actor]) -> dict[str, Any]:
        """Do ``operations`` under ``rules``, then take the rules away."""
        self.enforcer.apply(rules)
        # The event of a program that was ended for its arguments names that program as the one that acts.
        root = str(Path(actors[0].program).parent)
        results, told = [], []
        before = len(self.told())
        for number, line in operations:
            results.append(actors[number].act(line))
            events = self.told()
            told.append(
                [(e.operation, e.object, e.verdict, e.rule) for e in events[before:] if e.actor and e.actor.exe.startswith(root)]
            )
            before = len(events)
        self.enforcer.apply(RuleSet())
        return {"results": results, "told": told}


def main() -> None:
    """Serve until killed."""
    actors = [Actor(*made) for made in json.loads(sys.argv[3])]
    held = Held(_ENFORCERS[sys.argv[2]])
    held.enforcer.apply(RuleSet())
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen()
    while True:
        connection, _ = listening.accept()
        with connection, connection.makefile("rwb") as stream:
            request = json.loads(stream.read())
            rules = msgspec.convert(request["rules"], RuleSet)
            operations = [tuple(each) for each in request["operations"]]
            try:
                answer: Any = held.runs(rules, operations, actors)
            except (GarrisonError, TimeoutError) as err:
                answer = {"error": f"{type(err).__name__}: {err} {getattr(err, 'hint', '')}"}
            stream.write(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
