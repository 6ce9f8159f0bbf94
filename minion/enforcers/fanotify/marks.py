"""Plans what the responder must watch so that no operation that a rule is about goes by unseen. Pure over a view of the files.

Rules of this file:
- Narrow where rules name files or single directories: other opens then cost nothing. The mark on the directory catches a file
  that is put in the place of another, the mark on the file catches its other names.
- Wide, the whole file system, where a rule reaches below a directory, names programs, or makes an allow-list.
- FUSE file systems are watched only where a rule names a path on them: the kernel opens an event's file for the responder, so
  whoever serves one could hang it.
- Directories that do not exist yet are covered by the file system in which they would be made.
Owns: where marks go. Does not own: what a rule means, setting the marks (the responder).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from garrison.common.policy.glob import expand_braces, literal_prefix
from garrison.common.policy.match import makes_list
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Rule, Verdict
from garrison.minion.enforcers.fanotify.table import FileId, Mark

__all__ = ["Files", "Mount", "NodeFiles", "parse_mountinfo", "plan_marks", "why_unwatchable"]

FAN_OPEN_PERM: Final = 0x00010000
FAN_OPEN_EXEC_PERM: Final = 0x00040000
_MASKS: Final = {Entity.PROCESS: FAN_OPEN_EXEC_PERM, Entity.FILE: FAN_OPEN_PERM}

_UNWATCHABLE: Final = frozenset({"proc"})  # the kernel refuses permission marks there (FS_DISALLOW_NOTIFY_PERM)
# Kernel interfaces, not storage: watched only when a rule names a path in them, not by rules that reach everywhere.
_INTERFACES: Final = _UNWATCHABLE | {
    *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl", "hugetlbfs"),
    *("mqueue", "nsfs", "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs"),
}


class Mount(msgspec.Struct, frozen=True):
    """A mount of this namespace: where, and what kind of file system."""

    at: str
    fstype: str


class Files(Protocol):
    """What planning asks about the node's files."""

    def mounts(self) -> tuple[Mount, ...]:
        """Return the mounts, the topmost last where several share a place."""

    def is_directory(self, path: str) -> bool | None:
        """Return whether ``path`` is a directory; ``None`` when there is nothing."""

    def file_id(self, path: str) -> FileId | None:
        """Return the identity of the file at ``path``, if there is one."""


class NodeFiles:
    """The files of this node, as the agent's mount namespace shows them; mounts are read once."""

    def __init__(self) -> None:
        self._mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))

    def mounts(self) -> tuple[Mount, ...]:
        """Return the mounts."""
        return self._mounts

    def is_directory(self, path: str) -> bool | None:
        """Return whether ``path`` is a directory; ``None`` when there is nothing, or nothing that can be looked at."""
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - surrogates in paths, and speed with thousands of rules
        except OSError:
            return None

    def file_id(self, path: str) -> FileId | None:
        """Return the identity of the file at ``path``, if there is one."""
        try:
            found = os.stat(path)  # noqa: PTH116 - as above
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Return the mounts in the text of ``/proc/self/mountinfo``. Source: proc(5)."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) > 4 and tail[0]:  # noqa: PLR2004 - the fifth field is the mount point
            mounts.append(Mount(_unescape(fields[4]), tail[0]))
    return tuple(mounts)


def plan_marks(rules: Iterable[Rule], files: Files) -> tuple[Mark, ...]:
    """Return the marks for ``rules``, widest first."""
    plan = _Plan(files)
    for rule in rules:
        plan.cover(rule)
    return plan.marks()


def why_unwatchable(rule: Rule, files: Files) -> str:
    """Return why the kernel raises no events for the rule's target; empty when it does."""
    if not isinstance(rule.target, PathTarget) or rule.target.how is PathKind.NAME:
        return ""
    kind = _Plan(files).mount_of(_place(rule.target)).fstype
    return f"the kernel raises no permission events on {kind}" if kind in _UNWATCHABLE else ""


def _place(target: PathTarget) -> str:
    return literal_prefix(target.value) if target.how is PathKind.GLOB else target.value


class _Plan:
    def __init__(self, files: Files) -> None:
        self._files = files
        self._mounts = {mount.at: mount for mount in files.mounts()}
        self._wide: dict[str, tuple[int, bool]] = {}  # mount point → mask, optional
        self._narrow: dict[str, int] = {}
        self._trees: set[tuple[str, int]] = set()

    def cover(self, rule: Rule) -> None:
        mask, target = _MASKS.get(rule.entity, 0), rule.target
        if not mask or not isinstance(target, PathTarget):
            return
        if rule.verdict is Verdict.ALLOW and not makes_list(rule):
            return  # what it exempts from is watched for the sake of the rule that refuses it
        if makes_list(rule) or target.how is PathKind.NAME:
            self._tree("/", mask)  # what an allow-list does not name can be anywhere
        elif target.how is PathKind.GLOB:
            for part in expand_braces(target.value):
                self._tree(literal_prefix(part), mask)
        elif target.how is PathKind.DIRECTORY and target.recursive:
            self._tree(target.value, mask)
        elif target.how is PathKind.DIRECTORY:
            self._directory(target.value, mask)
        else:
            self._directory(os.path.dirname(target.value) or "/", mask)  # noqa: PTH120 - a string in, a string out
            if self._files.is_directory(target.value) is not None:
                self._narrow[target.value] = self._narrow.get(target.value, 0) | mask

    def marks(self) -> tuple[Mark, ...]:
        out = [
            Mark(path=at, mask=mask, filesystem=True, optional=optional) for at, (mask, optional) in sorted(self._wide.items())
        ]
        for path, mask in sorted(self._narrow.items()):
            mount = self.mount_of(path)
            left = mask & ~self._wide.get(mount.at, (0, False))[0]
            if left and mount.fstype not in _UNWATCHABLE:
                # Optional where the file itself is marked: should it go meanwhile, the mark on its directory holds.
                out.append(Mark(path=path, mask=left, optional=not self._files.is_directory(path)))
        return tuple(out)

    def mount_of(self, path: str) -> Mount:
        """Return the mount that holds ``path``, or would hold it if it existed."""
        place = path.rstrip("/") or "/"
        while place not in self._mounts and place != "/":
            place = place.rpartition("/")[0] or "/"
        return self._mounts.get(place, Mount("/", "unknown"))

    def _directory(self, path: str, mask: int) -> None:
        if self._files.is_directory(path):
            place = path.rstrip("/") or "/"
            self._narrow[place] = self._narrow.get(place, 0) | mask
        else:
            self._tree(path, mask)

    def _tree(self, path: str, mask: int) -> None:
        if (path, mask) in self._trees:
            return
        self._trees.add((path, mask))
        prefix = path if path.endswith("/") else path + "/"
        holder = self.mount_of(path)
        if holder.fstype not in _UNWATCHABLE:
            self._widen(holder.at, mask, optional=False)
        for mount in self._mounts.values():
            if mount.at.startswith(prefix) and mount.at != holder.at and mount.fstype not in _INTERFACES and not _is_fuse(mount):
                self._widen(mount.at, mask, optional=True)

    def _widen(self, at: str, mask: int, *, optional: bool) -> None:
        old_mask, old_optional = self._wide.get(at, (0, True))
        self._wide[at] = (old_mask | mask, optional and old_optional)


def _is_fuse(mount: Mount) -> bool:
    return mount.fstype.partition(".")[0] in {"fuse", "fuseblk"}


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
