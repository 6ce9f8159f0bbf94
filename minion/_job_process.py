"""One process of a command: started without a shell, watched by its pidfd, ended as a group."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.common.frames import Job

__all__ = ["JobProcess", "StartError"]

NOT_FOUND: Final = 127  # as shells and env(1) say it
NOT_EXECUTABLE: Final = 126
NOT_RUN: Final = 125

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DRAIN_S: Final = 1.0  # output of children that outlive the program is waited for this long
_GATHER_S: Final = 0.02  # a trickle of output is gathered this long into one piece
_GATHER_BELOW_BYTES: Final = limits.JOB_OUTPUT_CHUNK_BYTES // 2


class StartError(GarrisonError):
    """The program was not started; ``exit_code`` is what a shell would say."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class JobProcess:
    """A started program; made by ``start``.

    Attributes:
        pid: Its process id and that of its group and session.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._popen.wait()
        self._ended.set()

    @classmethod
    async def start(cls, job: Job) -> JobProcess:
        """Start the program of ``job``.

        Raises:
            StartError: It is not there, may not be run, or the user is unknown.
        """
        account = _account(job.user)
        stdin = _stdin(job.stdin)
        try:
            popen = await asyncio.to_thread(_popen, job, account, stdin)
        except FileNotFoundError as err:
            raise StartError(NOT_FOUND, f"{_named(err, job)}: no such file or directory") from err
        except OSError as err:
            raise StartError(NOT_EXECUTABLE, f"{_named(err, job)}: {(err.strerror or str(err)).lower()}") from err
        except (ValueError, subprocess.SubprocessError) as err:
            raise StartError(NOT_RUN, f"{job.argv[0]!r} cannot be started: {err}") from err
        finally:
            if stdin >= 0:
                os.close(stdin)
        return cls(popen)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; returns whether that came in ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    @property
    def exit_code(self) -> int:
        """Exit code, or -signal; of an ended process."""
        return int(self._popen.returncode)

    async def end(self) -> None:
        """Send its group TERM, and KILL after ``JOB_KILL_AFTER_S``; returns once it has ended."""
        self._signal(signal.SIGTERM)
        if not await self.wait(limits.JOB_KILL_AFTER_S):
            self._signal(signal.SIGKILL)
            await self._ended.wait()

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.is_set():  # not reaped, so the number is still this group's
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def pump(self, take: Callable[[int, bytes], None]) -> None:
        """Give all output to ``take``, by stream (1, 2), until the program and ``_DRAIN_S`` are over."""
        assert self._popen.stdout is not None  # noqa: S101 - both are pipes by _popen
        assert self._popen.stderr is not None  # noqa: S101
        pumps = [
            asyncio.create_task(_pump(stream, number, take))
            for number, stream in ((1, self._popen.stdout), (2, self._popen.stderr))
        ]
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({ended})
            await asyncio.wait(pumps, timeout=_DRAIN_S)
        finally:
            for task in (*pumps, ended):
                task.cancel()
            await asyncio.gather(*pumps, ended, return_exceptions=True)


def _popen(job: Job, account: pwd.struct_passwd, stdin: int) -> subprocess.Popen[bytes]:
    other = account.pw_uid != os.geteuid()
    return subprocess.Popen(
        job.argv,
        stdin=stdin if stdin >= 0 else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=job.cwd,
        env=_environment(account) | job.env,
        user=account.pw_uid if other else None,
        group=account.pw_gid if other else None,
        extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if other else None,
        start_new_session=True,
    )


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    except (KeyError, ValueError) as err:
        raise StartError(NOT_RUN, f"there is no user {user!r} here") from err


def _environment(account: pwd.struct_passwd) -> dict[str, str]:
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": account.pw_dir,
        "SHELL": account.pw_shell,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
    }


def _stdin(content: bytes) -> int:
    # A file in memory: a pipe would need somebody to write into it while the program reads.
    if not content:
        return -1
    fd = os.memfd_create("job-stdin", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _named(err: OSError, job: Job) -> str:
    return str(err.filename) if err.filename else job.argv[0]


async def _pump(stream: object, number: int, take: Callable[[int, bytes], None]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limits.JOB_OUTPUT_CHUNK_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    try:
        while data := await reader.read(limits.JOB_OUTPUT_CHUNK_BYTES):
            take(number, data)
            if len(data) < _GATHER_BELOW_BYTES:
                await asyncio.sleep(_GATHER_S)
    finally:
        transport.close()
