"""What our programs write about processes: the actor that begins every record, and paths as they come from the kernel.

Rules of this file:
- Layouts mirror ``include/actor.h``; sizes are asserted on both sides.
- Text from the kernel is bytes; what is not UTF-8 becomes U+FFFD, so that every event can be encoded.
- Numbers that mean "none" in the kernel (4294967295) become -1.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from garrison.common import limits

__all__ = ["ACTOR_BYTES", "CUT", "ActorRecord", "cut_args", "decode_actor", "decode_names", "proc_args", "proc_link", "text"]

CUT: Final = "[...]"  # stands for what was left out
_ACTOR: Final = struct.Struct("=QQIIIIIxxxx16s32s")
ACTOR_BYTES: Final = _ACTOR.size
_NONE: Final = 0xFFFF_FFFF


class ActorRecord(NamedTuple):
    """Who acted, as the kernel told it. ``pid`` and ``ppid`` are 0 when they have no number in the agent's PID namespace."""

    mono_ns: int
    cgroup_id: int
    pid: int
    ppid: int
    uid: int
    auid: int
    ses: int
    comm: str
    tty: str


def decode_actor(raw: bytes) -> ActorRecord:
    """Return the actor that ``raw`` begins with."""
    mono_ns, cgroup_id, pid, ppid, uid, auid, ses, comm, tty = _ACTOR.unpack_from(raw)
    return ActorRecord(mono_ns, cgroup_id, pid, ppid, uid, _or_none(auid), _or_none(ses), _c_text(comm), _tty_name(_c_text(tty)))


def decode_names(raw: bytes, used: int) -> tuple[str, bool]:
    """Return the path whose components, last first, are in ``raw``, and whether it is all of it.

    Args:
        raw: Components, each ended by a NUL.
        used: Bytes of them; when negative, ``-1 - used`` bytes, and the walk did not reach the root.
    """
    complete, used = used >= 0, used if used >= 0 else -1 - used
    components = [text(part) for part in raw[:used].split(b"\0")[:-1]]
    path = "/".join(reversed(components))
    return (f"/{path}" if complete else f"{CUT}/{path}" if path else ""), complete


def cut_args(raw: bytes, total: int) -> tuple[tuple[str, ...], bool]:
    """Return the arguments in ``raw`` (NUL-terminated, of ``total`` bytes in the process) within the limits, and whether all.

    Longer arguments and more arguments than the limits allow are cut and marked with ``CUT``.
    """
    parts, complete = raw.split(b"\0"), len(raw) >= total
    if not parts[-1]:
        parts.pop()  # nothing follows the last NUL
    args, cut = list[str](), not complete or len(parts) > limits.EVENT_ARGS_MAX
    for part in parts[: limits.EVENT_ARGS_MAX - cut]:
        arg = text(part)
        if len(arg) > limits.EVENT_ARG_MAX_CHARS:
            arg, complete = arg[: limits.EVENT_ARG_MAX_CHARS - len(CUT)] + CUT, False
        args.append(arg)
    if cut:
        args.append(CUT)
    return tuple(args), complete and not cut


def proc_args(pid: int) -> bytes:
    """Return the arguments of a live process, NUL-terminated; empty when it is gone or has none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # gone meanwhile: the record is all there is
        return b""


def proc_link(pid: int, name: str) -> str:
    """Return what ``/proc/PID/NAME`` points to; empty when the process is gone."""
    try:
        return text(os.fsencode(Path(f"/proc/{pid}/{name}").readlink()))
    except OSError:  # gone meanwhile: the record is all there is
        return ""


def text(raw: bytes) -> str:
    """Return ``raw`` as text that can be encoded again."""
    return raw.decode("utf-8", "replace")


def _c_text(raw: bytes) -> str:
    return text(raw.partition(b"\0")[0])


def _or_none(number: int) -> int:
    return -1 if number == _NONE else number


def _tty_name(name: str) -> str:
    """``pts3`` is called ``pts/3`` by everybody but the kernel."""
    return f"pts/{name[3:]}" if name.startswith("pts") and name[3:].isdigit() else name
