"""Runs in a VM: the places where stimuli are played, and how they are played there.

Rules of this file:
- ``host`` is the machine itself. ``subject`` and ``bystander`` are cgroups over one root of their own: an overlay over the
  machine's, entered by pivot_root, as container runtimes do it. Both find the same files under the same paths.
- Each step is a process that first takes its place, its terminal and its user, and only then acts: by starting a program, or,
  if it is an act of the runtime, by itself.
- After each step follow a file that is opened, a system call and a packet, which rules of ``play.py`` report: what the step
  caused has been told before that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import shlex
import shutil
import socket
import subprocess
import termios
from pathlib import Path
from typing import Any

SENTINELS = Path("/run/conform/sentinel")
FAR, FAR_PORT = "192.0.2.1", 9000  # nobody is there; loopback is never filtered
_ROOT = "/run/conform/root"
_PROBE = "/run/conform/probe"
CGROUPS = Path("/sys/fs/cgroup/conform")
_WORKLOADS = ("subject", "bystander")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USERS = {"root": 0, "user1": 1234}
_PORT = 7000
_STEP_S = 60
_STEPS_MAX = 100
_CLONE_NEWNS = 0x20000
# A container's root: the machine's files under a layer of its own; /proc, /dev and scratch space of its own.
_ENTER = f"""
set -e
mkdir -p /run/conform/layers {_ROOT}
mount -t tmpfs layers /run/conform/layers
mkdir /run/conform/layers/up /run/conform/layers/work
mount -t overlay overlay -o lowerdir=/,upperdir=/run/conform/layers/up,workdir=/run/conform/layers/work {_ROOT}
cd {_ROOT}
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir run/old
pivot_root . run/old
umount -l /run/old
echo ready
exec sleep infinity
"""
_libc = ctypes.CDLL(None, use_errno=True)


class Stage:
    """The places, built once."""

    def __init__(self, files: list[list[str]]) -> None:
        SENTINELS.mkdir(parents=True)
        for number in range(_STEPS_MAX):
            (SENTINELS / str(number)).touch()
        for name in _WORKLOADS:
            (CGROUPS / name).mkdir(parents=True, exist_ok=True)
        self._gates = {name: os.open(CGROUPS / name / "cgroup.procs", os.O_WRONLY) for name in _WORKLOADS}
        for file in files:
            _make(*file)
        subprocess.run(["modprobe", "-a", "overlay", "sctp"], check=True)
        enter = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _ENTER]  # templates list another sh
        self._keeper = subprocess.Popen(enter, stdout=subprocess.PIPE, text=True)
        assert self._keeper.stdout
        assert self._keeper.stdout.readline() == "ready\n", "the workload's root could not be made"
        self._mounts = os.open(f"/proc/{self._keeper.pid}/ns/mnt", os.O_RDONLY)
        again = [file for file in files if file[0].startswith(("/run/", "/tmp/"))]  # the workload has its own of these
        self._inside(lambda: [_make(*file) for file in again])
        self._listening = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
        for sock in self._listening:
            sock.bind(("127.0.0.1", _PORT))
        self._listening[0].listen(1024)

    def play(self, step: dict[str, Any], sentinel: str) -> dict[str, Any]:
        """Play one step and open the sentinel; returns the error of starting the program, its exit code and what it wrote."""
        makes = [(path, "text", step["user"], "made\n") for path in step.get("makes", ())]
        if makes and step["place"] != "host":
            self._inside(lambda: [_make(*file) for file in makes])
        else:
            for file in makes:
                _make(*file)
        if step["tty"]:
            mine, terminal = os.openpty()
        else:
            mine, terminal = os.pipe()
        told, tells = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            self._act(step, terminal, tells)
        os.close(terminal)
        os.close(tells)
        output = _read_all(mine, child)
        _, status = os.waitpid(child, 0)
        number = os.read(told, 8)
        os.close(mine)
        os.close(told)
        with contextlib.suppress(PermissionError):
            os.close(os.open(SENTINELS / sentinel, os.O_RDONLY))
        with contextlib.suppress(OSError):
            (SENTINELS / f"{sentinel}.call").rmdir()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(b"", (FAR, FAR_PORT + int(sentinel)))
        return {
            "error": errno.errorcode[int(number)] if number else "",
            "code": os.waitstatus_to_exitcode(status),
            "output": output.decode(errors="replace"),
        }

    # ---- in the step's process -------------------------------------------------------------------------------------------
    def _act(self, step: dict[str, Any], terminal: int, tells: int) -> None:
        code = 97
        try:
            os.setsid()
            if step["tty"]:
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            nothing = os.open("/dev/null", os.O_RDONLY)
            for fd, number in ((terminal if step["tty"] else nothing, 0), (terminal, 1), (terminal, 2)):
                os.dup2(fd, number)
            if step["place"] != "host":
                os.write(self._gates[step["place"]], b"0")
                _enter(self._mounts)
            os.chdir(step["cwd"])
            uid = _USERS[step["user"]]
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            words = shlex.split(step["run"])
            if step["runtime"]:
                _by_itself(words)
                code = 0
            else:
                program = words[0] if "/" in words[0] else shutil.which(words[0], path=_PATH) or words[0]
                os.set_inheritable(tells, False)
                os.execve(program, words, {"PATH": _PATH, "HOME": "/root"})  # noqa: S606 - the step is that program
        except OSError as err:
            os.write(tells, b"%d" % (err.errno or 0))
        finally:
            os._exit(code)

    def _inside(self, work: Any) -> None:
        child = os.fork()
        if child == 0:
            done = 1
            try:
                _enter(self._mounts)
                work()
                done = 0
            finally:
                os._exit(done)
        assert os.waitpid(child, 0)[1] == 0, "files in the workload could not be made"


def _enter(mounts: int) -> None:
    if _libc.setns(mounts, _CLONE_NEWNS) < 0:
        raise OSError(ctypes.get_errno(), "setns")


def _by_itself(words: list[str]) -> None:
    """Act without starting a program, as a container's runtime does before it starts one."""
    match words:
        case ["read", path]:
            os.read(os.open(path, os.O_RDONLY), 1)
        case ["write", path]:
            os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b"x\n")
        case ["tcp" | "udp" as name]:
            kind = socket.SOCK_STREAM if name == "tcp" else socket.SOCK_DGRAM
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.connect(("127.0.0.1", _PORT))
        case ["raw" | "icmp" as name]:
            number = socket.IPPROTO_RAW if name == "raw" else socket.IPPROTO_ICMP
            socket.socket(socket.AF_INET, socket.SOCK_RAW, number).close()
        case _:
            raise OSError(errno.EINVAL, "no such act")


def _read_all(fd: int, child: int) -> bytes:
    found = b""
    while select.select([fd], [], [], _STEP_S)[0]:
        try:
            part = os.read(fd, 4096)
        except OSError:  # a terminal whose other end is closed
            return found
        if not part:
            return found
        found += part
    os.kill(child, 9)
    return found + b"[not done in time]"


def _make(path: str, kind: str, owner: str, text: str) -> None:
    """Make a file: text, or a program that is the probe. One that Debian has stays."""
    where = Path(path)
    for parent in reversed(where.parents):
        if not parent.exists():
            parent.mkdir()
            os.chown(parent, _USERS[owner], _USERS[owner])
    if kind == "program" and not where.exists():
        shutil.copy(_PROBE, where)
    elif kind == "text":
        where.write_text(text)
    os.chown(where, _USERS[owner], _USERS[owner])
    if kind == "text":
        where.chmod(0o666)  # whoever is refused is refused by a rule


def serve(requests: socket.socket) -> None:
    """Answer requests, one JSON object a line: ``{"files": ...}`` first, then ``{"steps": ...}``."""
    import json

    stage: Stage | None = None
    with requests.makefile("rw") as stream:
        for line in stream:
            asked = json.loads(line)
            if stage is None:
                stage, answer = Stage(asked["files"]), []
            else:
                answer = [stage.play(step, str(i)) for i, step in enumerate(asked["steps"])]
            stream.write(json.dumps(answer) + "\n")
            stream.flush()


__all__ = ["CGROUPS", "FAR", "FAR_PORT", "SENTINELS", "Stage", "serve"]
