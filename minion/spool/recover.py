"""What is done about a damaged spool: everything readable moves into a new file and a new epoch, the old file is set aside.

Rules of this file:
- The old file stays in its place until the new one is complete and synced; a crash in between starts over or finishes the swap.
- What did not read is a gap event: exact where the old counters read, otherwise it says that nobody can know (count 0).
- Events that were sent and not yet acknowledged are sent again under the new epoch: once too often rather than never.
- One damaged file is kept for a look; an older one goes. Recovery never loops: it reads each number at most a few times.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.events import Lane
from garrison.minion.spool.caps import SpoolCaps
from garrison.minion.spool.database import LaneState, SpoolDatabase
from garrison.minion.spool.schema import connect_reader, table
from garrison.minion.spool.segment import COLUMNS, EVENTS, Cargo, Item, Segment, gap_item

__all__ = ["finish_swap", "rebuild", "sync_directory"]

_PROBES_MAX: Final = 10_000  # reads across damage in one lane; each doubles its stride, so this is never the bound in practice
_ADOPT_BYTES: Final = limits.SPOOL_WAL_MAX_BYTES
_SIDE_FILES: Final = ("-wal", "-shm", "")  # the log first: beside a new file it would be replayed into it

_log = logging.getLogger(__name__)


def rebuild(path: Path, caps: SpoolCaps, boot: str, reason: str, cargo: Cargo = EVENTS) -> None:
    """Replace the damaged ``path`` by a new file with all that reads. No connection to it may be open.

    Raises:
        sqlite3.Error: The disk refuses the new file; the damaged one is still in place.
        OSError: The same, from the file system.
    """
    new = path.with_suffix(".new")
    _remove(new)
    database = SpoolDatabase(new, caps, boot, cargo)
    try:
        kept, lost = _move(path, database, boot)
    finally:
        database.close()
    for suffix in _SIDE_FILES[:2]:
        new.with_name(new.name + suffix).unlink(missing_ok=True)
    new.rename(path.with_suffix(".ready"))
    finish_swap(path)
    _log.error("spool=rebuilt reason=%s kept=%s lost=%s", reason, kept, lost)


def finish_swap(path: Path) -> None:
    """Put a completed new file in the place of the old one, and remove an incomplete one. Idempotent.

    Raises:
        OSError: The file system refuses.
    """
    _remove(path.with_suffix(".new"))
    ready = path.with_suffix(".ready")
    if not ready.exists():
        return
    aside = path.with_name(f"{path.stem}.damaged-{time.time_ns()}")
    for suffix in _SIDE_FILES:
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    ready.rename(path)
    sync_directory(path.parent)
    for old in path.parent.glob(f"{path.stem}.damaged-*"):
        if not old.name.startswith(aside.name):
            old.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make names in ``directory`` durable.

    Raises:
        OSError: The file system refuses.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _move(path: Path, database: SpoolDatabase, boot: str) -> tuple[int, int]:
    # Returns what was kept and what is known to be lost.
    kept = dict.fromkeys(Lane, 0)
    conn = _connect(path)
    epoch, next_seq, before = _counters(conn)
    part: list[tuple[Lane, Segment]] = []
    size = 0
    for lane in Lane:
        for segment in _salvage(conn, lane):
            part.append((lane, segment))
            size += segment.size
            kept[lane] += segment.weight
            if size >= _ADOPT_BYTES:
                database.adopt(part, next_seq, ())
                part, size = [], 0
    gaps = [gap for lane in Lane if (gap := _gap(lane, before, kept[lane], boot, epoch)) is not None]
    database.adopt(part, next_seq + limits.SPOOL_REOPEN_SKIP, gaps)
    if conn is not None:
        conn.close()
    return sum(kept.values()), sum(max(0, one.weight - kept[lane]) for lane, one in before.items())


def _connect(path: Path) -> sqlite3.Connection | None:
    try:
        return connect_reader(path)
    except sqlite3.Error:
        return None  # not even its header reads: every lane's loss is reported as unknown


def _counters(conn: sqlite3.Connection | None) -> tuple[str, int, dict[Lane, LaneState]]:
    lanes: dict[Lane, LaneState] = {}
    epoch, next_seq = "", 1
    if conn is None:
        return epoch, next_seq, lanes
    with suppress(sqlite3.Error, TypeError, ValueError):
        row = conn.execute("SELECT epoch, next_seq FROM spool WHERE id = 1").fetchone()
        epoch, next_seq = str(row[0]), int(row[1])
    with suppress(sqlite3.Error, TypeError, ValueError):
        for lane, *rest in conn.execute("SELECT lane, acked, last, events, weight, bytes FROM lanes").fetchall():
            lanes[Lane(lane)] = LaneState(*map(int, rest))
    return epoch, next_seq, lanes


def _gap(lane: Lane, before: dict[Lane, LaneState], kept: int, boot: str, epoch: str) -> Item | None:
    state = before.get(lane)
    if state is None:
        reason = "the spool was damaged; how many events were lost cannot be known"
        return gap_item(lane, 0, reason, boot=boot, epoch=epoch)
    if state.weight <= kept:
        return None
    return gap_item(
        lane,
        state.weight - kept,
        "the spool was damaged",
        first_seq=state.acked + 1,
        last_seq=state.last,
        boot=boot,
        epoch=epoch,
    )


def _salvage(conn: sqlite3.Connection | None, lane: Lane) -> Iterator[Segment]:
    """Yield every segment of ``lane`` that reads and whose checksum fits, in order, stepping over what does not."""
    if conn is None:
        return
    after, stride = -1, 1
    newest = _newest(conn, lane)
    for _ in range(_PROBES_MAX):
        try:
            for row in conn.execute(
                f"SELECT {COLUMNS} FROM {table(lane)} WHERE first_seq > ? ORDER BY first_seq",  # noqa: S608
                (after,),
            ):
                segment = _sound(row)
                if segment is not None:
                    after, stride = segment.first_seq, 1
                    yield segment
        except sqlite3.Error:
            after, stride = after + stride, stride * 2
            if after > newest:
                return
        else:
            return


def _newest(conn: sqlite3.Connection, lane: Lane) -> int:
    try:
        (newest,) = conn.execute(f"SELECT max(first_seq) FROM {table(lane)}").fetchone()  # noqa: S608
    except sqlite3.Error:
        return 1 << 62  # the strides double: this ends after 62 of them
    return int(newest or 0)


def _sound(row: tuple[object, ...]) -> Segment | None:
    *numbers, body = row
    if not isinstance(body, bytes) or not all(isinstance(number, int) for number in numbers):
        return None
    segment = Segment(*row)  # type: ignore[arg-type]  # checked above
    sane = 0 < segment.first_seq <= segment.last_seq < 1 << 62 and segment.events > 0 and segment.weight > 0
    return segment if sane and zlib.crc32(body) == segment.crc else None
