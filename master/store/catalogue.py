"""Which files of events there are, what each holds, and connections to read them.

Rules of this file:
- What a file holds is known without opening it: a question opens only those that can answer it.
- A file that is damaged is set aside by renaming and told of; the others go on. What it held is not looked for any more. One that
  is being written stays: nothing can be committed to it, so nothing is acked, and the next start sets it aside.
- Dropping a file is one unlink; whoever reads it at that moment reads on to the end.
Owns: the folder of events and reading connections. Does not own: writing (``lanes``), what goes when (``retention``).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from garrison.common.errors import StoreError
from garrison.common.events import Lane
from garrison.master.store.dayfile import (
    DayFile,
    Facts,
    companions,
    is_damage,
    list_files,
    open_reader,
    read_facts,
    seal,
    sync_directory,
)
from garrison.master.store.writer import connect

__all__ = ["Catalogue"]

_IDLE_MAX: Final = 256  # reading connections kept open, over all files: those of a month and more

_log = logging.getLogger(__name__)


class Catalogue:
    """The files of events in a folder. Any thread.

    Args:
        directory: The folder; made when absent.

    Raises:
        StoreError: It cannot be read, or holds a file of a newer garrison.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._files: dict[DayFile, Facts] = {}
        self._idle: OrderedDict[DayFile, list[sqlite3.Connection]] = OrderedDict()
        self._idle_count = 0
        self._writing: dict[Lane, DayFile] = {}
        try:
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                sync_directory(directory.parent)
            found = list_files(directory)
        except OSError as err:
            raise StoreError(f"{directory} cannot be used: {err.strerror}", hint="whose is it, and is it writable?") from err
        for file in found:
            self._look_at(file)

    def _look_at(self, file: DayFile) -> None:
        path = self.path(file)
        try:
            self._tidy(path)
            with contextlib.closing(open_reader(path)) as conn:
                facts = read_facts(conn)
        except (sqlite3.Error, StoreError) as err:
            if not is_damage(err):
                raise err if isinstance(err, StoreError) else StoreError(f"{path} cannot be read") from err
            self.set_aside(file, str(err))
            return
        if facts is None:  # killed while it was being made: it never held anything
            self._unlink(path)
            return
        self._files[file] = facts

    def _tidy(self, path: Path) -> None:
        # After a crash the file's log is with it still: taken in here, since readers cannot.
        if any(one.exists() for one in companions(path)):
            seal(connect(path, read_only=False))

    def path(self, file: DayFile) -> Path:
        """Return where a file is."""
        return self.directory / file.name

    def files(self, *lanes: Lane) -> list[tuple[DayFile, Facts]]:
        """Return all files with what they hold, oldest day first; only of these lanes, if any are named."""
        with self._lock:
            return sorted((file, facts) for file, facts in self._files.items() if not lanes or file.lane in lanes)

    def facts(self, file: DayFile) -> Facts | None:
        """Return what a file holds; ``None`` when it is not there (any more)."""
        with self._lock:
            return self._files.get(file)

    @property
    def writing(self) -> frozenset[DayFile]:
        """The files that lanes are writing."""
        with self._lock:
            return frozenset(self._writing.values())

    def write(self, file: DayFile) -> None:
        """Note that its lane goes on in this file."""
        with self._lock:
            self._writing[file.lane] = file

    def update(self, file: DayFile, facts: Facts) -> None:
        """Note what a file holds now."""
        with self._lock:
            self._files[file] = facts

    def size_bytes(self, file: DayFile) -> int:
        """Return the space that a file takes, its log included; 0 when it is gone."""
        total = 0
        for path in (self.path(file), *companions(self.path(file))):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def damaged(self) -> list[str]:
        """Return the names of files that were set aside, now or earlier."""
        return sorted(path.name for path in self.directory.glob("*.db.damaged-*") if path.name.rpartition("-")[2].isdecimal())

    # ---- reading -----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def reading(self, file: DayFile) -> Iterator[sqlite3.Connection]:
        """Lend a reading connection.

        Raises:
            StoreError: The file cannot be read; ``facts`` says whether it is still there.
        """
        conn = self._lend(file) or self._open(file)
        try:
            yield conn
        except sqlite3.Error as err:
            conn.close()
            if is_damage(err) and file not in self.writing:
                self.set_aside(file, str(err))
            raise StoreError(f"{file.name} cannot be read") from err
        except BaseException:
            conn.close()
            raise
        self._take_back(file, conn)

    def _open(self, file: DayFile) -> sqlite3.Connection:
        try:
            return open_reader(self.path(file))
        except StoreError as err:
            if is_damage(err) and file not in self.writing:
                self.set_aside(file, str(err.__cause__ or err))
            raise

    def _lend(self, file: DayFile) -> sqlite3.Connection | None:
        with self._lock:
            idle = self._idle.get(file)
            if not idle:
                return None
            self._idle.move_to_end(file)
            self._idle_count -= 1
            return idle.pop()

    def _take_back(self, file: DayFile, conn: sqlite3.Connection) -> None:
        surplus = [conn]
        with self._lock:
            if file in self._files:
                self._idle.setdefault(file, []).append(surplus.pop())
                self._idle.move_to_end(file)
                self._idle_count += 1
            while self._idle_count > _IDLE_MAX:
                oldest, conns = next(iter(self._idle.items()))
                surplus += conns
                self._idle_count -= len(conns)
                del self._idle[oldest]
        for one in surplus:
            one.close()

    def close_idle(self, file: DayFile | None = None) -> None:
        """Close connections that nobody uses: of one file, or all."""
        with self._lock:
            names = list(self._idle) if file is None else [file]
            conns = [conn for name in names for conn in self._idle.pop(name, [])]
            self._idle_count -= len(conns)
        for conn in conns:
            conn.close()

    # ---- leaving -----------------------------------------------------------------------------------------------------
    def drop(self, file: DayFile) -> None:
        """Remove a file, in one step.

        Raises:
            StoreError: It cannot be removed; it stays listed.
        """
        try:
            self._unlink(self.path(file))
        except OSError as err:
            raise StoreError(f"{file.name} cannot be removed: {err.strerror}") from err
        with self._lock:
            self._files.pop(file, None)
        self.close_idle(file)

    def _unlink(self, path: Path) -> None:
        path.unlink()
        for one in companions(path):
            one.unlink(missing_ok=True)
        sync_directory(self.directory)

    def set_aside(self, file: DayFile, why: str) -> None:
        """Take a damaged file out of use, under another name, for people to look at."""
        path = self.path(file)
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        with self._lock:
            known = self._files.pop(file, None)
            if known is None and not path.exists():
                return
        _log.error("events=damaged file=%s events=%s aside=%s error=%s", file.name, known.events if known else "?", aside, why)
        for old in (path, *companions(path)):
            with contextlib.suppress(FileNotFoundError):
                old.rename(old.with_name(old.name.replace(path.name, aside.name)))
        sync_directory(self.directory)
        self.close_idle(file)
