"""What the fanotify tests share: an enforcer over a file system of its own, and programs on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from garrison.common.events import Event
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Postures, Rule, RuleSet, Source, Verdict
from garrison.minion.enforcers.fanotify import FanotifyEnforcer

__all__ = ["Node", "directory", "exact", "glob", "name", "wait_for"]


def exact(path) -> PathTarget:
    return PathTarget(how=PathKind.EXACT, value=str(path))


def directory(path, *, recursive: bool = False) -> PathTarget:
    return PathTarget(how=PathKind.DIRECTORY, value=f"{path}/", recursive=recursive)


def glob(pattern) -> PathTarget:
    return PathTarget(how=PathKind.GLOB, value=str(pattern))


def name(text: str) -> PathTarget:
    return PathTarget(how=PathKind.NAME, value=text)


def wait_for(condition, what: str, timeout_s: float = 15):
    """Wait until ``condition()`` is true; returns what it gave."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s: {what}")


class Node:
    """A tmpfs at ``root`` with some programs, and an enforcer. Marks on it concern nobody else on the machine."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="garrison-fan-")).resolve()
        subprocess.run(["mount", "-t", "tmpfs", "garrison-fan", str(self.root)], check=True)
        (self.root / "bin").mkdir()
        for program in ("cat", "true", "sh", "ls"):
            shutil.copy(os.path.realpath(f"/bin/{program}"), self.root / "bin" / program)
        self.events: list[Event] = []
        self.gate = threading.Event()
        self.gate.set()
        runtime = self.root / "run"
        runtime.mkdir()
        self.enforcer = FanotifyEnforcer(self._emit, runtime_dir=runtime)

    def _emit(self, event: Event) -> None:
        self.gate.wait(30)
        self.events.append(event)

    def close(self) -> None:
        self.gate.set()
        self.enforcer.close()
        subprocess.run(["umount", "--lazy", str(self.root)], check=True)
        self.root.rmdir()

    def write(self, path: str, text: str = "content\n") -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def file_rule(self, target: PathTarget, verdict: Verdict = Verdict.BLOCK, **fields) -> Rule:
        return self._rule(Entity.FILE, target, verdict, fields)

    def exec_rule(self, target: PathTarget, verdict: Verdict = Verdict.BLOCK, **fields) -> Rule:
        return self._rule(Entity.PROCESS, target, verdict, fields)

    def _rule(self, entity: Entity, target: PathTarget, verdict: Verdict, fields) -> Rule:
        fields["sources"] = tuple(Source(value=str(s)) for s in fields.get("sources", ()))
        fields = {"id": f"test/{target.value}-{verdict}-{entity}", "policy": "test", **fields}
        return Rule(entity=entity, target=target, verdict=verdict, **fields)

    def apply(self, *rules: Rule, postures: Postures | None = None):
        ordered = tuple(sorted(rules, key=lambda rule: rule.id))
        return self.enforcer.apply(RuleSet(rules=ordered, postures=postures or Postures()))

    def run(self, *argv, **options) -> subprocess.CompletedProcess[str]:
        """Run a program that is neither exempt nor has a controlling terminal."""
        options = {"start_new_session": True, "capture_output": True, "text": True, "timeout": 20, **options}
        try:
            return subprocess.run([str(a) for a in argv], check=False, **options)
        except PermissionError as err:
            return subprocess.CompletedProcess(argv, 126, "", str(err))

    def reads(self, path, *, by="/bin/cat", **options) -> bool:
        """Whether a program can read ``path``; a refusal must be EPERM."""
        return self._passes(self.run(by, path, **options))

    def writes(self, path, **options) -> bool:
        return self._passes(self.run("/bin/sh", "-c", f"echo x >>{path}", **options))

    def executes(self, *argv, **options) -> bool:
        return self._passes(self.run(*argv, **options))

    @staticmethod
    def _passes(done: subprocess.CompletedProcess[str]) -> bool:
        assert done.returncode == 0 or "Operation not permitted" in done.stderr, done.stderr
        return done.returncode == 0

    def alerts(self, **wanted) -> list[Event]:
        """Alerts so far whose fields are as wanted."""
        return [e for e in list(self.events) if e.kind == "alert" and all(getattr(e, k) == v for k, v in wanted.items())]

    def worker_pid(self) -> int:
        responder = self.enforcer._responder
        return responder.counters()["worker_pid"] if responder else 0

    def watcher_pid(self) -> int:
        return self.enforcer._responder.pid
