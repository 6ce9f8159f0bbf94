"""Reads errors from the systemd journal by a journalctl that follows it, from where it was left.

Rules of this file:
- A position is the journal's own cursor; before the first error it is the cursor of the last entry there was.
- Entries that journald took from the kernel log are left out: the kernel source has them.
- A journalctl that ends is an error; the observer starts another one from the last cursor.
Source: journalctl(1); systemd.journal-fields(7): JSON values are strings, null when too long, or lists of bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.common.events import Scalar
from garrison.minion.observers._finding import PRIORITY_ERR, Finding, Source
from garrison.minion.observers._worker import Stop

__all__ = ["Journal", "find_journal", "parse_entry"]

_ROOTS: Final = (Path("/var/log/journal"), Path("/run/log/journal"))
_FIELDS: Final = (
    "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,UNIT,_SYSTEMD_UNIT,_SYSTEMD_USER_UNIT,_TRANSPORT,_PID,_UID,_EXE,_COMM,CONTAINER_ID"
)
_CURSOR: Final = re.compile(
    r"s=[0-9a-f]+(?:;[a-z]=[0-9a-f]+)+", re.ASCII
)  # opaque by contract; checked since it becomes an argument
_READ_BYTES: Final = 64 << 10
_DATA: Final = {"SYSLOG_IDENTIFIER": "identifier", "_EXE": "exe", "_COMM": "comm", "CONTAINER_ID": "container"}


def find_journal() -> Path | None:
    """Return where this machine's journal is; ``None`` when it has none or no journalctl to read it."""
    if shutil.which("journalctl") is None:
        return None
    return next((root for root in _ROOTS if root.is_dir() and any(root.iterdir())), None)


def parse_entry(line: bytes) -> tuple[str, Finding | None] | None:
    """Return cursor and finding of one line of ``journalctl -o json``.

    Returns:
        ``None`` when the line is no journal entry; a finding of ``None`` for an entry that is not to be told.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("__CURSOR"), str):
        return None
    priority = _number(entry.get("PRIORITY"), PRIORITY_ERR)
    if entry.get("_TRANSPORT") == "kernel" or priority > PRIORITY_ERR:
        return entry["__CURSOR"], None
    # UNIT= is what pid 1 speaks about, _SYSTEMD_UNIT who spoke.
    unit = _text(entry.get("UNIT") or entry.get("_SYSTEMD_USER_UNIT") or entry.get("_SYSTEMD_UNIT"))
    data: dict[str, Scalar] = {"unit": unit} if unit else {}
    data |= {name: _text(entry[field])[: limits.EVENT_ARG_MAX_CHARS] for field, name in _DATA.items() if entry.get(field)}
    data |= {name: _number(entry[field], -1) for field, name in (("_PID", "pid"), ("_UID", "uid")) if field in entry}
    return entry["__CURSOR"], Finding(
        source="journal",
        message=_text(entry.get("MESSAGE")),
        priority=priority,
        ts=_number(entry.get("__REALTIME_TIMESTAMP"), 0) * 1000,
        object=unit or _text(entry.get("SYSLOG_IDENTIFIER")),
        data=data,
    )


def _text(value: Any) -> str:
    """Return a field's value as text: strings are, bytes come as lists of numbers, repeated fields as lists of those."""
    if isinstance(value, list):
        if all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):  # noqa: PLR2004 - bytes
            return bytes(value).decode("utf-8", "replace")
        return " ".join(_text(part) for part in value)
    return value if isinstance(value, str) else ""


def _number(value: Any, otherwise: int) -> int:
    try:
        return int(_text(value))
    except ValueError:
        return otherwise


class Journal(Source):
    """Yields journal entries of priority err or worse.

    Args:
        directory: Read the journal files below it instead of this machine's own.
    """

    name = "journal"

    def __init__(self, directory: Path | None = None) -> None:
        super().__init__()
        self.counters = {"journal_malformed": 0}
        self._where = ["--directory", str(directory)] if directory else []
        self._process: subprocess.Popen[bytes] | None = None
        self._cursor, self._since = "", 0.0
        self._behind = ""  # cursor of the entry that was told already
        self._buffer = b""

    def open(self, position: Any) -> None:
        """Start journalctl behind the position.

        Raises:
            GarrisonError: It cannot be started.
        """
        known = position if isinstance(position, dict) else {}
        if isinstance(known.get("cursor"), str) and _CURSOR.fullmatch(known["cursor"]):
            self._cursor = known["cursor"]
        elif isinstance(known.get("since"), int | float):
            self._since = float(known["since"])
        else:
            self._cursor, self._since = self._last_cursor(), time.time()
        # Not --after-cursor: it passes over one more error when the entry of the cursor is gone, or is none.
        self._behind = self._cursor
        start = ["--cursor", self._cursor] if self._cursor else ["--since", f"@{self._since:.6f}"]
        argv = ["journalctl", *self._where, "--quiet", "--follow", "--no-tail", "--no-pager", "--output=json", "--priority=3"]
        self._process = _start([*argv, f"--output-fields={_FIELDS}", *start])
        self._buffer = b""

    def _last_cursor(self) -> str:
        # Of an error: an entry that is read over cannot be found again by one that reads errors alone.
        argv = ["journalctl", *self._where, "--quiet", "--no-pager", "--output=json", "--output-fields=PRIORITY", "--lines=1"]
        done = subprocess.run([*argv, "--priority=3"], check=False, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
        parsed = parse_entry(done.stdout.strip())
        return parsed[0] if parsed else ""

    def read(self, stop: Stop, timeout_s: float) -> list[Finding]:
        """Return new errors.

        Raises:
            GarrisonError: journalctl has ended.
        """
        process = self._process
        if process is None or process.stdout is None:
            raise RuntimeError("read before open")
        fd = process.stdout.fileno()
        if not stop.wait_for(fd, timeout_s):
            return []
        chunk = os.read(fd, _READ_BYTES)
        if not chunk:
            raise GarrisonError(f"journalctl ended with exit code {process.wait(timeout=10)}")
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        if len(self._buffer) > limits.JOURNAL_LINE_MAX_BYTES:
            self.counters["journal_malformed"] += 1
            self._buffer = b""  # its rest is no JSON by itself and is counted once more, which says no less
        return [finding for line in lines if (finding := self._entry(line)) is not None]

    def _entry(self, line: bytes) -> Finding | None:
        parsed = parse_entry(line)
        if parsed is None:
            self.counters["journal_malformed"] += 1
            return None
        self._cursor, finding = parsed
        return finding if self._cursor != self._behind else None

    def position(self) -> Any:
        """Return the cursor of the last entry read, or since when to look when there was none."""
        return {"cursor": self._cursor} if self._cursor else {"since": self._since}

    def close(self) -> None:
        """End journalctl."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    except OSError as err:
        raise GarrisonError(f"journalctl cannot be started: {err.strerror}") from err
