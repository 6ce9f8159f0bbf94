"""Commands that start and end on this node, once for all who want to know.

Rules of this file:
- One feed a process (``shared``), loaded with the first subscriber, unloaded with the last.
- Only what runs in the agent's PID namespace or below is seen: what other containers of the machine do is not ours to tell.
- Callbacks run in the feed's thread, in the kernel's order. One that raises is logged and counted; others are still called.
- Nothing is lost without a count: ``counters`` holds what did not fit into the ring, exactly.
Owns: the program's life, decoding. Does not own: who is interested in what (``observers.shell``, ``enforcers.audit``).
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import ClassVar, Final, NamedTuple

from garrison.bpf.cgroups import CgroupNames, cgroup2_root, container_of, unit_of
from garrison.bpf.loader import Object, object_path
from garrison.bpf.records import ACTOR_BYTES, ActorRecord, cut_args, decode_actor, decode_names, proc_args, proc_link
from garrison.bpf.ring import RingReader
from garrison.common.errors import FrameError, GarrisonError
from garrison.common.events import Actor

__all__ = ["Exec", "ExecFeed", "Exit", "FeedEvent", "decode_record", "feed_works"]

_HEAD: Final = struct.Struct("=IiQiiII")  # struct feed_head after the actor
_HEAD_BYTES: Final = ACTOR_BYTES + _HEAD.size
_EXEC, _EXIT = 1, 2
# Sizes of a record of either kind: path area, arguments. Source: include/exec_feed.h.
_AREAS: Final = {_HEAD_BYTES + 2 * (path + 256) + args: path + 256 for path, args in ((128, 512), (4096, 32768))}
_COUNTERS: Final = ("execs", "exits", "dropped_execs", "dropped_exits", "untracked")

_log = logging.getLogger(__name__)


class Exec(NamedTuple):
    """A program was started.

    Attributes:
        actor: The new process; arguments include the program's name.
        ts: Wall clock, ns.
        mono: CLOCK_MONOTONIC, ns.
        exe_known: ``actor.exe`` is the whole path.
        args_known: ``actor.args`` are all arguments, uncut.
    """

    actor: Actor
    ts: int
    mono: int
    exe_known: bool
    args_known: bool


class Exit(NamedTuple):
    """A process that had been started by exec ended.

    Attributes:
        actor: The process; ``exe`` and ``args`` are not known any more.
        ts: Wall clock, ns.
        mono: CLOCK_MONOTONIC, ns.
        exit_code: What it returned; ``128 + n`` when signal ``n`` ended it, as a shell says it.
        signal: The signal that ended it, 0 for none.
        duration_ms: Since its exec.
    """

    actor: Actor
    ts: int
    mono: int
    exit_code: int
    signal: int
    duration_ms: int


FeedEvent = Exec | Exit
Callback = Callable[[FeedEvent], None]


class ExecFeed:
    """Commands of this node, as they start and end.

    Args:
        ring_bytes: Size of the ring; a power of two and whole pages.
    """

    _shared: ClassVar[ExecFeed | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, ring_bytes: int = 4 << 20) -> None:
        self._ring_bytes = ring_bytes
        self._lock = threading.Lock()  # over subscribe and unsubscribe, never held while a callback runs
        self._callbacks: tuple[Callback, ...] = ()
        self._object: Object | None = None
        self._reader: RingReader | None = None
        self._names: CgroupNames | None = None
        self._before = dict.fromkeys((*_COUNTERS, "unhandled"), 0)
        self._failed = 0

    @classmethod
    def shared(cls) -> ExecFeed:
        """Return the one feed of this process; nothing is loaded before somebody subscribes."""
        with cls._shared_lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Have ``callback`` called for each command; the first subscriber loads the programs.

        Returns:
            Ends the subscription; idempotent. The last one unloads. Not to be called from a callback.

        Raises:
            BackendUnsupportedError: The kernel or libbpf cannot do it.
            KernelError: The kernel refused.
        """
        with self._lock:
            if self._object is None:
                self._start()
            self._callbacks = (*self._callbacks, callback)

        def unsubscribe() -> None:
            with self._lock:
                if self._callbacks == (callback,):
                    self._stop()  # the last one still gets what is in the ring
                self._callbacks = tuple(c for c in self._callbacks if c is not callback)

        return unsubscribe

    def counters(self) -> dict[str, int]:
        """Return figures since this feed was made: execs and exits seen, lost, and not handled."""
        with self._lock:
            return self._counters()

    @property
    def alive(self) -> bool:
        """Whether records are being read."""
        reader = self._reader
        return reader is not None and reader.alive

    # ---- life ----------------------------------------------------------------------------------------------------------
    def _start(self) -> None:
        made = Object(object_path("exec_feed"))
        try:
            made.set_max_entries("records", self._ring_bytes)
            made.load()
            made.programs["note_agent"].run()
            self._names = _cgroup_names()
            self._reader = RingReader(made.maps["records"], self._on_record, name="exec-feed")
            for program in ("feed_exec", "feed_exit"):
                made.programs[program].attach()
        except BaseException:
            self._end(made)
            raise
        self._object = made

    def _stop(self) -> None:
        if self._object is not None:
            made, self._object = self._object, None
            made.detach()
            self._before = self._counters_of(made)
            self._end(made)

    def _end(self, made: Object) -> None:
        made.detach()
        if self._reader is not None:
            self._reader.close()
            self._failed += self._reader.failed
            self._reader = None
        if self._names is not None:
            self._names.close()
            self._names = None
        made.close()

    def _counters(self) -> dict[str, int]:
        return self._counters_of(self._object) if self._object is not None else dict(self._before)

    def _counters_of(self, made: Object) -> dict[str, int]:
        total = dict(self._before)
        for index, name in enumerate(_COUNTERS):
            total[name] += made.maps["counters"].lookup_sum(struct.pack("=I", index))
        total["unhandled"] = self._failed + (self._reader.failed if self._reader else 0)
        return total

    # ---- records -------------------------------------------------------------------------------------------------------
    def _on_record(self, raw: bytes) -> None:
        event = decode_record(raw, self._names)
        for callback in self._callbacks:
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - one subscriber must not cost the others their events
                self._failed += 1
                _log.exception("feed=exec callback=%r", callback)


def decode_record(raw: bytes, names: CgroupNames | None) -> FeedEvent:
    """Return the command in ``raw``. What the kernel had no room for is taken from /proc while the process lives.

    Raises:
        FrameError: It is no record of the feed.
    """
    if len(raw) < _HEAD_BYTES:
        raise FrameError(f"a record of {len(raw)} bytes is not of the exec feed")
    who = decode_actor(raw)
    kind, code, exec_ns, exe_used, cwd_used, args_used, args_total = _HEAD.unpack_from(raw, ACTOR_BYTES)
    ts = time.time_ns() - (time.monotonic_ns() - who.mono_ns)
    cgroup = names.path(who.cgroup_id) if names else ""
    if kind == _EXIT:
        status, number = code >> 8 & 0xFF, code & 0x7F
        duration_ms = (who.mono_ns - exec_ns) // 1_000_000
        return Exit(_actor(who, cgroup), ts, who.mono_ns, 128 + number if number else status, number, duration_ms)
    area = _AREAS.get(len(raw))
    if kind != _EXEC or area is None:
        raise FrameError(f"a record of kind {kind} and {len(raw)} bytes is not of the exec feed")
    exe, exe_known = decode_names(raw[_HEAD_BYTES : _HEAD_BYTES + area], exe_used)
    cwd, cwd_known = decode_names(raw[_HEAD_BYTES + area : _HEAD_BYTES + 2 * area], cwd_used)
    arguments = raw[_HEAD_BYTES + 2 * area :][:args_used]
    if not arguments and args_total:
        arguments = proc_args(who.pid)
        args_total = max(len(arguments), 1)
    args, args_known = cut_args(arguments, args_total)
    if not exe_known:
        exe = proc_link(who.pid, "exe") or exe or who.comm
    if not cwd_known:
        cwd = proc_link(who.pid, "cwd") or cwd
    return Exec(_actor(who, cgroup, exe, args, cwd), ts, who.mono_ns, exe_known, args_known)


def _actor(who: ActorRecord, cgroup: str, exe: str = "", args: tuple[str, ...] = (), cwd: str = "") -> Actor:
    return Actor(
        pid=who.pid or -1,
        ppid=who.ppid,
        exe=exe or who.comm,
        args=args,
        cwd=cwd,
        uid=who.uid,
        auid=who.auid,
        ses=who.ses,
        tty=who.tty,
        unit=unit_of(cgroup),
        container=container_of(cgroup),
    )


def _cgroup_names() -> CgroupNames | None:
    try:
        return CgroupNames(cgroup2_root())
    except GarrisonError as err:  # commands without their unit are worth more than none
        _log.warning("feed=exec units=unknown reason=%s", err)
        return None


@cache
def feed_works() -> str:
    """Return why commands cannot be seen on this node, empty when they can; tried for real, once."""
    try:
        ExecFeed().subscribe(lambda _: None)()
    except (GarrisonError, OSError) as err:
        hint = getattr(err, "hint", "")
        return f"{err} ({hint.splitlines()[-1]})" if hint else str(err)
    return ""
