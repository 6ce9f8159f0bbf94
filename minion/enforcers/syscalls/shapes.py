"""Where the paths of a system call are among its arguments, and what else is special about it.

Rules of this file:
- A path is a text, alone or beside the descriptor of the directory it begins at, or a descriptor alone.
- A call that is not named here has no path: a rule on a path cannot speak of it.
- The text of a symbolic link (first argument of ``symlink``) and the source of a mount are not paths that are looked up.
Source: the manual pages of section 2, and include/linux/syscalls.h of Linux 6.12.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

__all__ = ["KEEPS_LINK", "OFTEN", "SHAPES", "SHAPE_BYTES", "PathAt", "encode_shape"]

_NONE: Final = -1
_NO_RETURN, _EXEC = 1, 2
_SHAPE: Final = struct.Struct("=BBbbbbxx")
SHAPE_BYTES: Final = _SHAPE.size


class PathAt(NamedTuple):
    """Which arguments a path is: descriptor of the directory it begins at, and text. -1 for none."""

    fd: int
    text: int


def _text(*arguments: int) -> tuple[PathAt, ...]:
    return tuple(PathAt(_NONE, argument) for argument in arguments)


def _at(*pairs: tuple[int, int]) -> tuple[PathAt, ...]:
    return tuple(PathAt(fd, text) for fd, text in pairs)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GROUPS: Final = (
    (
        """open creat stat lstat access truncate chdir chroot mkdir rmdir unlink readlink chmod chown lchown utime utimes mknod
        umount2 swapon swapoff acct statfs execve uselib setxattr lsetxattr getxattr lgetxattr listxattr llistxattr removexattr
        lremovexattr""",
        _text(0),
    ),
    ("rename link pivot_root", _text(0, 1)),
    ("symlink mount inotify_add_watch quotactl", _text(1)),
    (
        """openat openat2 newfstatat statx faccessat faccessat2 mkdirat unlinkat readlinkat fchmodat fchmodat2 fchownat futimesat
        utimensat mknodat execveat name_to_handle_at open_tree open_tree_attr mount_setattr fspick setxattrat getxattrat
        listxattrat removexattrat""",
        _at((0, 1)),
    ),
    ("renameat renameat2 linkat move_mount", _at((0, 1), (2, 3))),
    ("symlinkat", _at((1, 2))),
    ("fanotify_mark", _at((3, 4))),
    ("fchdir fchmod fchown ftruncate fallocate fsetxattr fgetxattr flistxattr fremovexattr", _at((0, _NONE))),
)
SHAPES: Final = {name: paths for names, paths in _GROUPS for name in _names(names)}

KEEPS_LINK: Final = _names(
    """lstat lchown lsetxattr lgetxattr llistxattr lremovexattr unlink unlinkat rmdir rename renameat renameat2 link linkat
    symlink symlinkat mkdir mkdirat mknod mknodat readlink readlinkat"""
)
"""Calls that act on a symbolic link itself when their path ends in one."""

OFTEN: Final = _names(
    """open openat openat2 stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat statfs getxattr lgetxattr
    listxattr llistxattr"""
)
"""Calls that programs make by the thousand: rules that name a path are compared with their text in the kernel already."""

_FLAGS: Final = {"exit": _NO_RETURN, "exit_group": _NO_RETURN, "rt_sigreturn": _NO_RETURN, "execve": _EXEC, "execveat": _EXEC}


def encode_shape(name: str) -> bytes:
    """Return the shape of a call as the program reads it."""
    paths = SHAPES.get(name, ())
    first, second = (*paths, PathAt(_NONE, _NONE), PathAt(_NONE, _NONE))[:2]
    return _SHAPE.pack(len(paths), _FLAGS.get(name, 0), *first, *second)
