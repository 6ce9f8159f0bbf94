"""Who this node is: its data directory, its name, its key, the master it joined. Decided once, then pinned.

Rules of this file:
- The private key is made here, mode 0600, and never leaves the directory.
- Name, tenant and master are pinned at the first start. Later flags or files that differ are refused, not followed:
  a changed environment variable must not move a node to another master or make it take another node's assignments. A join file
  that leads to the same master on another way, straight or through a relay, is followed.
- One agent per directory: the lock is held as long as ``Identity`` lives.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from garrison.common.errors import ConfigError, KernelError
from garrison.common.names import KeyFingerprint, NodeName, fingerprint, node_name
from garrison.common.trust.curve import ensure_curve_key, load_curve_key
from garrison.common.trust.join import JoinFile, load_join, save_join

__all__ = ["Identity", "is_held"]

_NAME_FILE: Final = "node"
_JOIN_FILE: Final = "join.json"
_KEY_FILE: Final = "curve.key"


class Identity:
    """An opened data directory.

    Attributes:
        directory: The data directory.
        name: Pinned node name.
        public_key: CURVE public key, Z85.
        secret_key: CURVE secret key, Z85.
        join: The master it joined; ``None`` before that.
    """

    def __init__(self, directory: Path, name: NodeName, keys: tuple[bytes, bytes], join: JoinFile | None, lock_fd: int) -> None:
        self.directory, self.name, self.join = directory, name, join
        self.public_key, self.secret_key = keys
        self._lock_fd = lock_fd

    @property
    def fingerprint(self) -> KeyFingerprint:
        """What ``garrison nodes pending`` shows for this node."""
        return fingerprint(self.public_key)

    @staticmethod
    def exists(directory: Path) -> bool:
        """Whether a node was made of ``directory``: it has a name and joined a master."""
        return all((directory / name).exists() for name in (_NAME_FILE, _JOIN_FILE, _KEY_FILE))

    @classmethod
    def open(cls, directory: Path, *, wanted_name: str, join: Path | None = None, name_is_explicit: bool = False) -> Identity:
        """Open ``directory``, making what is missing.

        Args:
            directory: Made with mode 0700 when absent.
            wanted_name: Name for the first start.
            join: Join file to take over at the first start.
            name_is_explicit: The operator named the node, so a differing pin is an error; a changed hostname is not.

        Raises:
            ConfigError: Another agent holds it; the name or the join file contradicts what is pinned.
            KernelError: It cannot be made or written.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            lock_fd = _lock(directory)
        except OSError as err:
            raise KernelError(err.errno or 0, f"open data directory {directory}") from err
        try:
            name = _pin_name(directory, wanted_name, explicit=name_is_explicit)
            joined = _pin_join(directory, join)
            return cls(directory, name, ensure_curve_key(directory / _KEY_FILE), joined, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise

    @classmethod
    def peek(cls, directory: Path) -> Identity:
        """Return what is pinned in ``directory``, whoever works on it now.

        Raises:
            ConfigError: It is of no node that joined a master.
        """
        if not cls.exists(directory):
            raise ConfigError(f"{directory} is of no node that joined a master")
        name = _pin_name(directory, "", explicit=False)
        return cls(directory, name, load_curve_key(directory / _KEY_FILE), load_join(directory / _JOIN_FILE), -1)

    def close(self) -> None:
        """Give the directory back. Idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def is_held(directory: Path) -> bool:
    """Return whether an agent, or early enforcement, works on ``directory`` now; needs the right to read it."""
    try:
        fd = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _lock(directory: Path) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(fd)
        raise ConfigError(f"another minion runs on {directory}", hint="stop it, or give this one its own --dir") from err
    return fd


def _pin_name(directory: Path, wanted: str, *, explicit: bool) -> NodeName:
    path = directory / _NAME_FILE
    if path.exists():
        pinned = node_name(path.read_text(encoding="ascii").strip())
        if explicit and pinned != wanted:
            raise ConfigError(
                f"this node is {pinned}, not {wanted}",
                hint=f"a node keeps its name; to make it another node, retire {pinned} and remove {directory}",
            )
        return pinned
    name = node_name(wanted)
    _write_durably(path, f"{name}\n".encode())
    return name


def _pin_join(directory: Path, offered: Path | None) -> JoinFile | None:
    path = directory / _JOIN_FILE
    held = load_join(path) if path.exists() else None
    if offered is None:
        return held
    new = load_join(offered)
    if held is None:
        save_join(new, path)
        return new
    if new != held and new.is_same_master(held):
        save_join(new, path)  # another way to it: straight, or through this or that relay
        return new
    if (new.tenant, new.server_key) != (held.tenant, held.server_key):
        raise ConfigError(
            f"{offered} is of another master than the one this node joined",
            hint=f"to move the node, stop it and remove {path} and {directory / 'bundles'}",
        )
    return held


def _write_durably(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    dir_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(dir_fd)
    finally:
        os.close(dir_fd)
