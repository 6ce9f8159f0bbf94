"""A node's file system as far as workloads are found in it: cgroup tree, unit files, accounts, stores of container engines."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakes.bolt import write_bolt

__all__ = ["FakeNode"]

_TASKS = "run/containerd/io.containerd.runtime.v2.task"
_META = "var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"


class FakeNode:
    """Written below ``root``; ``cgroups`` stands for the cgroup mount."""

    def __init__(self, root: Path, cgroups: Path | None = None) -> None:
        self.root, self.cgroups = root, cgroups or root / "cgroups"
        self.cgroups.mkdir(parents=True, exist_ok=True)
        self.file(
            "etc/passwd", "root:x:0:0::/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/bash\nwww:x:33:33::/:/bin/false\n"
        )
        self.file("etc/group", "root:x:0:\nalice:x:1000:\noperators:x:500:bob,alice\n")
        (root / "etc/systemd/system").mkdir(parents=True)
        self._containerd: dict[bytes, dict[bytes, Any]] = {}

    def file(self, path: str, text: str | bytes) -> Path:
        """Write a file of the node."""
        where = self.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(text.encode() if isinstance(text, str) else text)
        return where

    def unit(self, name: str, text: str = "", folder: str = "etc/systemd/system") -> None:
        """Write a unit file."""
        self.file(f"{folder}/{name}", text)

    def cgroup(self, path: str) -> int:
        """Make a cgroup with its parents; returns its number."""
        where = self.cgroups / path.lstrip("/")
        where.mkdir(parents=True, exist_ok=True)
        return where.stat().st_ino

    def docker(self, container_id: str, name: str, labels: Mapping[str, str], image: str = "nginx:1") -> None:
        """Write what Docker keeps of a container."""
        config = {
            "ID": container_id,
            "Name": f"/{name}",
            "Config": {"Image": image, "Labels": labels},
            "State": {"Running": True},
        }
        self.file(f"var/lib/docker/containers/{container_id}/config.v2.json", json.dumps(config))

    def podman(
        self, containers: Mapping[str, tuple[str, Mapping[str, str]]], storage: str = "var/lib/containers/storage"
    ) -> None:
        """Write Podman's database, in bolt's format: id to name and labels."""
        rows = {i.encode(): {b"config": self._podman(i, name, labels)} for i, (name, labels) in containers.items()}
        write_bolt(self.root / storage / "libpod/bolt_state.db", {b"ctr": rows})

    def podman_sqlite(self, container_id: str, name: str, labels: Mapping[str, str]) -> None:
        """Write Podman's database as newer versions do."""
        path = self.root / "var/lib/containers/storage/db.sql"
        path.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE ContainerConfig (ID TEXT PRIMARY KEY NOT NULL, Name TEXT, PodID TEXT, JSON TEXT)")
            row = (container_id, name, None, self._podman(container_id, name, labels).decode())
            database.execute("INSERT INTO ContainerConfig VALUES (?, ?, ?, ?)", row)

    def task(self, namespace: str, container_id: str, annotations: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Write what containerd keeps of a container that runs."""
        config = {"ociVersion": "1.0.2", "annotations": annotations}
        self.file(f"{_TASKS}/{namespace}/{container_id}/config.json", json.dumps(config))
        self.meta(namespace, container_id, labels)

    def meta(self, namespace: str, container_id: str, labels: Mapping[str, str]) -> None:
        """Write containerd's database with one more container."""
        held = {key.encode(): value.encode() for key, value in labels.items()}
        spaces = self._containerd.setdefault(namespace.encode(), {})
        spaces.setdefault(b"containers", {})[container_id.encode()] = {b"image": b"docker.io/library/redis:7", b"labels": held}
        write_bolt(self.root / _META, {b"v1": self._containerd})

    @staticmethod
    def _podman(container_id: str, name: str, labels: Mapping[str, str]) -> bytes:
        return json.dumps({"id": container_id, "name": name, "rootfsImageName": "localhost/lab:1", "labels": labels}).encode()
