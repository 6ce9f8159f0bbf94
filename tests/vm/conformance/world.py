"""The files that stimuli find: on the machine, and by the same paths in workloads. Pure.

Each is path, kind (``text``, or ``program``: probe.c under that name), owner, text.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["WORLD", "File", "files_for"]

File = tuple[str, str, str, str]


def _texts(owner: str, *paths: str) -> tuple[File, ...]:
    return tuple((path, "text", owner, f"{path}\n") for path in paths)


def _programs(owner: str, *paths: str) -> tuple[File, ...]:
    return tuple((path, "program", owner, "") for path in paths)


_TOKEN = "/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
WORLD: tuple[File, ...] = (
    *_texts(
        "user1", *(f"/home/user1/{name}" for name in ("secret_data1.txt", "otherfile.txt", "dir1/key1.txt", "dir1/key2.txt"))
    ),
    *_texts("root", "/secret.txt", "/credentials/password", "/credentials/keys/priv.key", "/etc/gshadow.old", _TOKEN),
    *_texts("root", *(f"/srv/conform/{name}" for name in ("other.conf", "note.txt", "etc/one.conf", "etc/deep/two.conf"))),
    *_texts("root", "/srv/www/config.php", "/srv/www/index.php"),
    *_programs("user1", "/home/user1/hello"),
    *_programs("root", "/readwrite", "/usr/bin/curl", "/usr/bin/python3.6", "/opt/copy/apt", "/opt/tools/head"),
    *_programs(
        "root",
        "/usr/sbin/route",
        "/usr/sbin/deeper/route",
        "/credentials/tool",
        "/etc/conform/tool",
        "/opt/tools/bin/one",
        "/opt/tools/bin/deeper/two",
    ),
)


def files_for(more: Iterable[File]) -> list[File]:
    """Return the world and ``more``, each path once."""
    return list({file[0]: file for file in (*more, *WORLD)}.values())
