"""Names of the paths that a system call was given, as far as they can be told after the fact.

Rules of this file:
- A relative text begins where the kernel said: at the working directory or that of a descriptor, as the call found them.
- A path has up to three names: as written, with the links of its directory followed, with all links followed. A rule that names
  any of them speaks of the call.
- Links are followed as they lead now, which may not be as they led then, and in the agent's mount namespace.
- What cannot be told is an empty name, which counts against the call.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Callable
from typing import Final

from garrison.minion.enforcers.syscalls.layout import CallPath

__all__ = ["names_of"]

_LEADS_ANYWHERE: Final = re.compile(r"(/proc/[0-9]+)/(?:task/[0-9]+/)?(?:cwd|root|exe|fd|map_files)(?:/|$)", re.ASCII)


def names_of(
    path: CallPath, *, pid: int, root: str = "/", keeps_link: bool = False, realpath: Callable[[str], str] = os.path.realpath
) -> tuple[str, ...]:
    """Return the names of ``path``, as written first; one empty name when it cannot be told.

    Args:
        path: As the kernel saw it.
        pid: Of the caller, which ``/proc/self`` stands for; 0 when unknown.
        root: The caller's root directory.
        keeps_link: The call acts on a link itself, if the path ends in one.
        realpath: Follows all links of an absolute path.
    """
    whole = _whole(path, root)
    if not whole:
        return ("",)
    whole = _own(whole, pid)
    directory, name = posixpath.split(whole.rstrip("/") or "/")
    names = [posixpath.normpath(whole)]
    if name not in {"", ".", ".."}:
        names.append(_led(lambda: posixpath.join(realpath(directory), name)))
    if not keeps_link or name in {"", ".", ".."}:
        names.append(_led(lambda: realpath(whole)))
    if (link := _LEADS_ANYWHERE.match(whole)) and not os.path.isdir(link[1]):  # noqa: PTH112 - a string in, a string out
        names.append("")  # the process is gone, and with it what its link led to
    return tuple(dict.fromkeys(found and "/" + found.lstrip("/") for found in names))  # POSIX lets two slashes at the front stay


def _led(follow: Callable[[], str]) -> str:
    try:
        return follow()
    except OSError:  # a process ended while links in its part of /proc were followed: not known any more
        return ""


def _whole(path: CallPath, root: str) -> str:
    if not path.text_known:
        return ""
    if path.text.startswith("/"):
        return path.text if root in {"", "/"} else root + path.text
    if not path.base:
        return ""
    return posixpath.join(path.base, path.text) if path.text else path.base


def _own(path: str, pid: int) -> str:
    """Return ``path`` with the caller's number instead of what only the caller can use."""
    if pid > 0:
        for own, told in (("/proc/self/", ""), ("/proc/thread-self/", ""), ("/dev/fd/", "fd/")):
            if path.startswith(own):
                return f"/proc/{pid}/{told}{path[len(own) :]}"
    return path
