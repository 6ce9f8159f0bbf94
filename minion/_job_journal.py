"""The journal of commands: three small files an id, so that no id is ever run twice and every answer can be given again.

``ID.job`` says that it was started, ``ID.out`` holds its output, ``ID.result`` how it ended. Results are kept longer than output.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.common.frames import JobOutput, JobResult

__all__ = ["Journal", "JournalError", "OutputLog"]

_LENGTH: Final = struct.Struct("<I")
_RECORD_MAX_BYTES: Final = limits.JOB_OUTPUT_CHUNK_BYTES + 1024
_result_decoder = msgspec.msgpack.Decoder(JobResult)
_output_decoder = msgspec.msgpack.Decoder(JobOutput)
_encoder = msgspec.msgpack.Encoder()


class JournalError(GarrisonError):
    """The journal cannot be written."""


class OutputLog:
    """Output of one command: appended piece by piece, read from any place while it grows.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC if write else os.O_RDONLY
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self.size = 0 if write else os.fstat(self._fd).st_size

    def append(self, piece: JobOutput) -> bool:
        """Write ``piece``; ``False`` when the disk refuses, and then nothing of it counts."""
        body = _encoder.encode(piece)
        record = _LENGTH.pack(len(body)) + body
        try:
            written = os.pwrite(self._fd, record, self.size)
        except OSError:
            return False
        if written < len(record):
            return False
        self.size += len(record)
        return True

    def read(self, offset: int) -> tuple[JobOutput, int] | None:
        """Return the piece at ``offset`` and the next offset; ``None`` at the end or where the rest is torn."""
        head = os.pread(self._fd, _LENGTH.size, offset)
        if offset >= self.size or len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > _RECORD_MAX_BYTES:
            return None
        body = os.pread(self._fd, length, offset + _LENGTH.size)
        try:
            return _output_decoder.decode(body), offset + _LENGTH.size + length
        except (msgspec.DecodeError, msgspec.ValidationError):
            return None

    def sync(self) -> None:
        """Make it durable.

        Raises:
            OSError: The disk refuses.
        """
        os.fsync(self._fd)

    def close(self) -> None:
        """Close. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Journal:
    """The journal's folder; made at the first write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, job_id: str, suffix: str) -> Path:
        return self._directory / f"{job_id}.{suffix}"  # job ids are checked to be hex where frames are decoded

    def result(self, job_id: str) -> JobResult | None:
        """Return how ``job_id`` ended; ``None`` if that is not known."""
        try:
            return _result_decoder.decode(self._path(job_id, "result").read_bytes())
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            return None

    def started(self, job_id: str) -> bool:
        """Whether ``job_id`` was ever started here."""
        return self._path(job_id, "job").exists() or self._path(job_id, "result").exists()

    def begin(self, job_id: str) -> OutputLog:
        """Note durably that ``job_id`` starts now.

        Raises:
            JournalError: The disk refuses: it must not be run.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._prune()
            log = OutputLog(self._path(job_id, "out"), write=True)
            try:
                self._write(self._path(job_id, "job"), b"")
            except BaseException:
                log.close()
                raise
        except OSError as err:
            raise JournalError(f"the job journal in {self._directory} cannot be written: {err.strerror}") from err
        return log

    def finish(self, result: JobResult) -> None:
        """Note durably how a job ended.

        Raises:
            JournalError: The disk refuses.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._path(result.job, "result"), _encoder.encode(result))
        except OSError as err:
            raise JournalError(f"the job journal in {self._directory} cannot be written: {err.strerror}") from err

    def outputs(self, job_id: str) -> Iterator[JobOutput]:
        """Yield the output of ``job_id``, as far as it is still kept."""
        try:
            log = OutputLog(self._path(job_id, "out"), write=False)
        except OSError:
            return
        try:
            offset = 0
            while (found := log.read(offset)) is not None:
                piece, offset = found
                yield piece
        finally:
            log.close()

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(path.name + ".part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(path)
        dir_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(dir_fd)
        finally:
            os.close(dir_fd)

    def _prune(self) -> None:
        # Output goes first, the oldest; then the oldest ids. What has no result yet is running, or was interrupted: it stays.
        results = sorted(self._directory.glob("*.result"), key=_age)
        for old in results[: max(0, len(results) - limits.JOBS_KEPT_MAX + 1)]:
            for suffix in ("out", "job", "result"):
                old.with_suffix(f".{suffix}").unlink(missing_ok=True)
        kept = 0
        for path in sorted(self._directory.glob("*.out"), key=_age, reverse=True):
            with suppress(FileNotFoundError):
                kept += path.stat().st_size
            if kept > limits.JOBS_OUTPUT_KEPT_BYTES and path.with_suffix(".result").exists():
                path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
