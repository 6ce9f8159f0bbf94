"""A day of a lane as one SQLite file: its name, its tables, how it is opened, sealed and read.

Rules of this file:
- A file is whole by itself: events, who sent them, up to which number, and its own figures change in one transaction.
- Who sent what up to where (``spools``) is carried from file to file: the file with the highest ``turn`` knows all of it, so that
  dropping an older one forgets nothing.
- Texts that repeat are kept once (``words``); number 0 is the empty one. Indexes are what ``query`` asks by, no more.
- The file that is written is in WAL mode; a sealed one is a single file without companions, so that dropping it is one unlink.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import StoreError
from garrison.common.events import Lane
from garrison.master.store.writer import connect

__all__ = [
    "INSERT",
    "DayFile",
    "Facts",
    "Mark",
    "Row",
    "carry",
    "companions",
    "day_of",
    "is_damage",
    "list_files",
    "make_tables",
    "open_reader",
    "read_facts",
    "read_marks",
    "seal",
    "sync_directory",
    "write_facts",
]

VERSION: Final = 1
_SUFFIX: Final = ".db"
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_NAME: Final = re.compile(rf"(\d{{4}}-\d\d-\d\d)\.({'|'.join(lane.name.lower() for lane in Lane)})\.db")
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_SCHEMA})
_PRIMARY_CODE: Final = 0xFF  # the lower byte of an extended result code
_READER_CACHE_KIB: Final = 128  # many files are open for reading at once; the kernel caches their pages

# Only the number of an event may be there already; a repeated arrival number would be a bug and must not swallow an event.
INSERT: Final = (
    "INSERT INTO events (id, spool, seq, ts, kind, verdict, policy, exe, received_at, quarantine, record) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (spool, seq) DO NOTHING"
)
_log = logging.getLogger(__name__)
Row = tuple[int, int, int, int, int, int, int, int, int, str | None, bytes]

_TABLES: Final = """
-- Of this file and all before it: acked: the highest number that may be acked; highest: that came; stored: how many events came.
CREATE TABLE spools (id INTEGER PRIMARY KEY, node TEXT NOT NULL, epoch TEXT NOT NULL, acked INTEGER NOT NULL,
    highest INTEGER NOT NULL, stored INTEGER NOT NULL, UNIQUE (node, epoch));
CREATE TABLE words (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
-- id: order of arrival over all files. quarantine: why the record cannot be read. record: as the node encoded it.
CREATE TABLE events (id INTEGER PRIMARY KEY, spool INTEGER NOT NULL, seq INTEGER NOT NULL, ts INTEGER NOT NULL,
    kind INTEGER NOT NULL, verdict INTEGER NOT NULL, policy INTEGER NOT NULL, exe INTEGER NOT NULL,
    received_at INTEGER NOT NULL, quarantine TEXT, record BLOB NOT NULL);
CREATE UNIQUE INDEX events_number ON events (spool, seq);
CREATE INDEX events_spool ON events (spool);
CREATE INDEX events_ts ON events (ts);
CREATE INDEX events_kind ON events (kind);
CREATE INDEX events_verdict ON events (verdict) WHERE verdict != 0;
CREATE INDEX events_policy ON events (policy) WHERE policy != 0;
CREATE INDEX events_exe ON events (exe) WHERE exe != 0;
CREATE TABLE facts (turn INTEGER NOT NULL, base_id INTEGER NOT NULL, events INTEGER NOT NULL,
    first_id INTEGER NOT NULL, last_id INTEGER NOT NULL, first_ts INTEGER NOT NULL, last_ts INTEGER NOT NULL);
INSERT INTO facts VALUES (0, 0, 0, 0, 0, 0, 0);
"""


class DayFile(msgspec.Struct, frozen=True, order=True):
    """Names a file: the UTC day on which its events arrived, and their lane."""

    day: str
    lane: Lane

    @property
    def name(self) -> str:
        """Its name in the folder of events."""
        return f"{self.day}.{self.lane.name.lower()}{_SUFFIX}"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself.

    Attributes:
        turn: Rises each time that a lane goes on in another file; the highest knows all marks.
        base_id: The highest arrival number in use anywhere when the file was begun.
        events: How many it holds.
        first_id: Lowest arrival number, 0 for none.
        last_id: Highest arrival number, 0 for none.
        first_ts: Earliest time by the nodes' clocks.
        last_ts: Latest time by the nodes' clocks.
    """

    turn: int = 0
    base_id: int = 0
    events: int = 0
    first_id: int = 0
    last_id: int = 0
    first_ts: int = 0
    last_ts: int = 0

    def with_events(self, new: int, ids: tuple[int, int], times: tuple[int, int]) -> Facts:
        """Return the facts after ``new`` events came, numbered and timed within these bounds."""
        first_id, last_id = ids if not self.events else (min(self.first_id, ids[0]), max(self.last_id, ids[1]))
        first_ts, last_ts = times if not self.events else (min(self.first_ts, times[0]), max(self.last_ts, times[1]))
        return msgspec.structs.replace(
            self, events=self.events + new, first_id=first_id, last_id=last_id, first_ts=first_ts, last_ts=last_ts
        )


class Mark(msgspec.Struct, frozen=True):
    """How far a node's epoch came in a lane.

    Attributes:
        spool: Its number in the file.
        acked: Everything up to here is durable, or a gap tells of it.
        highest: The highest number that is, or was, in a file.
        stored: How many events ever were.
    """

    spool: int
    acked: int = 0
    highest: int = 0
    stored: int = 0


def day_of(at_ns: int) -> str:
    """Return the UTC day of a time."""
    return datetime.fromtimestamp(at_ns // 10**9, UTC).strftime("%Y-%m-%d")


def list_files(directory: Path) -> list[DayFile]:
    """Return the files that are there, and clear away what a dropped one left beside it."""
    found = []
    names = {entry.name for entry in os.scandir(directory)}
    for name in sorted(names):
        if match := _NAME.fullmatch(name):
            found.append(DayFile(match[1], Lane[match[2].upper()]))
        base = next((name.removesuffix(end) for end in _COMPANIONS if name.endswith(end)), "")
        if _NAME.fullmatch(base) and base not in names:
            (directory / name).unlink(missing_ok=True)
    return found


def companions(path: Path) -> Iterator[Path]:
    """Yield the names that SQLite may use beside ``path``."""
    for end in _COMPANIONS:
        yield path.with_name(path.name + end)


def sync_directory(directory: Path) -> None:
    """Make names in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a file for reading.

    Raises:
        StoreError: It cannot be opened.
    """
    conn = connect(path, read_only=True)
    try:
        conn.execute(f"PRAGMA cache_size=-{_READER_CACHE_KIB}")
    except sqlite3.Error as err:
        conn.close()
        raise StoreError(f"{path} cannot be read") from err
    return conn


def make_tables(conn: sqlite3.Connection) -> None:
    """Make the tables in an open transaction, unless they are there; raises as ``read_facts``."""
    if _version(conn) == 0:
        for statement in _TABLES.split(";\n"):
            conn.execute(statement)
        conn.execute(f"PRAGMA user_version={VERSION}")


def _version(conn: sqlite3.Connection) -> int:
    have = int(conn.execute("PRAGMA user_version").fetchone()[0])
    if have > VERSION:
        raise StoreError(
            f"a file of events has version {have}, this garrison knows up to {VERSION}",
            hint="install the garrison that wrote it, or a newer one",
        )
    return have


def read_facts(conn: sqlite3.Connection) -> Facts | None:
    """Return what a file says of itself; ``None`` when its making was interrupted.

    Raises:
        StoreError: A newer garrison made the file.
    """
    if _version(conn) == 0:
        return None
    row = conn.execute("SELECT turn, base_id, events, first_id, last_id, first_ts, last_ts FROM facts").fetchone()
    return Facts(**dict(zip(Facts.__struct_fields__, row, strict=True)))


def write_facts(conn: sqlite3.Connection, facts: Facts) -> None:
    """Keep what the file says of itself, in the open transaction."""
    conn.execute(
        "UPDATE facts SET turn = ?, base_id = ?, events = ?, first_id = ?, last_id = ?, first_ts = ?, last_ts = ?",
        msgspec.structs.astuple(facts),
    )


def read_marks(conn: sqlite3.Connection) -> dict[tuple[str, str], Mark]:
    """Return the marks of a file by node and epoch."""
    rows = conn.execute("SELECT node, epoch, id, acked, highest, stored FROM spools")
    return {(node, epoch): Mark(*rest) for node, epoch, *rest in rows}


def carry(conn: sqlite3.Connection, marks: Iterable[tuple[tuple[str, str], Mark]]) -> None:
    """Write marks into a file, in the open transaction; those that it has are raised. Their numbers are the file's own."""
    conn.executemany(
        "INSERT INTO spools (node, epoch, acked, highest, stored) VALUES (?, ?, ?, ?, ?) ON CONFLICT (node, epoch) DO UPDATE SET "
        "acked = max(acked, excluded.acked), highest = max(highest, excluded.highest), stored = max(stored, excluded.stored)",
        [(node, epoch, mark.acked, mark.highest, mark.stored) for (node, epoch), mark in marks],
    )


def seal(conn: sqlite3.Connection) -> bool:
    """Close a file's writing connection; return whether the file now stands alone, which readers of the moment can hinder."""
    try:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return bool(conn.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete")
    except sqlite3.Error as err:  # left as it is: it reads the same, and the next start tries again
        _log.info("seal=failed error=%s", err)
        return False
    finally:
        conn.close()


def is_damage(err: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a file is damaged, rather than full, locked or gone."""
    while err is not None:
        if isinstance(err, sqlite3.DatabaseError) and (getattr(err, "sqlite_errorcode", 0) or 0) & _PRIMARY_CODE in _DAMAGE:
            return True
        if isinstance(err, sqlite3.OperationalError) and "no such" in str(err):
            return True
        err = err.__cause__
    return False
