"""Figures of a spool, for the agent's report on itself and for people."""

from __future__ import annotations

import msgspec

__all__ = ["SpoolStats"]


class SpoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot; counters are since the spool was opened.

    Attributes:
        epoch: Current epoch.
        next_seq: Next sequence number.
        pending: Durable, unacknowledged events by lane name.
        bytes: Space they are reckoned with, by lane name.
        cap_bytes: Space allowed for all of them.
        file_bytes: Size of the database and its write-ahead log.
        queued: Events in memory, not yet durable.
        commits: Transactions committed.
        committed: Events committed.
        dropped: Events lost to a cap, a full queue, or damage; each is in a gap event.
        gaps: Gap events written.
        oldest_age_s: Age of the oldest unacknowledged event; 0 when there is none.
        disk_errors: Commits that the disk refused.
        disk_error: Why the last commit failed; empty when it did not.
        recoveries: Damaged files set aside.
    """

    epoch: str
    next_seq: int
    pending: dict[str, int]
    bytes: dict[str, int]
    cap_bytes: int
    file_bytes: int
    queued: int
    commits: int
    committed: int
    dropped: int
    gaps: int
    oldest_age_s: float
    disk_errors: int
    disk_error: str
    recoveries: int
