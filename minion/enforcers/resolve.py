"""Resolves symbolic links and merged ``/usr`` in rules, on the node, and notices when what they lead to changes.

Rules of this file:
- The kernel names files by their resolved paths, so that is what rules must say: ``/bin/ls`` becomes ``/usr/bin/ls``.
- Ids do not change: the report speaks of the rule that people wrote.
- A glob is resolved up to its first wildcard; links behind one are not followed.
- Between the change of a link and the next look (seconds) rules mean what they meant before.
Owns: resolving, looking. Does not own: applying again (``stack``).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.policy.glob import expand_braces, literal_prefix
from garrison.common.policy.rules import PathKind, PathTarget, Rule, RuleSet, Source

__all__ = ["Reresolver", "Resolved", "Snapshot", "look", "resolve"]

_EVERY_S: Final = 2.0
_SHARE: Final = 50  # a look may take a fiftieth of the time: 2 % of one CPU, however many rules there are
_SPECIAL: Final = frozenset("*?[{\\")

_log = logging.getLogger(__name__)


class Resolved(msgspec.Struct, frozen=True):
    """Rules as the kernel will see them.

    Attributes:
        rules: The same ids, resolved targets and sources.
        watched: The paths that were resolved, sorted.
    """

    rules: RuleSet
    watched: tuple[str, ...]


class Snapshot(msgspec.Struct, frozen=True):
    """What paths led to at one time.

    Attributes:
        places: Path → resolved path, device, inode; device and inode 0 when there is nothing.
        mounts: The mount table.
    """

    places: dict[str, tuple[str, int, int]]
    mounts: str


def resolve(rules: RuleSet, realpath: Callable[[str], str]) -> Resolved:
    """Return ``rules`` with every path replaced by what it leads to.

    Args:
        rules: As people wrote them.
        realpath: Resolves an absolute path, also one that does not exist; without a final slash.
    """
    watched: set[str] = set()

    def follow(path: str) -> str:
        watched.add(path.rstrip("/") or "/")
        found = realpath(path)
        return found if not path.endswith("/") else found.rstrip("/") + "/"

    resolved = tuple(_rule(rule, follow) for rule in rules.rules)
    # The directories of exact targets too: marks are set on them, and another may take the place of one.
    exact = [
        rule.target.value for rule in rules.rules if isinstance(rule.target, PathTarget) and rule.target.how is PathKind.EXACT
    ]
    watched.update(os.path.dirname(path) for path in exact)  # noqa: PTH120 - a string in, a string out
    return Resolved(msgspec.structs.replace(rules, rules=resolved), tuple(sorted(watched)))


def _rule(rule: Rule, follow: Callable[[str], str]) -> Rule:
    sources = tuple(dict.fromkeys(Source(value=follow(s.value), recursive=s.recursive) for s in rule.sources))
    target = rule.target
    if isinstance(target, PathTarget) and target.how is not PathKind.NAME:
        value = _glob(target.value, follow) if target.how is PathKind.GLOB else follow(target.value)
        target = msgspec.structs.replace(target, value=value)
    return msgspec.structs.replace(rule, target=target, sources=sources)


def _glob(pattern: str, follow: Callable[[str], str]) -> str:
    parts = expand_braces(pattern)
    resolved = [_glob_part(part, follow) for part in parts]
    if resolved == list(parts):
        return pattern
    if len(resolved) == 1:
        return resolved[0]
    if any("[" in part for part in resolved):
        return pattern  # a comma in a class cannot be told from one between alternatives
    return "{" + ",".join(part.replace(",", "\\,").replace("}", "\\}") for part in resolved) + "}"


def _glob_part(pattern: str, follow: Callable[[str], str]) -> str:
    if not pattern.startswith("/"):
        return pattern
    prefix = literal_prefix(pattern)
    found = follow(prefix)
    if found == prefix:
        return pattern
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in found) + pattern[len(prefix) :]


class _Looker:
    """Resolves many paths at little cost: directories once."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}

    def place(self, path: str) -> tuple[str, int, int]:
        parent, name = os.path.split(path)
        if name in {"", ".", ".."}:
            return self._look(os.path.realpath(path))
        if parent not in self._directories:
            self._directories[parent] = os.path.realpath(parent)
        return self._look(f"{self._directories[parent].rstrip('/')}/{name}")

    @staticmethod
    def _look(path: str) -> tuple[str, int, int]:
        # os, not pathlib: this runs for every rule every few seconds.
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                path = os.path.realpath(path)
                found = os.lstat(path)
        except (OSError, ValueError):
            return path, 0, 0
        return path, found.st_dev, found.st_ino


def look(paths: Iterable[str]) -> Snapshot:
    """Return what ``paths`` lead to now, and the mounts."""
    looker = _Looker()
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return Snapshot({path: looker.place(path) for path in paths}, mounts)


class Reresolver:
    """Looks at watched paths every few seconds and says when they lead elsewhere.

    Args:
        changed: Called from the watching thread; returns whether it dealt with the change, else it is called again.
        every_s: Seconds between looks, more when looking takes long.
    """

    def __init__(self, changed: Callable[[], bool], *, every_s: float = _EVERY_S) -> None:
        self._changed, self._every_s = changed, every_s
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        """What is watched, as it was when that began."""
        with self._lock:
            return self._snapshot

    def watch(self, snapshot: Snapshot) -> None:
        """Watch the paths of ``snapshot`` instead of those before; it is what ``changed`` is measured against."""
        with self._lock:
            self._snapshot = snapshot
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reresolver", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop looking. Idempotent; does not wait when called from ``changed``."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        pause_s = self._every_s
        while not self._stop.wait(pause_s):
            started = time.monotonic()
            try:
                self._check()
            except OSError as err:
                _log.error("rules=unwatched error=%s", err)
            pause_s = max(self._every_s, _SHARE * (time.monotonic() - started))

    def _check(self) -> None:
        with self._lock:
            before = self._snapshot
        if before is None or look(before.places) == before:
            return
        _log.info("rules=stale reason=%s", "a link, file or mount that rules name has changed")
        self._changed()
