"""Watches which workloads this node runs and tells whoever enforces, as soon as one comes, goes or changes.

Rules of this file:
- One thread. It is woken by inotify on the cgroup tree, unit folders and ``/etc``, and by ``look_at``; it also looks at
  everything once a minute, so that a notice that never came costs a minute at most.
- A change is told at once. Those that come while that is done, and for as long again, are told together: a storm costs at
  most half of the time.
- ``on_change`` gets all workloads each time. If it raises, that shows in the status and is tried again; what holds goes on
  holding.
- Nothing here fails the agent: without a cgroup v2 mount there are no workloads, and the status says so.
Owns: when to look. Does not own: what there is (``roster``).
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from garrison.bpf.cgroups import cgroup2_root
from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.minion.observers._worker import Stop, Worker
from garrison.minion.observers.base import Emit, Observer, ObserverStatus
from garrison.minion.workloads import inotify as ino
from garrison.minion.workloads.describe import counted
from garrison.minion.workloads.inotify import Inotify, Notice
from garrison.minion.workloads.model import Workload
from garrison.minion.workloads.roster import Roster
from garrison.minion.workloads.stores import Stores
from garrison.minion.workloads.tree import Tree
from garrison.minion.workloads.units import SYSTEM_PATHS, USER_PATHS, unit_folders

__all__ = ["OnChange", "WorkloadWatcher"]

_PAUSE_MAX_S: Final = 0.05  # between two tellings
_FILES_S: Final = 0.2  # after the last change of a unit or account file: packages write many at once
_WALK_S: Final = 60.0
_BLIND_WALK_S: Final = 2.0  # while directories cannot be watched
_RETRY_S: Final = 1.0  # after on_change failed
_MADE_MAX: Final = 4096  # cgroups that others told of and that were not looked at yet; beyond it the tree is walked
_GONE_MAX: Final = 256  # containers that have ended and are still named in events: their last ones may be read later
_FILE_MASK: Final = ino.CREATE | ino.DELETE | ino.MOVED | ino.CLOSE_WRITE | ino.ATTRIB
_ACCOUNT_FILES: Final = frozenset({"passwd", "group"})

_log = logging.getLogger(__name__)

OnChange = Callable[[tuple[Workload, ...]], None]


class WorkloadWatcher(Observer):
    """Tells all workloads of this node whenever they change.

    Args:
        cgroups: The mount of cgroup v2; found when not given.
        root: Where the file system begins; tests have their own.
    """

    name = "workloads"

    def __init__(self, *, cgroups: Path | None = None, root: Path = Path("/")) -> None:
        self._on_change: OnChange | None = None
        self._cgroups, self._root = cgroups, root
        self._worker = Worker("workloads", self._run)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._made: deque[str] = deque(maxlen=_MADE_MAX)
        self._told: tuple[Workload, ...] | None = None
        self._found: tuple[Workload, ...] = ()
        self._containers: dict[str, Workload] = {}
        self._gone: dict[str, Workload] = {}
        self._counters: dict[str, int] = {}
        self._trouble = self._detail = ""

    # ---- for the agent -------------------------------------------------------------------------------------------------
    def tell(self, on_change: OnChange) -> None:
        """Look once and tell, in the caller's thread, and again whenever something has changed, once started. Never raises.

        Args:
            on_change: Takes all workloads; may raise ``GarrisonError`` or ``OSError``, and is then called again later.
        """
        self._on_change = on_change
        try:
            with _Session(self._cgroups, self._root) as session:
                session.begin()
                self._tell(session)
        except (GarrisonError, OSError) as err:
            self._trouble = str(err)
            _log.error("workloads=unknown error=%s", err)

    def start(self, emit: Emit) -> None:  # noqa: ARG002 - it tells states, not events
        """Begin to watch."""
        self._worker.start()

    def stop(self) -> None:
        """Stop watching."""
        self._worker.stop()

    def look_at(self, cgroup: str) -> None:
        """Look at a cgroup now: somebody knows that it was made. Any thread; returns at once.

        Args:
            cgroup: Its path below the mount; empty for all of them.
        """
        self._made.append(cgroup)
        os.eventfd_write(self._wake, 1)

    def status(self) -> ObserverStatus:
        """Return how many workloads there are, and what keeps them from being known."""
        detail = self._worker.error or self._trouble or self._detail
        return ObserverStatus(name=self.name, healthy=not detail, detail=detail, counters=dict(self._counters))

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """All that were found last."""
        return self._found

    def container(self, container_id: str) -> Workload | None:
        """Return the container with this id, as it was found last; for some time also when it has ended."""
        return self._containers.get(container_id) or self._gone.get(container_id)

    # ---- the thread ----------------------------------------------------------------------------------------------------
    def _run(self, stop: Stop) -> None:
        with _Session(self._cgroups, self._root) as session, select.epoll() as queue:
            queue.register(session.inotify.fd, select.EPOLLIN)
            queue.register(self._wake, select.EPOLLIN)
            session.begin()
            owed = True
            while not stop.is_set():
                if owed:
                    began = time.monotonic()
                    owed = not self._tell(session)
                    stop.wait(_RETRY_S if owed else min(_PAUSE_MAX_S, time.monotonic() - began))
                if stop.wait_for(queue.fileno(), 0.0 if owed else session.wait_s()):
                    owed |= session.take(self._made_meanwhile())
                owed |= session.due()

    def _made_meanwhile(self) -> set[str]:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return set()
        found = {""} if len(self._made) == _MADE_MAX else set[str]()
        while self._made:
            found.add(self._made.popleft())
        return found

    def _tell(self, session: _Session) -> bool:
        """Tell what changed; whether that worked."""
        found = session.roster.workloads()
        gone = {**self._gone, **self._containers}
        self._found, self._containers = found, session.roster.containers()
        self._gone = {key: gone[key] for key in list(gone)[-_GONE_MAX:]}
        self._counters = {**counted(found), **session.counters()}
        self._detail = session.detail()
        if found == self._told or self._on_change is None:
            self._trouble = ""
            return True
        try:
            self._on_change(found)
        except (GarrisonError, OSError) as err:
            trouble = f"workloads could not be handed over: {err}"
            if trouble != self._trouble:
                _log.error("workloads=untold error=%s", err)
            self._trouble = trouble
            return False
        self._told, self._trouble = found, ""
        return True


class _Session:
    """One life of the queue and of what is known by it."""

    def __init__(self, cgroups: Path | None, root: Path) -> None:
        stores = Stores(root)
        self.inotify = Inotify()
        self._root = root
        self._tree = Tree(cgroups or cgroup2_root(), self.inotify, stores.is_bundle)
        self.roster = Roster(self._tree, stores, root)
        self._folders: dict[int, bool] = {}  # by watch: whether only the files of accounts in it matter
        self._files_due: float | None = None
        self._walk_due = 0.0
        self._watched_folders: list[Path] = []
        self._unwatched_files = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.inotify.close()

    def begin(self) -> None:
        """Look at everything."""
        self._watch_files()
        self._walk()
        self.roster.read_files()

    def take(self, made: set[str]) -> bool:
        """Take what the queue has, and look at cgroups that somebody told of; whether workloads may have changed."""
        notices = self.inotify.read()
        if any(notice.mask & ino.OVERFLOW or self._is_file(notice) for notice in notices):
            self._files_due = self._files_due or time.monotonic() + _FILES_S
        changes = [self._tree.feed(notices), *(self._tree.look(path) for path in made if path)]
        for change in changes:
            self.roster.follow(change)
        return any(changes) | ("" in made and self._walk())

    def due(self) -> bool:
        """Do what its time has come for; whether workloads may have changed."""
        now, changed = time.monotonic(), False
        if self._files_due is not None and now >= self._files_due:
            self._files_due = None
            self._watch_files()
            self.roster.read_files()
            changed = True
        if now >= self._walk_due:
            changed |= self._walk()
            if self._unwatched_files or self._wanted_folders() != self._watched_folders:
                self._files_due = now
        if (look := self.roster.next_look()) is not None and now >= look:
            self.roster.look_again()
            changed = True
        return changed

    def wait_s(self) -> float:
        """Return how long nothing is due."""
        times = [self._walk_due, *(due for due in (self._files_due, self.roster.next_look()) if due is not None)]
        return max(0.0, min(times) - time.monotonic())

    def counters(self) -> dict[str, int]:
        """Return figures of the tree and of what was left out."""
        return {
            "cgroups": len(self._tree.places),
            "containers_unknown": self.roster.unknown,
            "left_out": self.roster.left_out + self._tree.left_out,
            "labels_left_out": self.roster.labels_left_out,
            "unwatched": len(self._tree.blind),
            "overflows": self._tree.overflows,
        }

    def detail(self) -> str:
        """Return what a person should know; empty when all is well."""
        if self.roster.left_out:
            more = self.roster.left_out
            return f"{more} workloads more than the limit of {limits.WORKLOADS_MAX}: rules by label do not hold in them"
        if self._tree.left_out:
            more = self._tree.left_out
            return f"{more} cgroups of a user beyond {limits.WORKLOADS_OF_USER_MAX}: rules by label do not hold in them"
        if blind := len(self._tree.blind):
            return (
                f"{blind} cgroups cannot be watched, only looked at every {_BLIND_WALK_S:g} s: raise fs.inotify.max_user_watches"
            )
        return self.roster.trouble

    def _walk(self) -> bool:
        change = self._tree.walk()
        self.roster.follow(change)
        self._walk_due = time.monotonic() + (_BLIND_WALK_S if self._tree.blind else _WALK_S)
        return bool(change)

    def _watch_files(self) -> None:
        self._watched_folders, self._unwatched_files = self._wanted_folders(), False
        for folder in [self._root / "etc", *self._watched_folders]:
            try:
                self._folders[self.inotify.add(folder, _FILE_MASK)] = folder.name == "etc"
            except OSError as err:  # its files are then read with every walk
                self._unwatched_files = True
                _log.debug("folder=%s watched=no error=%s", folder, err)

    def _wanted_folders(self) -> list[Path]:
        return [folder for paths in (SYSTEM_PATHS, USER_PATHS) for folder in unit_folders(self._root, paths)]

    def _is_file(self, notice: Notice) -> bool:
        accounts = self._folders.get(notice.watch)
        return accounts is not None and (not accounts or notice.name in _ACCOUNT_FILES)
