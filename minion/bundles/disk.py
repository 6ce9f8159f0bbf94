"""The bundle directory: content by digest, one record for each kept generation, one state file that points at them.

Layout, all of it private to root:
- ``blobs/DIGEST``: bundle metadata and policy files. Written once, read with the digest checked.
- ``records/DIGEST``: a signed assignment with the root chains that verify it; named after the assignment's content.
- ``state.json``: first line the SHA-256 of the rest; which records are held, newest first, the floor, what failed, newest roots.

Rules of this file:
- The state is the only thing that is ever replaced, in one step, after all that it points at was synced. A crash before that step
  leaves the old state and some files nobody names; after it, the new state.
- A damaged state is set aside, never guessed at; what the records prove can then be found again by verifying them.
Owns: names, order of writes, limits on what is read back. Does not own: what is believed (``common/trust/verify.py``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import BundleError, ConfigError, KernelError
from garrison.common.names import Digest, digest_of, parse_digest
from garrison.common.trust.durable import PART_SUFFIX, write_durably
from garrison.common.trust.verify import Floor

__all__ = ["BundleDisk", "Held", "Record", "Rejected", "State", "TrialNote"]

_STATE: Final = "state.json"
_STATE_MAX_BYTES: Final = 8 << 20  # two chains of 256 roots of a few kilobytes, and a short list
_RECORD_MAX_BYTES: Final = limits.METADATA_MAX_BYTES

_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to verify one generation again, years later and off line.

    Attributes:
        assignment: Signed metadata.
        assignment_roots: Root chain of the assignment repository, the pinned one first.
        bundle_roots: Root chain of the bundle repository, the pinned one first.
    """

    assignment: bytes
    assignment_roots: tuple[bytes, ...]
    bundle_roots: tuple[bytes, ...]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that was committed: its number and its record."""

    generation: int
    record: Digest


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """An assignment that verified but could not be enforced here: not tried again."""

    generation: int
    bundle: Digest
    reason: str
    at_ns: int


class TrialNote(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that was let into the kernel and is not committed: confirmed or not, no restart brings it back.

    Attributes:
        generation: Its number.
        bundle: Its bundle.
        boot: Kernel boot id of the trial.
        tries: How often it was tried, this time included.
        over: It was interrupted without a verdict and may be tried again.
    """

    generation: int
    bundle: Digest
    boot: str
    tries: int = 1
    over: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What ``state.json`` says.

    Attributes:
        v: Version of the format.
        held: Newest first.
        floor: What is never gone below.
        rejected: Oldest first.
        trial: The last generation that was tried and neither committed nor rejected.
        assignment_roots: Newest known root chain of the assignment repository, as text.
        bundle_roots: The same of the bundle repository.
    """

    v: int = 1
    held: tuple[Held, ...] = ()
    floor: Floor = Floor()
    rejected: tuple[Rejected, ...] = ()
    trial: TrialNote | None = None
    assignment_roots: tuple[str, ...] = ()
    bundle_roots: tuple[str, ...] = ()


class BundleDisk:
    """A bundle directory.

    Args:
        directory: Made with mode 0700 when absent.

    Raises:
        KernelError: It cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._blobs, self._records = directory, directory / "blobs", directory / "records"
        try:
            for path in (directory, self._blobs, self._records):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise KernelError(err.errno or 0, f"make bundle directory {directory}") from err

    # ---- state -------------------------------------------------------------------------------------------------------
    def read_state(self) -> State | None:
        """Return the state, ``None`` when there is none; a damaged one is set aside and counts as none.

        Raises:
            KernelError: It is there and cannot be read.
        """
        path = self._directory / _STATE
        try:
            data = _read(path, _STATE_MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise KernelError(err.errno or 0, f"read {path}") from err
        checksum, _, body = data.partition(b"\n")
        problem = "its checksum is wrong"
        if checksum == digest_of(body).encode():
            try:
                return msgspec.json.decode(body, type=State)
            except msgspec.DecodeError as err:
                problem = str(err)
        _log.error("bundles=state-damaged file=%s error=%s", path, problem)
        self._set_aside(path)
        return None

    def _set_aside(self, path: Path) -> None:
        try:
            path.replace(path.with_suffix(".damaged"))
        except OSError as err:
            _log.warning("bundles=state-not-set-aside error=%s", err)

    def write_state(self, state: State) -> None:
        """Replace the state in one step.

        Raises:
            KernelError: It could not be written; the old one stands.
        """
        body = msgspec.json.encode(state)
        write_durably(self._directory / _STATE, digest_of(body).encode() + b"\n" + body)

    # ---- content -----------------------------------------------------------------------------------------------------
    def read_blob(self, digest: Digest, length: int) -> bytes:
        """Return content whose digest and length are right.

        Raises:
            BundleError: Absent, unreadable or changed.
        """
        try:
            data = _read(self._blobs / digest, length)
        except OSError as err:
            raise BundleError(f"{digest[:12]} cannot be read back: {err.strerror}") from err
        if len(data) != length or digest_of(data) != digest:
            raise BundleError(f"{digest[:12]} changed on disk")
        return data

    def find_blob(self, digest: Digest, length: int) -> bytes | None:
        """Return content that is held and right, else ``None``: it is then fetched again."""
        try:
            return self.read_blob(digest, length)
        except BundleError:
            return None

    def write_blobs(self, blobs: Mapping[Digest, bytes]) -> None:
        """Write content, each file whole or not at all; a damaged one of the same name is replaced.

        Raises:
            KernelError: It could not be written.
        """
        for digest, data in blobs.items():
            write_durably(self._blobs / digest, data)

    # ---- records -----------------------------------------------------------------------------------------------------
    def read_record(self, name: Digest) -> Record:
        """Return a record; what it says is not verified yet.

        Raises:
            BundleError: Absent, unreadable or damaged.
        """
        try:
            return msgspec.msgpack.decode(_read(self._records / name, _RECORD_MAX_BYTES), type=Record)
        except OSError as err:
            raise BundleError(f"record {name[:12]} cannot be read back: {err.strerror}") from err
        except msgspec.DecodeError as err:
            raise BundleError(f"record {name[:12]} is damaged: {err}") from err

    def write_record(self, name: Digest, record: Record) -> None:
        """Write a record.

        Raises:
            KernelError: It could not be written.
        """
        write_durably(self._records / name, msgspec.msgpack.encode(record))

    def records(self) -> list[Digest]:
        """Return the names of all records on disk, in no order."""
        return [name for path in _files(self._records) if (name := _digest_name(path)) is not None]

    def sweep(self, *, records: Iterable[Digest], blobs: Iterable[Digest]) -> None:
        """Delete what is not named. Errors are logged: a leftover costs space and nothing else."""
        kept = {*(self._records / name for name in records), *(self._blobs / name for name in blobs)}
        for path in (*_files(self._records), *_files(self._blobs), *self._directory.glob(f".*{PART_SUFFIX}")):
            if path not in kept:
                try:
                    path.unlink(missing_ok=True)
                except OSError as err:
                    _log.warning("bundles=leftover file=%s error=%s", path, err)


def _read(path: Path, max_bytes: int) -> bytes:
    # One byte more than allowed: a longer file then fails its check without being read whole.
    with path.open("rb") as file:
        return file.read(max_bytes + 1)


def _files(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as found:
        yield from [directory / entry.name for entry in found if entry.is_file(follow_symlinks=False)]


def _digest_name(path: Path) -> Digest | None:
    try:
        return parse_digest(path.name)
    except ConfigError:
        return None
