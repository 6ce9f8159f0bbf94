"""Looks containers up where their engines keep them. Files and databases are read; no engine is asked, no program started.

Rules of this file:
- A container of root's is looked up in root's stores, one in a user's slice in that user's alone: else a user could give a
  cgroup the name of somebody else's container and have its labels.
- A user's store is read as what it is: files of a user, on a file system that may be the user's. ``Patience`` bounds the wait.
- ``None`` is an answer: no engine knows the container (yet). A store that cannot be read is one that does not know it, and
  says why once.

Formats: ``engines``. Where engines keep them is what they do by default, Podman's also by ``graphroot`` in
/etc/containers/storage.conf.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from garrison.common import limits
from garrison.minion.workloads.accounts import Account
from garrison.minion.workloads.bolt import BoltError, BoltFile
from garrison.minion.workloads.engines import (
    ContainerFacts,
    containerd_facts,
    containerd_labels,
    docker_facts,
    pod_facts,
    podman_config_in_bolt,
    podman_facts,
)
from garrison.minion.workloads.files import open_regular, read_regular

__all__ = ["Patience", "Stores"]

_TASKS: Final = "io.containerd.runtime.v2.task"
_META: Final = "io.containerd.metadata.v1.bolt/meta.db"
# State and root of containerd as packages set it up: by itself, within k3s and rke2, for MicroK8s.
_CONTAINERD: Final = (
    ("run/containerd", "var/lib/containerd"),
    ("run/k3s/containerd", "var/lib/rancher/k3s/agent/containerd"),
    ("var/snap/microk8s/common/run/containerd", "var/snap/microk8s/common/var/lib/containerd"),
)
_SQL: Final = "SELECT JSON FROM ContainerConfig WHERE ID = ? AND length(JSON) <= ?"
_SQL_STEPS: Final = 100_000  # of SQLite's machine: a look-up by key takes about fifty

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Patience:
    """Runs look-ups that somebody's own file system may hold up, each for at most ``WORKLOAD_READ_MAX_S``.

    A look-up that takes longer is left behind in its thread, and nothing more is looked up for its owner until it has ended.
    """

    def __init__(self, max_s: float = limits.WORKLOAD_READ_MAX_S) -> None:
        self._max_s = max_s
        self._held: dict[int, threading.Thread] = {}

    def run(self, uid: int, look: Callable[[], _T]) -> _T | None:
        """Return what ``look`` found, ``None`` when it did not end in time.

        Raises:
            Exception: What ``look`` raised.
        """
        if (held := self._held.get(uid)) and held.is_alive():
            return None
        answer: list[_T] = []
        trouble: list[Exception] = []

        def work() -> None:
            try:
                answer.append(look())
            except Exception as err:  # noqa: BLE001 - raised again by whoever waits
                trouble.append(err)

        thread = threading.Thread(target=work, name=f"workloads-of-{uid}", daemon=True)
        thread.start()
        thread.join(self._max_s)
        if thread.is_alive():
            self._held[uid] = thread
            _log.warning("containers_of_user=%d read=no reason=its files did not answer within %g s", uid, self._max_s)
            return None
        self._held.pop(uid, None)
        if trouble:
            raise trouble[0]
        return answer[0]


class Stores:
    """All engines' stores on this node.

    Args:
        root: Where the file system begins; tests have their own.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._patience = Patience()
        self._told: set[str] = set()

    def of_root(self, container_id: str, namespace: str = "") -> ContainerFacts | None:
        """Return what root's engines say of a container.

        Args:
            container_id: Its id.
            namespace: containerd's, if the cgroup names it.
        """
        root = self._root
        return (
            self._docker(root / "var/lib/docker", container_id, None)
            or self._podman(self._graph_root(), container_id, None)
            or self._containerd(container_id, namespace)
        )

    def of_user(self, account: Account, container_id: str) -> ContainerFacts | None:
        """Return what a user's own engines say of a container."""
        home = self._root / account.home.lstrip("/") / ".local/share"

        def look() -> ContainerFacts | None:
            return self._podman(home / "containers/storage", container_id, account.uid) or self._docker(
                home / "docker", container_id, account.uid
            )

        return self._patience.run(account.uid, look)

    def is_bundle(self, namespace: str, container_id: str) -> bool:
        """Return whether containerd runs a task of this namespace and id."""
        return any((self._root / state / _TASKS / namespace / container_id).is_dir() for state, _ in _CONTAINERD)

    # ---- engines -------------------------------------------------------------------------------------------------------
    def _docker(self, home: Path, container_id: str, owner: int | None) -> ContainerFacts | None:
        raw = self._read(home / "containers" / container_id / "config.v2.json", owner)
        return docker_facts(raw) if raw else None

    def _podman(self, storage: Path, container_id: str, owner: int | None) -> ContainerFacts | None:
        raw = self._podman_bolt(storage / "libpod/bolt_state.db", container_id, owner)
        raw = raw or self._podman_sqlite(storage / "db.sql", container_id, owner)
        return podman_facts(raw) if raw and len(raw) <= limits.WORKLOAD_FILE_MAX_BYTES else None

    def _podman_bolt(self, path: Path, container_id: str, owner: int | None) -> bytes | None:
        def look() -> bytes | None:
            with contextlib.closing(BoltFile(path, owner=owner)) as file:
                return file.read(lambda root: podman_config_in_bolt(root, container_id))

        return self._tried(path, look)

    def _podman_sqlite(self, path: Path, container_id: str, owner: int | None) -> bytes | None:
        def look() -> bytes | None:
            os.close(open_regular(path, owner=owner))  # it is a regular file of its owner; SQLite opens by name
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)) as database:
                database.execute("PRAGMA trusted_schema = OFF")
                database.set_progress_handler(lambda: 1, _SQL_STEPS)
                row = database.execute(_SQL, (container_id, limits.WORKLOAD_FILE_MAX_BYTES)).fetchone()
                return str(row[0]).encode() if row else None

        return self._tried(path, look)

    def _containerd(self, container_id: str, namespace: str) -> ContainerFacts | None:
        for state, home in _CONTAINERD:
            tasks = self._root / state / _TASKS
            for space in [namespace] if namespace else _names(tasks):
                raw = self._read(tasks / space / container_id / "config.json", None)
                facts = containerd_facts(raw, container_id) if raw else None
                if facts is not None:
                    return self._from_meta(self._root / home / _META, facts, space, container_id)
        return None

    def _from_meta(self, path: Path, facts: ContainerFacts, namespace: str, container_id: str) -> ContainerFacts:
        def look() -> ContainerFacts:
            with contextlib.closing(BoltFile(path)) as file:
                own = file.read(lambda root: containerd_labels(root, namespace, container_id))
                pod = file.read(lambda root: containerd_labels(root, namespace, facts.sandbox)) if facts.sandbox else None
                return pod_facts(facts, own, pod)

        return self._tried(path, look) or facts

    # ---- reading -------------------------------------------------------------------------------------------------------
    def _graph_root(self) -> Path:
        raw = self._read(self._root / "etc/containers/storage.conf", None)
        if raw:
            with contextlib.suppress(
                tomllib.TOMLDecodeError, UnicodeDecodeError
            ):  # podman itself would not start with such a file
                storage = tomllib.loads(raw.decode()).get("storage")
                if isinstance(storage, dict) and isinstance(where := storage.get("graphroot"), str) and where:
                    return self._root / where.lstrip("/")
        return self._root / "var/lib/containers/storage"

    def _read(self, path: Path, owner: int | None) -> bytes | None:
        return self._tried(path, lambda: read_regular(path, owner=owner))

    def _tried(self, path: Path, look: Callable[[], _T]) -> _T | None:
        try:
            return look()
        except (FileNotFoundError, NotADirectoryError):  # this engine is not here, or does not know the container
            return None
        except (OSError, BoltError, sqlite3.Error, ValueError) as err:
            if str(path) not in self._told:
                self._told.add(str(path))
                _log.warning("container_store=%s read=no error=%s", path, err)
            return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
