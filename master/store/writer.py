"""The one connection that writes a file: a thread that groups what waits into one durable transaction.

Rules of this file:
- One writer per file, and it alone checkpoints (ADR 0004). WAL, ``synchronous=FULL``, no memory-mapped I/O.
- A future is resolved only after the commit that holds its work was synced. What fails alone is undone alone.
- A commit that fails (disk full) fails everything in its group: nothing is acked, nodes keep their events and send again.
Owns: grouping, transactions. Does not own: which file is written (its ``Target``), what is written.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from garrison.common.errors import StoreError

__all__ = ["OneFile", "Target", "Work", "Writer", "connect"]

GROUP_MAX: Final = 64  # pieces of work in one commit: with batches of 2,000 events more only adds latency
CHECKPOINT_PAGES: Final = 4_000  # 16 MB of WAL between checkpoints: pages written often are copied once
_BUSY_MS: Final = 5_000  # a checkpoint may wait this long for readers

_T = TypeVar("_T")
Work = Callable[[sqlite3.Connection], _T]

_log = logging.getLogger(__name__)


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the store's database.

    Args:
        path: The file; made when absent, unless ``read_only``.
        read_only: The connection can neither write nor checkpoint.

    Raises:
        StoreError: It cannot be opened.
    """
    try:
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        conn = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)
        conn.execute("PRAGMA mmap_size=0")
        if not read_only:
            conn.execute("PRAGMA journal_mode=WAL")
            conn.execute("PRAGMA synchronous=FULL")
            conn.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    except sqlite3.Error as err:
        raise StoreError(f"{path} cannot be opened", hint="is the directory writable, and the file a database?") from err
    return conn


class Target(Protocol):
    """What a writer writes. Only the writer's thread calls it, once the writer has begun."""

    def connection(self) -> sqlite3.Connection:
        """Return the connection for the next transaction."""

    def committed(self) -> None:
        """The transaction is durable."""

    def undone(self) -> None:
        """The transaction was given up."""

    def close(self) -> None:
        """Checkpoint and close."""


class OneFile:
    """A target that is always the same file.

    Args:
        conn: The writing connection; owned from now on.
    """

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    def connection(self) -> sqlite3.Connection:
        """Return the connection."""
        return self._conn

    def committed(self) -> None:
        """Nothing follows."""

    def undone(self) -> None:
        """Nothing follows."""

    def close(self) -> None:
        """Checkpoint and close."""
        try:
            self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as err:
            _log.warning("checkpoint=failed error=%s", err)  # the WAL holds everything; the next start reads it
        self._conn.close()


class Writer:
    """Runs work on the writing connection, grouped.

    Args:
        target: What is written; owned from now on.
        name: Of the thread.
    """

    def __init__(self, target: Target, name: str = "store-writer") -> None:
        self._target = target
        self._queue: queue.SimpleQueue[tuple[Work[Any], Future[Any], int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes, self._closed = 0, False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Size of the work that is not yet committed, as its submitters declared it."""
        return self._waiting_bytes

    def submit(self, work: Work[_T], *, size_bytes: int = 0) -> Future[_T]:
        """Queue ``work``; the future's result is there once it is durable.

        Raises:
            StoreError: The store is closed. Through the future: the work's own error, or that the commit failed.
        """
        future: Future[_T] = Future()
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            self._waiting_bytes += size_bytes
            self._queue.put((work, future, size_bytes))
        return future

    def close(self) -> None:
        """Finish what is queued, checkpoint, close. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._target.close()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, last = [first], False
            while len(group) < GROUP_MAX:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    last = True
                    break
                group.append(item)
            self._commit(group)
            if last:
                return

    def _commit(self, group: list[tuple[Work[Any], Future[Any], int]]) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        conn: sqlite3.Connection | None = None
        try:
            conn = self._target.connection()
            conn.execute("BEGIN IMMEDIATE")
            for work, future, _ in group:
                answers.append((future, *_attempt(conn, work)))
            conn.execute("COMMIT")
        except (sqlite3.Error, StoreError) as err:
            _log.error("commit=failed works=%d error=%s", len(group), err)
            if conn is not None and conn.in_transaction:
                conn.execute("ROLLBACK")
            self._target.undone()
            failure = StoreError("the store cannot commit", hint="is its disk full? nodes keep their events meanwhile")
            failure.__cause__ = err
            answers = [(future, None, failure) for _, future, _ in group]
        else:
            self._target.committed()
        with self._lock:
            self._waiting_bytes -= sum(size for _, _, size in group)
        for future, result, error in answers:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _attempt(conn: sqlite3.Connection, work: Work[Any]) -> tuple[Any, BaseException | None]:
    conn.execute("SAVEPOINT work")
    try:
        result = work(conn)
    except Exception as err:
        if not conn.in_transaction:
            raise sqlite3.OperationalError(f"the transaction was given up: {err}") from err
        conn.execute("ROLLBACK TO work")
        conn.execute("RELEASE work")
        return None, _as_store_error(err)
    conn.execute("RELEASE work")
    return result, None


def _as_store_error(err: Exception) -> Exception:
    if not isinstance(err, sqlite3.Error):
        return err
    failure = StoreError("the store cannot write")
    failure.__cause__ = err
    return failure
