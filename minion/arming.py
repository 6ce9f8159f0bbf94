"""Starting the deadman, and talking to it: the agent's side of ``deadman``.

Rules of this file:
- It is armed before new rules are in the kernel, or they do not get there (fail-closed: the confirmed ones stay).
- Where systemd runs it becomes a scope of its own, so that the end of the agent's unit is not its end.
- What it left on record is read back by the next agent and by ``garrison enforcer status``.
Owns: the process's start, the channel. Does not own: when to disarm (``duty``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from garrison.common import limits
from garrison.common.errors import KernelError
from garrison.common.names import Digest
from garrison.minion.enforcers.base import MapWrite

__all__ = ["DEADMAN", "Arm", "Armed", "DeadmanRecord", "arm", "await_last", "boottime", "interpreter", "read_record"]

DEADMAN: Final = Path(__file__).with_name("deadman.py")
_FILE: Final = "deadman.json"
_SYSTEMD: Final = Path("/run/systemd/system")  # sd_booted(3)
_ANSWER_MAX_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.05
_MESSAGE_MAX_BYTES: Final = 64 << 10

_log = logging.getLogger(__name__)


class DeadmanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the last deadman left.

    Attributes:
        generation: The generation that was on trial.
        digest: Its bundle.
        boot: Kernel boot id of the trial.
        state: ``armed``; ``disarmed`` for confirmed; ``stood down``: the agent went back by itself; ``reverted`` by the deadman.
        why: Why it went back.
        errors: What did not work then.
        pid: The deadman's.
        timeout_s: How long it waits.
        deadline_boottime: When it acts, CLOCK_BOOTTIME in seconds.
        at: When this was written, ns since 1970 UTC.
    """

    generation: int
    digest: Digest
    boot: str
    state: str
    why: str = ""
    errors: tuple[str, ...] = ()
    pid: int = 0
    timeout_s: float = 0
    deadline_boottime: float = 0
    at: int = 0

    @property
    def left_s(self) -> float:
        """Seconds until it acts; meaningless but for ``armed``."""
        return max(0.0, self.deadline_boottime - boottime())


def boottime() -> float:
    """Return seconds since the boot, sleep included: the clock of every deadline here."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def interpreter() -> list[str]:
    """Return how the deadman's Python is started: without the environment, without site-packages."""
    return [os.path.realpath(sys.executable), "-I", "-S"]


def read_record(runtime_dir: Path) -> DeadmanRecord | None:
    """Return what the last deadman left; ``None`` when there is nothing, or nothing that can be read."""
    try:
        return msgspec.json.decode((runtime_dir / _FILE).read_bytes(), type=DeadmanRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as err:
        _log.error("deadman_record=unreadable error=%s", err)
        return None


def await_last(runtime_dir: Path, boot: str) -> DeadmanRecord | None:
    """Return what the last deadman left, once it is gone: one that is late must not go back behind a new agent's back."""
    record = read_record(runtime_dir)
    deadline, ended = boottime() + _ANSWER_MAX_S, False
    while record is not None and record.boot == boot and _is_deadman(record.pid):
        if not ended and boottime() > deadline:
            _log.error("deadman=stuck pid=%s", record.pid)
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(record.pid, signal.SIGKILL)
            ended = True
        time.sleep(_LOOK_EVERY_S)
        record = read_record(runtime_dir)
    return record


def _is_deadman(pid: int) -> bool:
    try:
        return pid > 0 and os.fsencode(DEADMAN.name) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Armed:
    """A deadman that waits.

    Attributes:
        digest: The bundle on trial.
        deadline: When it acts, by ``boottime``.
    """

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, digest: Digest) -> None:
        self._process, self._channel, self.digest = process, channel, digest
        self.deadline = float(self._heard()["deadline_boottime"])

    @property
    def alive(self) -> bool:
        """Whether it still waits."""
        return self._process.poll() is None

    def disarm(self, digest: Digest) -> bool:
        """Have it end without acting; whether it did. It did not when it acted before, or ``digest`` is not on trial.

        Raises:
            KernelError: It does not answer.
        """
        return bool(self._asked({"do": "disarm", "digest": digest}).get("done"))

    def stand_down(self, why: str) -> None:
        """Have it end: the rules before are enforced again, or none at all by decision. One that is gone has nothing to do."""
        try:
            self._asked({"do": "stand down", "why": why})
        except KernelError as err:
            _log.warning("deadman=gone error=%s", err)

    def go_back(self, why: str) -> None:
        """Have it act now. It ends this process."""
        self._channel.send(json.dumps({"do": "go back", "why": why}).encode())

    def _asked(self, word: dict[str, str]) -> dict[str, Any]:
        try:
            self._channel.send(json.dumps(word).encode())
        except OSError as err:
            self._end()
            raise KernelError(err.errno or 0, "talk to the deadman") from err
        answer = self._heard()
        if answer.get("done"):
            self._end()
        return answer

    def _heard(self) -> dict[str, Any]:
        try:
            said = self._channel.recv(_MESSAGE_MAX_BYTES)
        except OSError as err:
            raise KernelError(err.errno or 0, "hear the deadman") from err
        if not said:
            code = self._process.wait(_ANSWER_MAX_S)
            raise KernelError(0, f"hear the deadman, which ended with {code}")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _end(self) -> None:
        self._channel.close()
        try:
            self._process.wait(_ANSWER_MAX_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


Arm = Callable[..., Armed]
"""As ``arm``, its directory bound."""


def arm(
    runtime_dir: Path,
    *,
    generation: int,
    digest: Digest,
    boot: str,
    timeout_s: float,
    writes: Sequence[MapWrite],
    agent: int | None = None,
) -> Armed:
    """Start a deadman for this process and return it armed.

    Args:
        runtime_dir: Where it keeps its record.
        generation: On trial.
        digest: Its bundle.
        boot: Kernel boot id.
        timeout_s: After that it acts.
        writes: What it writes to bring the rules back that are enforced now.
        agent: Process to end when it acts; this one when ``None``.

    Raises:
        KernelError: It cannot be started; nothing may be tried then.
    """
    errors = []
    for argv in _ways():
        try:
            return _started(
                argv,
                runtime_dir,
                generation=generation,
                digest=digest,
                boot=boot,
                timeout_s=timeout_s,
                writes=writes,
                agent=agent,
            )
        except (KernelError, OSError) as err:
            _log.warning("deadman=not-started argv=%s error=%s", argv[0], err)
            errors.append(f"{argv[0]}: {err}")
    raise KernelError(0, f"start the deadman ({'; '.join(errors)})", hint="no new policy is tried without one")


def _ways() -> Iterator[list[str]]:
    systemd_run = shutil.which("systemd-run", path="/usr/bin:/bin")
    if systemd_run and _SYSTEMD.is_dir():
        unit = f"garrison-deadman-{secrets.token_hex(4)}"
        # Not stopped when the machine goes down: the agent, which is, stands it down, and an orderly reboot counts for nothing.
        options = ("--scope", "--collect", "--quiet", f"--unit={unit}", "--property=DefaultDependencies=no")
        yield [systemd_run, *options, "--", *interpreter()]
    yield interpreter()


def _started(
    argv: list[str],
    runtime_dir: Path,
    *,
    generation: int,
    digest: Digest,
    boot: str,
    timeout_s: float,
    writes: Sequence[MapWrite],
    agent: int | None,
) -> Armed:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its, _opened(os.pidfd_open(agent or os.getpid())) as process, _opened(_record(runtime_dir)) as record:
        order = {
            "generation": generation,
            "digest": digest,
            "boot": boot,
            "timeout_s": timeout_s,
            "agent": process,
            "record": record,
            "writes": [[write.fd, write.key.hex(), write.value.hex()] for write in writes],
        }
        ours.settimeout(limits.ARMING_MAX_S)
        ours.send(json.dumps(order).encode())
        kept = (its.fileno(), process, record, *(write.fd for write in writes))
        child = subprocess.Popen(
            [*argv, str(DEADMAN), str(its.fileno())], stdin=subprocess.DEVNULL, pass_fds=kept, start_new_session=True, cwd="/"
        )
    try:
        armed = Armed(child, ours, digest)
    except (KernelError, OSError):
        ours.close()
        child.kill()
        child.wait()
        raise
    ours.settimeout(_ANSWER_MAX_S)
    return armed


def _record(runtime_dir: Path) -> int:
    # Made anew: an old deadman that still holds the old file must not write into this one's.
    part = runtime_dir / f"{_FILE}.part"
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    part.replace(runtime_dir / _FILE)
    return fd


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
