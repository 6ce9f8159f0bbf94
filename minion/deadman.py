"""The deadman: a process of its own that brings the last confirmed rules back unless somebody says in time that all is well.

Run as ``python3 -I -S deadman.py FD`` by ``arming``; with ``--check`` it only proves that it can be started.

Rules of this file:
- The standard library alone, and all of it loaded before the new rules are: afterwards it may find every file, program and
  socket denied. What it needs then it holds: descriptors of kernel maps, of the agent's process, of its own record.
- Going back is a write to a map through a descriptor that was opened before. No hook of ours sees that, so no policy forbids it.
- Time is CLOCK_BOOTTIME: wall-clock jumps do not matter, and a machine that slept is late when it wakes.
- It ends the agent when it has to act, since an agent that did not act is of no use and may still be about to switch. What is
  enforced by the agent's own process ends with that (open); the service manager starts it again with the confirmed rules.
- One word decides: ``disarm`` with the right digest in time. A word that comes late finds it gone.
Owns: the deadline, the way back. Does not own: what counts as well (``verdict``), what is written to disk (``bundles``).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time

_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}.get(os.uname().machine, 280)  # asm-generic's number
_LOOKUP, _UPDATE = 1, 2  # enum bpf_cmd
_ELEM = struct.Struct("=IxxxxQQQ")  # union bpf_attr of BPF_MAP_*_ELEM: map_fd, key, value, flags
_LOCK_CURRENT_AND_FUTURE = 3
_STEP_S = 0.5  # poll(2) does not count time that the machine slept through: it looks at the clock so often
_DEATH_MAX_S = 10.0  # from SIGKILL to the end of a process that is in a system call
_ORDER_MAX_BYTES = 64 << 10


class _Write:
    """One write to a kernel map, all memory for it in place."""

    def __init__(self, libc: ctypes.CDLL, fd: int, key: bytes, value: bytes) -> None:
        self._libc = libc
        self._key, self._value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
        self._seen = ctypes.create_string_buffer(max(len(value), 8))
        self._update = self._attributes(fd, self._value)
        self._lookup = self._attributes(fd, self._seen)

    def _attributes(self, fd: int, value: ctypes.Array[ctypes.c_char]) -> ctypes.Array[ctypes.c_char]:
        raw = _ELEM.pack(fd, ctypes.addressof(self._key), ctypes.addressof(value), 0)
        return ctypes.create_string_buffer(raw, len(raw))

    def rehearse(self) -> None:
        """Read what it will write over: the same call by the same way."""
        self._call(_LOOKUP, self._lookup)

    def carry_out(self) -> None:
        self._call(_UPDATE, self._update)

    def _call(self, command: int, attributes: ctypes.Array[ctypes.c_char]) -> None:
        if self._libc.syscall(_BPF, command, attributes, _ELEM.size) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _Record:
    """What became of it, in a file that was opened before: for the next agent, and for people."""

    def __init__(self, fd: int, about: dict[str, object]) -> None:
        self._fd, self._about = fd, about

    def write(self, state: str, why: str = "", errors: tuple[str, ...] = ()) -> None:
        raw = json.dumps({**self._about, "state": state, "why": why, "errors": list(errors), "at": time.time_ns()}).encode()
        try:
            os.pwrite(self._fd, raw + b"\n", 0)
            os.ftruncate(self._fd, len(raw) + 1)
        except OSError as err:
            sys.stderr.write(f"deadman: record not written: {err}\n")


class _Deadman:
    def __init__(self, channel: socket.socket, order: dict[str, object]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        libc.syscall.restype = ctypes.c_long
        self._channel, self._digest = channel, str(order["digest"])
        self._agent = int(str(order["agent"]))
        writes = order["writes"]
        assert isinstance(writes, list)  # noqa: S101 - the agent's own words
        self._writes = [_Write(libc, fd, bytes.fromhex(key), bytes.fromhex(value)) for fd, key, value in writes]
        self._timeout_s = float(str(order["timeout_s"]))
        self._deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + self._timeout_s
        about = {name: order[name] for name in ("generation", "digest", "boot", "timeout_s")}
        about |= {"pid": os.getpid(), "deadline_boottime": self._deadline}
        self._record = _Record(int(str(order["record"])), about)
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(self._agent, select.POLLIN)
        self._stopped = False
        signal.signal(signal.SIGTERM, self._on_stop)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._hold_on(libc)

    def _on_stop(self, *_: object) -> None:
        self._stopped = True

    def _hold_on(self, libc: ctypes.CDLL) -> None:
        """Stay in memory whatever happens; what does not work makes it weaker, not useless."""
        libc.mlockall(_LOCK_CURRENT_AND_FUTURE)
        with contextlib.suppress(OSError):  # the agent's is inherited, which is low already
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, b"-1000")
            os.close(fd)

    def arm(self) -> None:
        """Do everything once that will have to be done, but for its effect, and say so."""
        for write in self._writes:
            write.rehearse()
        signal.pidfd_send_signal(self._agent, 0)
        self._poll.poll(0)
        self._record.write("armed")
        self._channel.send(json.dumps({"armed": True, "deadline_boottime": self._deadline}).encode())

    def watch(self) -> None:
        while True:
            left = self._deadline - time.clock_gettime(time.CLOCK_BOOTTIME)
            if left <= 0:
                self._go_back(f"nobody confirmed it within {self._timeout_s:g} s")
                return
            ready = {fd for fd, _ in self._poll.poll(min(left, _STEP_S) * 1000)}
            if self._stopped:
                self._go_back("the deadman was told to end", spare_agent=True)
                return
            if self._channel.fileno() in ready and self._hear():
                return
            if self._agent in ready:
                self._go_back("the agent ended before it was confirmed")
                return

    def _hear(self) -> bool:
        """Take a word of the agent's; returns whether it was the last one."""
        said = self._channel.recv(_ORDER_MAX_BYTES)
        word = json.loads(said) if said else {}
        do, why = word.get("do"), str(word.get("why", ""))
        if do == "disarm" and word.get("digest") != self._digest:
            self._answer({"done": False, "why": f"{self._digest[:12]} is on trial, not {str(word.get('digest'))[:12]}"})
            return False
        if do in {"disarm", "stand down"}:
            self._record.write("disarmed" if do == "disarm" else "stood down", why)
            self._answer({"done": True})
            return True
        if do == "go back":
            self._go_back(why)
            return True
        self._poll.unregister(self._channel)  # closed: the agent is ending, and its end will tell
        return False

    def _answer(self, answer: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # it asked and did not wait: what was decided holds
            self._channel.send(json.dumps(answer).encode())

    def _go_back(self, why: str, *, spare_agent: bool = False) -> None:
        errors = self._write_all()
        self._record.write("reverted", why, errors)
        if spare_agent:
            self._answer({"reverted": True, "why": why})
            return
        try:
            signal.pidfd_send_signal(self._agent, signal.SIGKILL)
        except ProcessLookupError:
            pass  # that it ended may be why we are here
        except OSError as err:
            errors = (*errors, f"the agent could not be ended: {err}")
        ended = select.poll()
        ended.register(self._agent, select.POLLIN)
        if not ended.poll(_DEATH_MAX_S * 1000):
            errors = (*errors, "the agent does not end")
        # Again: a switch that was under way in the agent may have come after the first time. Now there is nobody left to switch.
        self._record.write("reverted", why, (*errors, *self._write_all()))

    def _write_all(self) -> tuple[str, ...]:
        errors = []
        for number, write in enumerate(self._writes):
            try:
                write.carry_out()
            except OSError as err:
                errors.append(f"write {number}: {err}")
        return tuple(errors)


def main() -> None:
    """Take the order, arm, watch, end."""
    if sys.argv[1:] == ["--check"]:
        return
    channel = socket.socket(fileno=int(sys.argv[1]))
    deadman = _Deadman(channel, json.loads(channel.recv(_ORDER_MAX_BYTES)))
    deadman.arm()
    deadman.watch()


if __name__ == "__main__":
    main()
