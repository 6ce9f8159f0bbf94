"""The spool's file as the sender sees it: batches of one lane, from a number on. Never writes, never checkpoints."""

from __future__ import annotations

from pathlib import Path

from garrison.common.errors import SpoolError
from garrison.common.events import Lane
from garrison.minion.spool.schema import connect_reader, table
from garrison.minion.spool.segment import unpack

__all__ = ["DamagedSegmentError", "SpoolReader"]


class DamagedSegmentError(SpoolError):
    """A segment cannot be read; ``lane`` and ``first_seq`` name it."""

    def __init__(self, lane: Lane, first_seq: int) -> None:
        super().__init__(f"events of lane {lane.name.lower()} from {first_seq} on are damaged")
        self.lane, self.first_seq = lane, first_seq


class SpoolReader:
    """A reading connection; one thread at a time.

    Raises:
        sqlite3.Error: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._conn = connect_reader(path)

    def close(self) -> None:
        """Close; before the writer closes."""
        self._conn.close()

    def read(self, lane: Lane, after_seq: int, max_events: int, max_bytes: int) -> tuple[list[int], list[bytes]]:
        """Return numbers and encoded events of ``lane`` after ``after_seq``, oldest first; at least one if there is one.

        Raises:
            DamagedSegmentError: The next segment cannot be read and nothing came before it.
            sqlite3.Error: The file cannot be read.
        """
        seqs: list[int] = []
        events: list[bytes] = []
        size = 0
        # Closed at the end: an open statement would hold the write-ahead log and let it grow.
        cursor = self._conn.execute(
            f"SELECT first_seq, crc, body FROM {table(lane)} WHERE last_seq > ? ORDER BY first_seq",  # noqa: S608
            (after_seq,),
        )
        try:
            for first_seq, crc, body in cursor:
                try:
                    numbers, raws = unpack(crc, body)
                except SpoolError as err:
                    if seqs:
                        break  # what came before it leaves first; the next call starts at the damage
                    raise DamagedSegmentError(lane, first_seq) from err
                for seq, raw in zip(numbers, raws, strict=True):
                    if seq <= after_seq:
                        continue
                    size += len(raw)
                    if seqs and (size > max_bytes or len(seqs) >= max_events):
                        return seqs, events
                    seqs.append(seq)
                    events.append(raw)
        finally:
            cursor.close()
        return seqs, events
