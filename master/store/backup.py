"""A copy of the whole store while it is in use: one moment of it, checked and synced.

Rules of this file:
- The moment: every writer is held between two commits while a snapshot of each file that is written is opened. So what
  the copy holds is exactly what was durable then. Sealed files do not change; retention waits.
- The copy is whole when ``store.db`` is there: it gets its name last, after every file was checked and synced.
- What fails or is given up leaves nothing behind. A folder that holds anything is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import ConfigError, StoreError
from garrison.master.store.dayfile import DayFile, sync_directory
from garrison.master.store.eventlog import EventLog
from garrison.master.store.writer import Writer, connect

__all__ = ["Backup", "BackupResult", "Progress"]

_PAGES: Final = 512  # copied in one step: 2 MB
_EVENTS: Final = "events"


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"):
    """How far a backup is."""

    done_bytes: int
    total_bytes: int
    file: str


class BackupResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="end"):
    """What a backup holds.

    Attributes:
        directory: Where it is.
        files: How many.
        bytes: Of all files.
        events: How many.
        last_number: The highest number of arrival in it.
        seconds: How long it took.
    """

    directory: str
    files: int
    bytes: int
    events: int
    last_number: int
    seconds: float


class _GivenUp(Exception):  # noqa: N818 - no error: somebody changed their mind
    pass


def _plain_bytes(conn: sqlite3.Connection) -> int:
    """Return the size of what a connection sees, without the log."""
    (pages,), (page_bytes,) = (conn.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages) * int(page_bytes)


class Backup:
    """One backup.

    Args:
        log: The events.
        path: ``store.db``.
        writer: Its writer.
        directory: Where to; made when absent, must be empty.

    Raises:
        ConfigError: The folder cannot be used.
    """

    def __init__(self, log: EventLog, path: Path, writer: Writer, directory: Path) -> None:
        self._log, self._path, self._writer, self._directory = log, path, writer, directory
        self._given_up = threading.Event()
        self._done = self._total = 0
        if not directory.is_absolute():
            raise ConfigError(f"{directory} is not an absolute path")
        try:
            self._made = not directory.exists()
            directory.mkdir(mode=0o700, exist_ok=True)
            if any(directory.iterdir()):
                raise ConfigError(f"{directory} is not empty", hint="name a new folder, or an empty one")
            (directory / _EVENTS).mkdir(mode=0o700)
        except OSError as err:
            raise ConfigError(f"{directory} cannot be used: {err.strerror}") from err

    def give_up(self) -> None:
        """End soon, and remove what was copied."""
        self._given_up.set()

    def run(self, tell: Callable[[Progress], None]) -> BackupResult | None:
        """Copy everything; ``None`` when it was given up.

        Args:
            tell: Called now and then, from this thread.

        Raises:
            StoreError: A file cannot be copied, or the copy is not sound.
        """
        started = time.monotonic()
        try:
            with self._log.dropping:
                events, last = self._copy_all(tell)
            self._sync()
        except _GivenUp:
            self._remove()
            return None
        except (sqlite3.Error, OSError) as err:
            self._remove()
            raise StoreError(f"the backup in {self._directory} failed", hint="is there room for it?") from err
        except BaseException:
            self._remove()
            raise
        files = [path for path in self._directory.rglob("*") if path.is_file()]
        return BackupResult(
            directory=str(self._directory),
            files=len(files),
            bytes=sum(path.stat().st_size for path in files),
            events=events,
            last_number=last,
            seconds=time.monotonic() - started,
        )

    def _copy_all(self, tell: Callable[[Progress], None]) -> tuple[int, int]:
        catalogue = self._log.catalogue
        with contextlib.ExitStack() as stack:
            with self._held_still():
                last = self._log.last_number
                files = [file for file, _ in catalogue.files()]
                live = [stack.enter_context(self._snapshot(catalogue.path(file))) for file in files if file in catalogue.writing]
                store = stack.enter_context(self._snapshot(self._path))
            sealed = [file for file in files if file not in catalogue.writing]
            written = [file for file in files if file in catalogue.writing]
            self._total = sum(_plain_bytes(conn) for conn in (*live, store))
            self._total += sum(catalogue.path(file).stat().st_size for file in sealed)
            # Those that are written first: their logs cannot be taken in as long as a snapshot is open.
            events = sum(self._copy(conn, f"{_EVENTS}/{file.name}", tell) for conn, file in zip(live, written, strict=True))
            self._copy(store, f"{self._path.name}.partial", tell)
        return events + sum(self._copy_sealed(file, tell) for file in sealed), last

    @contextlib.contextmanager
    def _held_still(self) -> Iterator[None]:
        """Hold every writer between two commits."""
        go, waits = threading.Event(), list[threading.Event]()
        futures: list[Future[None]] = []

        def hold(arrived: threading.Event) -> Callable[[sqlite3.Connection], None]:
            def work(_: sqlite3.Connection) -> None:
                arrived.set()
                go.wait()

            return work

        for submit in (*self._log.submitters(), self._writer.submit):
            waits.append(threading.Event())
            futures.append(submit(hold(waits[-1])))
        try:
            for arrived, future in zip(waits, futures, strict=True):
                while not arrived.wait(0.05):
                    if future.done():
                        future.result()
            yield
        finally:
            go.set()

    @contextlib.contextmanager
    def _snapshot(self, path: Path) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(connect(path, read_only=True)) as conn:
            conn.execute("BEGIN")
            conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            yield conn

    def _copy_sealed(self, file: DayFile, tell: Callable[[Progress], None]) -> int:
        with contextlib.closing(connect(self._log.catalogue.path(file), read_only=True)) as conn:
            return self._copy(conn, f"{_EVENTS}/{file.name}", tell)

    def _copy(self, source: sqlite3.Connection, name: str, tell: Callable[[Progress], None]) -> int:
        path = self._directory / name
        before = self._done

        def progress(_: int, left: int, pages: int) -> None:
            if self._given_up.is_set():
                raise _GivenUp
            self._done = before + (pages - left) * page_bytes
            tell(Progress(done_bytes=min(self._done, self._total), total_bytes=self._total, file=name))

        (page_bytes,) = source.execute("PRAGMA page_size").fetchone()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
            path.chmod(0o600)
            copy.execute("PRAGMA synchronous=OFF")  # synced as a whole below
            source.backup(copy, pages=_PAGES, progress=progress, sleep=0)
            copy.execute("PRAGMA journal_mode=DELETE")
            (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise StoreError(f"{name} is damaged: {verdict}", hint="the store itself may be: look at the master's log")
            (events,) = copy.execute("SELECT events FROM facts").fetchone() if name.startswith(_EVENTS) else (0,)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return int(events)

    def _sync(self) -> None:
        sync_directory(self._directory / _EVENTS)
        (self._directory / f"{self._path.name}.partial").rename(self._directory / self._path.name)
        sync_directory(self._directory)
        sync_directory(self._directory.parent)

    def _remove(self) -> None:
        shutil.rmtree(self._directory / _EVENTS, ignore_errors=True)
        for path in self._directory.glob(f"{self._path.name}*"):
            path.unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):
                self._directory.rmdir()
