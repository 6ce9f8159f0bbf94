"""The kernel enforcer in a VM, as tests use it: rules in short words, operations by real programs, events.

    with Lab() as lab:
        guard = Guard(lab.boot("guard", K61))
        guard.hold(process("/usr/bin/base64"))
        assert guard.refuses("base64", "/etc/hostname")

Owns: the process in the guest that holds the rules (lsm_holder.py). Rules that are held outlive it, as they should.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from garrison.common.events import Event
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Postures, Rule, RuleSet, Source, Verdict
from vm.lab import Background, Vm

__all__ = ["REFUSED", "Guard", "HolderError", "file", "path", "process"]

REFUSED = "EPERM"
_HERE = Path(__file__).parent
_IN_GUEST = "/opt/test"
_HOLDER_IN_GUEST, _ASK_IN_GUEST = f"{_IN_GUEST}/lsm_holder.py", f"{_IN_GUEST}/ask.py"
_APPLY_TIMEOUT_S = 240.0  # verifying every program takes seconds on an emulated CPU, more on a busy machine
_ASK = r"""
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.stdin.buffer.read() + b"\n")
sys.stdout.write(s.makefile().readline())
"""
# Runs statements and prints what came of them: OK, or the name of the error.
_TRY = r"""
import ctypes, errno, mmap, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)
def syscall(number, *args):
    got = libc.syscall(number, *args)
    if got < 0:
        raise OSError(ctypes.get_errno(), str(number))
    return got
for statement in sys.argv[1:]:
    try:
        exec(statement)
        print("OK")
    except OSError as err:
        print(errno.errorcode.get(err.errno, err.errno))
"""


class HolderError(Exception):
    """The enforcer in the guest raised; the text says what."""


class Guard:
    """The enforcer in ``vm``.

    Attributes:
        vm: Where it runs.
        tamper: Name of what the next agent makes of attempts at it.
        version: Of its programs, as the next agent pretends; empty for the true one.
        rate: Events per second and at once that the next agent lets a rule tell; as the settings have it.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm, self.tamper, self.version = vm, "AUDIT", ""
        self.rate = (100, 200)
        self._numbers = itertools.count()
        self._holder: Background | None = None
        self._socket = ""
        for name in ("holder.py", "lsm_holder.py"):
            vm.put(f"{_IN_GUEST}/{name}", (_HERE / name).read_bytes())
        vm.put(_ASK_IN_GUEST, _ASK)

    # ---- the agent -----------------------------------------------------------------------------------------------------
    def hold(self, *rules: Rule, postures: Postures | None = None) -> list[dict[str, Any]]:
        """Apply these rules instead of those before; returns the compile report. Starts an agent if none runs."""
        done: list[dict[str, Any]] = self.ask("apply", rules=_ruleset(rules, postures or Postures()))
        return done

    def try_(self, *rules: Rule, postures: Postures | None = None, timeout_s: float = 600) -> None:
        """Apply these rules on trial: ``ask("keep")``, ``ask("go back")`` or the deadman ends that."""
        self.ask("try", rules=_ruleset(rules, postures or Postures()), timeout_s=timeout_s)

    def swap(self, *turns: tuple[Rule, ...]) -> None:
        """Apply one set of rules after the other, as fast as it goes."""
        self.ask("swap", turns=[_ruleset(rules, Postures()) for rules in turns])

    def events(self, at_least: int = 1, timeout_s: float = 20) -> list[Event]:
        """Return the events since the last call, as soon as there are ``at_least`` so many."""
        found: list[Event] = []

        def enough() -> bool:
            found.extend(msgspec.convert(e, Event) for e in self.ask("events"))
            return len(found) >= at_least

        self.vm.until(enough, f"{at_least} events, had {found}", timeout_s)
        return found

    def counters(self) -> dict[str, int]:
        """Return the enforcer's figures."""
        done: dict[str, int] = self.ask("status")["counters"]
        return done

    def trouble(self) -> str:
        """Return what the enforcer says is wrong with it."""
        done: str = self.ask("status")["detail"]
        return done

    def kill(self) -> None:
        """End the agent the hard way."""
        if self._holder:
            self._holder.kill()
        self.forget()

    def forget(self) -> None:
        """Wait for the end of an agent that was ended otherwise."""
        if self._holder:
            self._holder.wait()
            self._holder = None

    @property
    def pid(self) -> int:
        """The agent's, in the guest."""
        assert self._holder, "no agent runs"
        return self._holder.pid

    def log(self) -> str:
        """Return what the present or last agent wrote to its standard error."""
        return self.vm.get(f"{self._socket}.log").decode()

    def ask(self, do: str, **fields: Any) -> Any:
        """Have the agent do something and return what it came to.

        Raises:
            HolderError: It raised.
        """
        if self._holder is None:
            self._start()
        request = json.dumps({"do": do, **fields})
        done = json.loads(self.vm.check("python3", "-SE", _ASK_IN_GUEST, self._socket, stdin=request, timeout_s=_APPLY_TIMEOUT_S))
        if "error" in done:
            raise HolderError(done["error"])
        return done["done"]

    def _start(self) -> None:
        self._socket = f"/run/holder-{next(self._numbers)}"
        self._holder = self.vm.start(
            "python3",
            _HOLDER_IN_GUEST,
            self._socket,
            self.tamper,
            self.version,
            *map(str, self.rate),
            log=f"{self._socket}.log",
        )
        self.vm.until(lambda: self.vm.run("test", "-S", self._socket).returncode == 0, "the agent's socket")

    # ---- operations ----------------------------------------------------------------------------------------------------
    def tries(self, *statements: str, by: str = "python3", user: str = "") -> str | list[str]:
        """Run Python statements in one process and return ``OK`` or the error's name for each (alone: for one)."""
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        done = self.vm.run(*as_user, by, "-SEc", _TRY, *statements)
        assert done.returncode == 0, done.stderr
        results = done.stdout.split()
        return results[0] if len(statements) == 1 else results

    def opens(self, path: str, by: str = "cat") -> bool:
        """Tell whether the program ``by`` can read the file."""
        done = self.vm.run(by, path)
        assert done.returncode == 0 or "Operation not permitted" in done.stderr, done.stderr
        return done.returncode == 0

    def starts(self, program: str) -> bool:
        """Tell whether ``program`` can be started."""
        return self.tries(f"subprocess.run([{program!r}, '/etc/hostname'], check=True, stdout=-3)") == "OK"

    def files(self, *paths: str, text: str = "hi\n") -> None:
        """Make files, with their folders, or overwrite them."""
        for each in paths:
            self.vm.put(each, text)


def _ruleset(rules: Iterable[Rule], postures: Postures) -> Any:
    return msgspec.to_builtins(RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id)), postures=postures))


def path(where: str) -> PathTarget:
    """Return what ``where`` names: ``/a/`` a directory, ``/a/**`` one with all below, ``*`` elsewhere a glob, ``a`` a name."""
    if not where.startswith("/"):
        return PathTarget(PathKind.NAME, where)
    if where.endswith("/"):
        return PathTarget(PathKind.DIRECTORY, where)
    if where.endswith("/**") and "*" not in where[:-3]:
        return PathTarget(PathKind.DIRECTORY, where[:-2], recursive=True)
    return PathTarget(PathKind.GLOB if any(c in where for c in "*?[") else PathKind.EXACT, where)


def process(where: str, verdict: Verdict = Verdict.BLOCK, *, by: str = "", policy: str = "p", **fields: Any) -> Rule:
    """Return a process rule; ``by`` is the acting program or directory."""
    return _rule(Entity.PROCESS, where, verdict, by, policy=policy, fields=fields)


def file(where: str, verdict: Verdict = Verdict.BLOCK, *, by: str = "", policy: str = "p", **fields: Any) -> Rule:
    """Return a file rule; ``by`` is the acting program or directory."""
    return _rule(Entity.FILE, where, verdict, by, policy=policy, fields=fields)


def _rule(entity: Entity, where: str, verdict: Verdict, by: str, *, policy: str, fields: dict[str, Any]) -> Rule:
    name = fields.pop("name", f"{entity}-{verdict}-{where}{'-' if by else ''}{by}")
    sources = (Source(by),) if by else ()
    return Rule(
        id=f"{policy}/{name}", policy=policy, entity=entity, verdict=verdict, target=path(where), sources=sources, **fields
    )
