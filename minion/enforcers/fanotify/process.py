"""Starts the responder, hands it tables, reads its counters.

Rules of this file:
- The responder is a process of its own: a Python process that answers exec events deadlocks on its own ``subprocess``.
- It ends when our end of the control socket closes, however this process dies: enforcement by fanotify ends with the agent.
- A table is a sealed memory file; what the responder accepted it keeps over a restart of its worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Final

from garrison.common.errors import KernelError
from garrison.minion.enforcers.fanotify.records import RECORD_MAX_BYTES

__all__ = ["BINARY", "COUNTERS", "Responder"]

BINARY: Final = Path(__file__).with_name("responder")
COUNTERS: Final = (  # the beginning of struct shared in wire.h
    *("watcher_beat", "generation", "worker_pid"),
    *("opens", "execs", "blocks", "audits", "dropped", "unresolved", "exempted", "restarts", "hung", "foreign", "lapsed"),
)
_CONTROL: Final = struct.Struct("<IIiI240s")
_MSG_TABLE, _MSG_RESULT = 1, 2
_SHARED_BYTES: Final = 4096
_QUEUE_BYTES: Final = 8 << 20  # some 8,000 alerts: a second of a flood, so that a slow disk loses none
_SWAP_TIMEOUT_S: Final = 20.0  # 65,536 marks take under a second; a hung worker is killed after one


class Responder:
    """One responder process.

    Raises:
        KernelError: It cannot be started.
    """

    def __init__(self) -> None:
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.records, records = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        records.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _QUEUE_BYTES)
        shared = os.memfd_create("garrison-responder", os.MFD_CLOEXEC)
        try:
            os.ftruncate(shared, _SHARED_BYTES)
            self._shared = mmap.mmap(shared, _SHARED_BYTES, prot=mmap.PROT_READ)
            fds = (control.fileno(), records.fileno(), shared)
            self._process = subprocess.Popen(
                [str(BINARY), *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as err:
            self._control.close()
            self.records.close()
            raise KernelError(err.errno or 0, f"start {BINARY}", hint="build it with ./dev bpf") from err
        finally:
            control.close()
            records.close()
            os.close(shared)
        self._control.settimeout(_SWAP_TIMEOUT_S)
        self._swapping = threading.Lock()

    @property
    def pid(self) -> int:
        """Process id of the watcher."""
        return self._process.pid

    def swap(self, table: bytes, generation: int) -> None:
        """Enforce ``table`` from now on.

        Raises:
            KernelError: The responder refused it or ended; a live one enforces what it did before.
        """
        memory = _sealed(table)
        try:
            with self._swapping:
                self._send(memory, generation)
                error, text = self._result(generation)
        except TimeoutError as err:
            self.close()  # nobody knows which table it holds: rather none, and the enforcer starts another
            raise KernelError(110, "hand a table to the responder") from err
        except OSError as err:
            raise KernelError(err.errno or 32, "hand a table to the responder") from err
        finally:
            os.close(memory)
        if error:
            raise KernelError(error, f"fanotify: {text}")

    def receive(self) -> bytes:
        """Wait for the next record; empty when the responder ended."""
        try:
            return self.records.recv(RECORD_MAX_BYTES)
        except OSError:
            return b""

    def counters(self) -> dict[str, int]:
        """Return the responder's counters, by the names in ``COUNTERS``."""
        return dict(zip(COUNTERS, struct.unpack_from(f"<{len(COUNTERS)}Q", self._shared), strict=True))

    def close(self) -> None:
        """End it. Idempotent."""
        with contextlib.suppress(OSError):
            self.records.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, memory: int, generation: int) -> None:
        socket.send_fds(self._control, [_CONTROL.pack(_MSG_TABLE, generation, 0, 0, b"")], [memory])

    def _result(self, generation: int) -> tuple[int, str]:
        while True:
            raw = self._control.recv(_CONTROL.size)
            if len(raw) != _CONTROL.size:
                raise BrokenPipeError(32, "the responder ended")
            kind, of_generation, error, _, text = _CONTROL.unpack(raw)
            if kind == _MSG_RESULT and of_generation == generation:
                return error, text.partition(b"\0")[0].decode(errors="replace")


_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; not in the socket module


def _sealed(data: bytes) -> int:
    memory = os.memfd_create("garrison-table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(memory, "wb", closefd=False) as file:
        file.write(data)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    return memory
