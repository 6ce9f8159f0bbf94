"""Brings the events of a store of version 1, one table in ``store.db``, into files by day and lane.

Rules of this file:
- Nothing is removed before all of it is durable in its new place; the table is dropped by the step of ``schema`` that follows.
- Killed anywhere, it goes on: what a file has is passed over, and where it stood is noted only after the files are durable.
- Numbers of arrival stay. Marks are written last, into the newest file of each lane, which is where they are looked for.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from garrison.common.errors import StoreError
from garrison.common.events import Lane
from garrison.common.sdnotify import notify
from garrison.master.store import dayfile
from garrison.master.store.dayfile import DayFile, Facts, Mark, day_of
from garrison.master.store.writer import connect

__all__ = ["move_events"]

_CHUNK: Final = 20_000
_OLD: Final = "id, spool, seq, ts, lane, kind, verdict, policy, exe, received_at, quarantine, record"
_INSERT: Final = dayfile.INSERT.replace("INSERT INTO", "INSERT OR IGNORE INTO", 1).partition(" ON CONFLICT")[0]
_PATIENCE: Final = "EXTEND_TIMEOUT_USEC=60000000"  # the service manager waits on as long as chunks are being done

_log = logging.getLogger(__name__)
_OldRow = tuple[int, int, int, int, int, str, str, str, str, int, str | None, bytes]


def move_events(conn: sqlite3.Connection, directory: Path, clock_ns: Callable[[], int]) -> None:
    """Copy all events of the old table into files, durably.

    Args:
        conn: The writing connection of ``store.db``, at version 1.
        directory: Folder of the files; made when absent.
        clock_ns: The master's clock.

    Raises:
        StoreError: The disk refused; the store is as it was, and the next start goes on.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        dayfile.sync_directory(directory.parent)
        conn.execute("CREATE TABLE IF NOT EXISTS upgrade (id INTEGER PRIMARY KEY, done INTEGER NOT NULL)")
        (last,) = conn.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
        spools = {spool: (node, epoch) for spool, node, epoch in conn.execute("SELECT id, node, epoch FROM spools")}
        if last:
            _log.info("store=upgrading events_up_to=%d", last)
        for rows in _chunks(conn):
            _move(directory, rows, spools)
            conn.execute("INSERT OR REPLACE INTO upgrade VALUES (1, ?)", (rows[-1][0],))
            notify(_PATIENCE)
            _log.info("store=upgrading done=%d of=%d", rows[-1][0], last)
        _mark(conn, directory, spools, last, day_of(clock_ns()))
        conn.execute("DROP TABLE upgrade")
    except (sqlite3.Error, OSError) as err:
        hint = "is there room for the events twice? the next start goes on where this one stopped"
        raise StoreError("the store's events cannot be brought into files by day", hint=hint) from err


def _chunks(conn: sqlite3.Connection) -> Iterator[list[_OldRow]]:
    (done,) = conn.execute("SELECT coalesce(max(done), 0) FROM upgrade").fetchone()
    while rows := conn.execute(f"SELECT {_OLD} FROM events WHERE id > ? ORDER BY id LIMIT {_CHUNK}", (done,)).fetchall():  # noqa: S608
        yield rows
        done = rows[-1][0]


def _move(directory: Path, rows: list[_OldRow], spools: dict[int, tuple[str, str]]) -> None:
    by_file: dict[DayFile, list[_OldRow]] = {}
    for row in rows:
        by_file.setdefault(DayFile(day_of(row[9]), Lane(row[4])), []).append(row)
    for file, some in by_file.items():
        with _Filling(directory / file.name) as filling:
            filling.add(some, spools)


def _mark(conn: sqlite3.Connection, directory: Path, spools: dict[int, tuple[str, str]], last: int, today: str) -> None:
    stored = {
        (spool, lane): n for spool, lane, n in conn.execute("SELECT spool, lane, count(*) FROM events GROUP BY spool, lane")
    }
    marks: dict[Lane, dict[tuple[str, str], Mark]] = {}
    for spool, lane, seq in conn.execute("SELECT spool, lane, seq FROM acks").fetchall():
        marks.setdefault(Lane(lane), {})[spools[spool]] = Mark(0, seq, seq, stored.get((spool, lane), 0))
    files = dayfile.list_files(directory)
    for lane, of_lane in marks.items():
        newest = max((file for file in files if file.lane == lane), default=DayFile(today, lane))
        with _Filling(directory / newest.name) as filling:
            filling.mark(of_lane, last)


class _Filling:
    """A file that is filled, in one transaction; sealed afterwards."""

    def __init__(self, path: Path) -> None:
        self._conn = connect(path, read_only=False)
        path.chmod(0o600)

    def __enter__(self) -> Self:
        self._conn.execute("BEGIN IMMEDIATE")
        dayfile.make_tables(self._conn)
        self._facts = dayfile.read_facts(self._conn) or Facts()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._conn.close()
            return
        dayfile.write_facts(self._conn, self._facts)
        self._conn.execute("COMMIT")
        dayfile.seal(self._conn)

    def add(self, rows: list[_OldRow], spools: dict[int, tuple[str, str]]) -> None:
        """Add events that are not there."""
        conn = self._conn
        words = {text: self._word(text) for text in {text for row in rows for text in row[5:9] if text}}
        local = {spool: self._spool(*spools[spool]) for spool in {row[1] for row in rows}}
        before = conn.total_changes
        conn.executemany(
            _INSERT,
            [
                (id_, local[spool], seq, ts, *(words.get(text, 0) for text in texts), at, why, record)
                for id_, spool, seq, ts, _, *texts, at, why, record in rows
            ],
        )
        if new := conn.total_changes - before:
            times = [row[3] for row in rows]
            self._facts = self._facts.with_events(new, (rows[0][0], rows[-1][0]), (min(times), max(times)))

    def mark(self, marks: dict[tuple[str, str], Mark], base_id: int) -> None:
        """Make this the file that knows how far everybody came."""
        dayfile.carry(self._conn, marks.items())
        self._facts = msgspec.structs.replace(self._facts, turn=1, base_id=base_id)

    def _word(self, text: str) -> int:
        self._conn.execute("INSERT OR IGNORE INTO words (text) VALUES (?)", (text,))
        return int(self._conn.execute("SELECT id FROM words WHERE text = ?", (text,)).fetchone()[0])

    def _spool(self, node: str, epoch: str) -> int:
        self._conn.execute(
            "INSERT OR IGNORE INTO spools (node, epoch, acked, highest, stored) VALUES (?, ?, 0, 0, 0)", (node, epoch)
        )
        return int(self._conn.execute("SELECT id FROM spools WHERE node = ? AND epoch = ?", (node, epoch)).fetchone()[0])
