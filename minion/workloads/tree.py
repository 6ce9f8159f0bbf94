"""The part of the cgroup tree that workloads are in, kept up to date by inotify.

Rules of this file:
- A directory is watched first and listed then, so that nothing made in between is missed.
- When the kernel's queue overflows, or watches run out, the tree is walked again: what is there counts, not what was told.
- Depth and number of watches are bounded; of a user's slice also the number of directories, so that a user who makes
  thousands hides nobody else's containers.
- Names that do not print are nobody's: systemd and the engines escape them.
Does not own: what a directory means (``places``).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import KernelError
from garrison.minion.workloads.inotify import CREATE, DELETE, IGNORED, IS_DIR, OVERFLOW, Inotify, Notice
from garrison.minion.workloads.places import Place, descends, place_of

__all__ = ["Change", "Tree"]

_MASK: Final = CREATE | DELETE


class Change(msgspec.Struct):
    """What became of the tree: paths that came, with or instead of others of the same name, and paths that went."""

    came: dict[str, None] = {}
    went: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self.came or self.went)


class Tree:
    """Directories below ``root``, as far as workloads may be among them.

    Args:
        root: The mount of cgroup v2.
        inotify: Queue to watch with; ``feed`` takes what it tells.
        is_bundle: See ``place_of``.

    Attributes:
        places: What each directory says, by its path below the mount.
        numbers: Each directory's inode.
        blind: Directories that could not be watched: what comes in them is seen at the next walk.
        left_out: Directories of users beyond what a user may have.
        overflows: How often the kernel's queue ran over.
    """

    def __init__(self, root: Path, inotify: Inotify, is_bundle: Callable[[str, str], bool]) -> None:
        self._root, self._inotify, self._is_bundle = root, inotify, is_bundle
        self.places: dict[str, Place] = {}
        self.numbers: dict[str, int] = {}
        self.blind: set[str] = set()
        self.left_out = self.overflows = 0
        self._watched: dict[int, str] = {}
        self._watch_of: dict[str, int] = {}
        self._below: dict[str, set[str]] = {}
        self._of_user: Counter[int] = Counter()

    def walk(self) -> Change:
        """Look at the whole tree; returns what is new and what is gone since.

        Raises:
            KernelError: There is no such tree.
        """
        if not self._inode(""):
            raise KernelError(errno.ENOENT, f"look at the cgroups in {self._root}")
        change = Change(came={}, went={})
        self.left_out = 0
        seen: set[str] = set()
        self._come("", change, seen)
        for path in [each for each in self.places if each not in seen]:
            self._go(path, change)
        return change

    def look(self, path: str) -> Change:
        """Look at one directory that somebody knows to be new, whether or not the kernel has told of it."""
        change = Change(came={}, went={})
        parts = path.strip("/").split("/")
        for n in range(len(parts)):
            here = f"/{'/'.join(parts[: n + 1])}"
            self._come(here, change)
            if here not in self.places or not descends(here, self.places[here]):
                break
        return change

    def feed(self, notices: Iterable[Notice]) -> Change:
        """Follow what the kernel told."""
        change = Change(came={}, went={})
        for notice in notices:
            if notice.mask & OVERFLOW:
                self.overflows += 1
                again = self.walk()
                change.came.update(again.came)
                change.went.update(again.went)
                continue
            parent = self._watched.get(notice.watch)
            if parent is None:
                continue  # of a directory that was dropped since
            if notice.mask & IGNORED:
                self._forget_watch(parent)
            elif notice.mask & IS_DIR and notice.mask & CREATE:
                self._come(f"{parent}/{notice.name}", change)
            elif notice.mask & IS_DIR and notice.mask & DELETE:
                self._deleted(f"{parent}/{notice.name}", change)
        return change

    def _deleted(self, path: str, change: Change) -> None:
        if self._inode(path):  # made anew under the same name: the event for that may be on its way, or be this directory's first
            self._come(path, change)
        else:
            self._go(path, change)

    def _come(self, path: str, change: Change, seen: set[str] | None = None) -> None:
        number = self._inode(path)
        if not number or not (path.isprintable() or not path):
            return
        is_new = self.numbers.get(path) != number
        if is_new and not self._enter(path, number, change):
            return
        if seen is not None:
            seen.add(path)
        if descends(path, self.places[path]) and (self._watch(path) or is_new or seen is not None):
            for name in self._listed(path):
                self._come(f"{path}/{name}", change, seen)

    def _enter(self, path: str, number: int, change: Change) -> bool:
        """Note a new directory; whether there is room for it."""
        place = place_of(path, self._is_bundle)
        if place.inside:
            return False
        self._go(path, change)
        if place.uid > 0:
            if self._of_user[place.uid] >= limits.WORKLOADS_OF_USER_MAX:
                self.left_out += 1
                return False
            self._of_user[place.uid] += 1
        self.places[path], self.numbers[path] = place, number
        self._below.setdefault(path.rpartition("/")[0], set()).add(path)
        change.came[path] = None
        return True

    def _go(self, path: str, change: Change) -> None:
        place = self.places.pop(path, None)
        if place is None:
            return
        for below in self._below.pop(path, ()):
            self._go(below, change)
        self._below.get(path.rpartition("/")[0], set()).discard(path)
        self.numbers.pop(path)
        if place.uid > 0:
            self._of_user[place.uid] -= 1
        self.blind.discard(path)
        if path in self._watch_of:
            self._inotify.remove(self._watch_of[path])
            self._forget_watch(path)
        change.came.pop(path, None)
        change.went[path] = None

    def _watch(self, path: str) -> bool:
        """Watch a directory; whether it was not watched before."""
        if path in self._watch_of:
            return False
        if len(self._watched) >= limits.CGROUP_WATCHES_MAX:
            self.blind.add(path)
            return True
        try:
            watch = self._inotify.add(self._where(path), _MASK)
        except OSError as err:
            if err.errno not in {errno.ENOENT, errno.ENOTDIR}:  # else it is gone again, and its parent tells
                self.blind.add(path)
            return True
        self.blind.discard(path)
        self._watched[watch], self._watch_of[path] = path, watch
        return True

    def _forget_watch(self, path: str) -> None:
        watch = self._watch_of.pop(path, None)
        if watch is not None:
            self._watched.pop(watch, None)

    def _where(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _inode(self, path: str) -> int:
        try:
            return os.lstat(self._where(path)).st_ino
        except OSError:  # gone
            return 0

    def _listed(self, path: str) -> list[str]:
        try:
            with os.scandir(self._where(path)) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:  # gone
            return []
