"""Reads a BPF ring buffer in a thread of its own.

Rules of this file:
- Records come in order, each once; what did not fit was counted by the program that wanted to write it.
- ``close`` hands over what is still in the ring before it returns.
- A record that its taker cannot handle is logged and counted; the reader goes on.
"""

from __future__ import annotations

import ctypes as c
import errno
import logging
import threading
from collections.abc import Callable
from typing import Final

from garrison.bpf.libbpf import RING_CALLBACK, check, libbpf
from garrison.bpf.loader import BpfMap
from garrison.common.errors import KernelError

__all__ = ["RingReader"]

_POLL_MS: Final = 200  # how long ``close`` may wait; records themselves wake the reader at once

_log = logging.getLogger(__name__)


class RingReader:
    """Hands each record of ``ring`` to ``take``, from one thread.

    Args:
        ring: A map of type ring buffer.
        take: Called with the record's bytes, which are its own.
        name: Of the thread.
    """

    def __init__(self, ring: BpfMap, take: Callable[[bytes], None], *, name: str) -> None:
        self._take, self._name = take, name
        self._callback = RING_CALLBACK(self._on_record)  # libbpf keeps a bare pointer to it
        self._pointer = check(libbpf().ring_buffer__new(ring.fd, self._callback, None, None), f"read ring {ring.name}")
        self._ending = threading.Event()
        self._failed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> int:
        """Records that could not be handled."""
        return self._failed

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Take what is left and end the thread. Idempotent; not from the thread itself."""
        self._ending.set()
        self._thread.join()
        if self._pointer:
            libbpf().ring_buffer__consume(self._pointer)
            libbpf().ring_buffer__free(self._pointer)
            self._pointer = 0

    def _run(self) -> None:
        while not self._ending.is_set():
            taken = libbpf().ring_buffer__poll(self._pointer, _POLL_MS)
            if taken < 0 and -taken != errno.EINTR:
                raise KernelError(-taken, f"poll ring for {self._name}")

    def _on_record(self, _context: int, address: int, size: int) -> int:
        try:
            self._take(c.string_at(address, size))
        except Exception:  # noqa: BLE001 - an exception cannot pass through libbpf; it must not end the feed either
            self._failed += 1
            _log.exception("ring=%s record=unhandled size=%d", self._name, size)
        return 0
