"""The spool's file: how it is opened, its tables, its versions.

Rules of this file:
- WAL and ``synchronous=FULL``: what is committed survives the loss of power. No memory-mapped I/O.
- One table per lane, keyed by rising numbers: new rows fill pages to the end, and acked or dropped rows free whole pages.
- A version is reached by one migration in one transaction; ``user_version`` says which was the last.
Source: the reset race of WAL in SQLite 3.7.0 to 3.51.2 needs two connections that write or checkpoint; readers here do neither.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import SpoolError
from garrison.common.events import Lane
from garrison.minion.spool.caps import PAGE_BYTES

__all__ = ["VERSION", "connect_reader", "connect_writer", "is_damage", "migrate", "new_epoch", "table", "wal_bytes"]

_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_SCHEMA})
_PRIMARY_CODE: Final = 0xFF  # the lower byte of an extended result code


def table(lane: Lane) -> str:
    """Return the table of ``lane``. A name from this enumeration is the only thing ever put into a statement's text."""
    return f"lane_{lane.name.lower()}"


def new_epoch() -> str:
    """Return a name for a new life of a spool: 16 hex digits."""
    return secrets.token_hex(8)


def is_damage(err: sqlite3.Error) -> bool:
    """Whether ``err`` says that the file is damaged, rather than full, locked or gone."""
    code = getattr(err, "sqlite_errorcode", None)
    if code is None:  # raised by the module itself, e.g. a text column that is no UTF-8: our file does not hold that
        return isinstance(err, sqlite3.DatabaseError) and not isinstance(err, sqlite3.ProgrammingError)
    text = str(err)
    missing = "no such table" in text or "no such column" in text
    return code & _PRIMARY_CODE in _DAMAGE or missing


def connect_writer(path: Path, wal_bytes: int) -> sqlite3.Connection:
    """Open ``path`` as its one writer, making it when absent.

    Raises:
        sqlite3.Error: It cannot be opened, or is no database.
    """
    conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        conn.execute(f"PRAGMA page_size={PAGE_BYTES}")
        conn.execute("PRAGMA auto_vacuum=INCREMENTAL")
        conn.execute("PRAGMA journal_mode=WAL")
        conn.execute("PRAGMA synchronous=FULL")
        conn.execute("PRAGMA mmap_size=0")
        conn.execute("PRAGMA secure_delete=0")  # Debian's default overwrites what is deleted: twice the writing
        conn.execute("PRAGMA cache_size=-1024")
        conn.execute(f"PRAGMA wal_autocheckpoint={max(16, wal_bytes // PAGE_BYTES)}")
        conn.execute(f"PRAGMA journal_size_limit={wal_bytes}")
    except BaseException:
        conn.close()
        raise
    return conn


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open ``path`` for reading: never writes, never checkpoints, and must be closed before the writer.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        conn.execute("PRAGMA query_only=1")
        conn.execute("PRAGMA wal_autocheckpoint=0")
        conn.execute("PRAGMA mmap_size=0")
        conn.execute("PRAGMA cache_size=-512")
    except BaseException:
        conn.close()
        raise
    return conn


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the file to ``VERSION``; nothing when it is there.

    Raises:
        SpoolError: A newer agent made it.
        sqlite3.Error: The file cannot be changed.
    """
    version = int(conn.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise SpoolError(f"the spool has version {version}, this agent knows {VERSION}")
    for number, step in enumerate(_MIGRATIONS[version:], version + 1):
        conn.execute("BEGIN IMMEDIATE")
        try:
            step(conn)
            conn.execute(f"PRAGMA user_version={number}")
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise


def _to_1(conn: sqlite3.Connection) -> None:
    from sqlite_utils import Database  # only here: a spool that exists must not pay for the import

    db = Database(conn)
    segment = {
        "first_seq": int,
        "last_seq": int,
        "events": int,
        "weight": int,
        "covers": int,
        "size": int,
        "crc": int,
        "body": bytes,
    }
    for lane in Lane:
        db.table(table(lane)).create(segment, pk="first_seq", not_null=set(segment))
    db.table("lanes").create({"lane": int, "acked": int, "last": int, "events": int, "weight": int, "bytes": int}, pk="lane")
    db.table("spool").create({"id": int, "epoch": str, "next_seq": int}, pk="id")
    conn.executemany(
        "INSERT INTO lanes (lane, acked, last, events, weight, bytes) VALUES (?, 0, 0, 0, 0, 0)",
        [(int(lane),) for lane in Lane],
    )
    conn.execute("INSERT INTO spool (id, epoch, next_seq) VALUES (1, ?, 1)", (new_epoch(),))


def _to_2(conn: sqlite3.Connection) -> None:
    # How many events of the epoch were acknowledged; -1 where that was not counted from its beginning on.
    conn.execute("ALTER TABLE lanes ADD COLUMN done INTEGER NOT NULL DEFAULT -1")
    conn.execute("UPDATE lanes SET done = 0 WHERE last = 0")


_MIGRATIONS: Final[tuple[Callable[[sqlite3.Connection], None], ...]] = (_to_1, _to_2)
VERSION: Final = len(_MIGRATIONS)


def wal_bytes(total_bytes: int) -> int:
    """Return the size at which the write-ahead log of a spool of ``total_bytes`` is checkpointed."""
    return min(limits.SPOOL_WAL_MAX_BYTES, total_bytes // 32)
