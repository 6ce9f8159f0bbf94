"""Remembers what ansible-inventory printed for an inventory of plain files: it takes about a second each time.

Rules of this file:
- The key is the content of every file below the inventory, and of the configuration and environment that Ansible reads: an answer
  is given again only for the very same input.
- Never for an inventory that asks something else: executables and plugin configurations; never for one with vault content, whose
  answer may hold secrets in the clear.
- Only files of this very user that nobody else can read or write are trusted. Everything that is wrong with the cache means: no
  cache. It never makes a command fail.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from garrison.common import limits

__all__ = ["cache_key", "load", "store"]

_PLUGIN: Final = re.compile(rb"^\s*[\"']?plugin[\"']?\s*:", re.MULTILINE)
_VAULT: Final = re.compile(rb"^\$ANSIBLE_VAULT;|!vault\b|!vault-encrypted\b", re.MULTILINE)
_KEPT: Final = 16
_FORMAT: Final = b"1"


def cache_key(source: Path, program: Path) -> str | None:
    """Return the digest of all that the answer depends on; ``None`` when it must not be remembered.

    Args:
        source: Inventory file or directory.
        program: The ansible-inventory that reads it.
    """
    digest = hashlib.sha256(_FORMAT)
    try:
        for path in _inputs(source):
            content = _content(path)
            if content is None:
                return None
            digest.update(f"{path}\0{len(content)}\0".encode("utf-8", "surrogateescape") + content)
        for path in [program, *_configurations()]:
            digest.update(f"{path}\0{_stamp(path)}\0".encode("utf-8", "surrogateescape"))
    except (OSError, ValueError):  # unreadable, too much, or changing under us: see the rules
        return None
    for name in sorted(os.environ):
        if name.startswith("ANSIBLE_"):
            digest.update(f"{name}={os.environ[name]}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _inputs(source: Path) -> Iterator[Path]:
    """Yield every file that may matter: below a directory, or the file and the variables beside it; sorted.

    Raises:
        ValueError: There are too many.
    """
    tops = [source] if source.is_dir() else [source, source.parent / "group_vars", source.parent / "host_vars"]
    count = 0
    for top in tops:
        for path in _files(top):
            count += 1
            if count > limits.INVENTORY_FILES_MAX:
                raise ValueError("too many files")
            yield path


def _files(top: Path) -> Iterator[Path]:
    if top.is_file():
        yield top
    for folder, folders, files in os.walk(top, followlinks=True):  # nothing for what is no directory
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files))


def _content(path: Path) -> bytes | None:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o111 or info.st_size > limits.INVENTORY_MAX_BYTES:
        return None
    content = path.read_bytes()
    variables = {"group_vars", "host_vars"} & set(path.parts)
    if _VAULT.search(content) or (not variables and _PLUGIN.search(content)):
        return None
    return content


def _configurations() -> list[Path]:
    named = os.environ.get("ANSIBLE_CONFIG")
    places = [Path("ansible.cfg").absolute(), Path.home() / ".ansible.cfg", Path("/etc/ansible/ansible.cfg")]
    return [Path(named).absolute(), *places] if named else places


def _stamp(path: Path) -> str:
    try:
        info = path.stat()
    except OSError:
        return "absent"
    return f"{info.st_mtime_ns} {info.st_ctime_ns} {info.st_size} {info.st_ino}"


def _directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "garrison"


def load(key: str) -> bytes | None:
    """Return the remembered answer; ``None`` when there is none that can be trusted."""
    try:
        fd = os.open(_directory() / f"inventory-{key}.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, RuntimeError):
        return None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        private = info.st_uid == os.geteuid() and not info.st_mode & 0o077 and stat.S_ISREG(info.st_mode)
        return file.read(limits.INVENTORY_MAX_BYTES) if private and info.st_size < limits.INVENTORY_MAX_BYTES else None


def store(key: str, answer: bytes) -> None:
    """Remember ``answer``; forgets the oldest beyond 16."""
    try:
        directory = _directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.lstat()
        if info.st_uid != os.geteuid() or info.st_mode & 0o022 or not stat.S_ISDIR(info.st_mode):
            return
        part = directory / f"inventory-{key}.{os.getpid()}.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(answer)
        part.replace(directory / f"inventory-{key}.json")
        oldest = sorted(directory.glob("inventory-*.json"), key=lambda path: path.stat().st_mtime_ns)[:-_KEPT]
        for path in oldest:
            path.unlink()
    except (OSError, RuntimeError):  # no home, read-only, full: see the rules
        return
