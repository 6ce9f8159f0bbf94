"""Virtual machines for tests: a Debian 12 guest with its own kernel, up in under a second, with this checkout's garrison in it.

    with Lab() as lab:
        vm = lab.boot("edge", BPF_612)
        assert vm.run("cat", "/sys/kernel/security/lsm").stdout ...

Rules of this file:
- The first VM of a profile boots for real and is frozen as a template; every VM is a clone of a template with its own disk, name,
  addresses, clock and random state. Templates are kept beside the image and made anew when image, profile or QEMU change.
- Nothing is shared between VMs but read-only disks and, if asked, one network segment. A guest reaches nothing else.
- ``reboot`` and ``power_on`` boot for real, from the VM's own disk.
- Every wait has a limit. Whatever goes wrong is a ``VmError`` with the end of the guest's console in its text.
- VMs are started from the main thread (qemu.py says why) and die with it; their folders go when the lab closes, unless kept.

Owns: templates, the life of a VM. Hands over to: qemu.py (processes), agent.py (commands), payload.py (disks), vagrant/image.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from vm.agent import AgentError, Channel, ChannelClosedError
from vm.payload import CHECKOUT, code_disk, site_disk
from vm.qemu import CODE_DISK_MIB, SITE_DISK_MIB, Backends, Machine, Qemu, version

__all__ = [
    "BENCH",
    "FAST_INIT",
    "K61",
    "K612",
    "PREEMPT_FULL",
    "SELINUX",
    "USB",
    "Background",
    "Image",
    "Lab",
    "Machine",
    "Segment",
    "Vm",
    "VmError",
    "VmTimeoutError",
]

FAST_INIT = "/usr/local/sbin/lab-init"
K61 = Machine("6.1", init=FAST_INIT)
K612 = Machine("6.12", init=FAST_INIT)
# SELinux in the place of AppArmor, beside BPF; permissive, and without a policy: the image has none.
SELINUX = replace(K61, cmdline=("lsm=landlock,lockdown,yama,integrity,selinux,bpf", "enforcing=0"))
USB = replace(K61, kernel="6.1-usb", usb=True)  # Debian's ordinary kernel: the cloud kernels have no USB
PREEMPT_FULL = replace(K61, cmdline=("preempt=full",))
# Everything random or periodic is off, so that two runs execute the same instructions.
BENCH = replace(
    K61,
    icount=True,
    cmdline=("nokaslr", "norandmaps", "audit=0", "mitigations=off", "randomize_kstack_offset=off", "nowatchdog"),
)

BOOT_TIMEOUT_S = 240.0  # an emulated CPU on a busy machine; a boot takes 8 to 40 s
ARRIVE_TIMEOUT_S = 60.0
COME_TIMEOUT_S = 180.0  # of what is waited for in a guest: it fails slowly only where something is wrong
REBOOT_TIMEOUT_S = 120.0
# Programs whose pages every clone should find in memory.
_WARM_UP = ("python3 -c 'import json, ctypes, subprocess, ssl, sqlite3'", "ip link; nft list ruleset; mount; ls /; ps ax", "sync")
_SITE, _CODE = "/opt/site-packages", "/opt/garrison"
_CONSOLE_LINES = 25
_T = TypeVar("_T")


class VmError(Exception):
    """Something about a VM did not come about; the end of its console is in the text."""


class VmTimeoutError(VmError, TimeoutError):
    """A command or a state did not come in time."""


@dataclass(frozen=True)
class Image:
    """What ``vagrant/image/build`` made.

    Attributes:
        folder: Where it is; templates are kept in it.
        kernels: Release by series.
        missing: Why a series is not there.
    """

    folder: Path
    kernels: Mapping[str, str]
    missing: Mapping[str, str]

    @classmethod
    def built(cls) -> Image:
        """Build it, or find it built.

        Raises:
            VmError: It cannot be built; the builder has said why.
        """
        done = subprocess.run([str(CHECKOUT / "vagrant/image/build")], check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise VmError("the lab's image could not be built; see above")
        folder = Path(done.stdout.strip())
        manifest = json.loads((folder / "manifest.json").read_text())
        return cls(folder, manifest["kernels"], manifest["missing"])


@dataclass(frozen=True)
class Segment:
    """One Ethernet segment for any number of VMs: a multicast group on this machine's loopback."""

    port: int

    @property
    def netdev(self) -> str:
        """QEMU's backend for it."""
        return f"socket,mcast=230.0.0.1:{self.port},localaddr=127.0.0.1"


class Background:
    """A process that ``Vm.start`` left running in the guest."""

    def __init__(self, vm: Vm, pid: int, log: str) -> None:
        self._vm, self.pid, self.log = vm, pid, log

    def wait(self, timeout_s: float = 30) -> int:
        """Wait for its end; returns the exit code, negative for a signal.

        Raises:
            VmTimeoutError: It still runs.
        """
        code = self._vm.ask("wait", timeout_s, pid=self.pid, timeout_s=timeout_s)["code"]
        if code is None:
            raise VmTimeoutError(
                f"{self._vm.name}: process {self.pid} still ran after {timeout_s:g} s; its log:\n{self.output()}"
            )
        return int(code)

    def running(self) -> bool:
        """Tell whether it runs."""
        return self._vm.ask("wait", 5, pid=self.pid, timeout_s=0)["code"] is None

    def kill(self, signal_name: str = "KILL") -> None:
        """Send it a signal."""
        self._vm.check("kill", f"-{signal_name}", str(self.pid))

    def output(self) -> str:
        """Return what it has written so far."""
        return self._vm.get(self.log).decode(errors="replace")


class Vm:
    """One virtual machine. Made by ``Lab.boot``.

    Attributes:
        name: Its host name.
        machine: Kernel and hardware that it runs on now.
        address: Its IPv4 address on the segment, empty without one.
        folder: Its disk, sockets and console log, on this machine.
    """

    def __init__(
        self, name: str, machine: Machine, image: Image, *, folder: Path, backends: Backends, address: str, mac: str
    ) -> None:
        self.name, self.machine, self.folder, self.address = name, machine, folder, address
        self._image, self._backends, self._mac = image, backends, mac
        self._machine_id = secrets.token_hex(16)
        self._qemu: Qemu | None = None
        self._channel: Channel | None = None
        self._ssh_port = 0

    # ---- commands ----------------------------------------------------------------------------------------------------
    def run(
        self,
        *argv: str,
        timeout_s: float = 60,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as root and wait for it; its output is captured and its exit code (negative: signal) not checked.

        A child that it leaves behind does not hold the answer. Output that is not UTF-8 is decoded with replacement characters.

        Args:
            argv: Program and arguments; no shell.
            timeout_s: After that the program's session is killed.
            stdin: What it reads.
            env: Added to the agent's environment.
            cwd: Folder in the guest.

        Raises:
            VmTimeoutError: It took longer; what it had written is in the text.
            VmError: There is no such program, or the VM ended.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin
        answer = self.ask(
            "run", timeout_s, argv=list(argv), stdin=_b64(data), env=dict(env or {}), cwd=cwd, timeout_s=timeout_s
        )  # fmt: skip
        stdout, stderr = (base64.b64decode(answer[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        if answer["code"] is None:
            raise VmTimeoutError(f"{self.name}: {shlex.join(argv)}: not done within {timeout_s:g} s\n{stdout}{stderr}")
        return subprocess.CompletedProcess(argv, answer["code"], stdout, stderr)

    def check(self, *argv: str, timeout_s: float = 60, stdin: str | bytes = b"") -> str:
        """Run a program that must succeed; returns its standard output.

        Raises:
            VmError: Its exit code was not 0.
        """
        done = self.run(*argv, timeout_s=timeout_s, stdin=stdin)
        if done.returncode:
            raise VmError(f"{self.name}: {shlex.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *argv: str, log: str, env: Mapping[str, str] | None = None, cwd: str = "/root") -> Background:
        """Start a program as root in the background, output appended to the guest's file ``log``."""
        pid = self.ask("start", 30, argv=list(argv), log=log, env=dict(env or {}), cwd=cwd)["pid"]
        return Background(self, int(pid), log)

    def put(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file in the guest, with its folders."""
        raw = data.encode() if isinstance(data, str) else data
        self.ask("put", 60, path=path, data=_b64(raw), mode=mode)

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        return base64.b64decode(self.ask("get", 60, path=path)["data"])

    def until(self, look: Callable[[], _T], what: str, timeout_s: float = COME_TIMEOUT_S) -> _T:
        """Return the first true answer of ``look``, which asks the guest something.

        Raises:
            VmTimeoutError: It did not come in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if answer := look():
                return answer
            time.sleep(0.05)
        raise VmTimeoutError(f"{self.name}: not within {timeout_s:g} s: {what}\n{self.console_end()}")

    def ssh_argv(self, *argv: str, user: str = "root") -> list[str]:
        """Return the command line that runs ``argv`` in the guest over SSH, or a shell if there is none."""
        return [
            "ssh", "-q", "-i", str(self._image.folder / "id_ed25519"), "-p", str(self.ssh_port()),
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60",
            f"{user}@127.0.0.1",
            *([shlex.join(argv)] if argv else []),
        ]  # fmt: skip

    def ssh_port(self) -> int:
        """Return the port of 127.0.0.1 that leads to the guest's sshd."""
        if not self._ssh_port:
            self._ssh_port = self._running().forward_port(22)
        return self._ssh_port

    # ---- USB, on a machine that has it -------------------------------------------------------------------------------
    def plug(self, driver: str, name: str, **options: Any) -> None:
        """Plug in a USB device by QEMU's name for its kind (``usb-kbd``, ``usb-storage``); a stick holds 16 MiB of zeros."""
        if driver == "usb-storage":
            self._running().add_disk(f"{name}-disk", 16 << 20)
            options["drive"] = f"{name}-disk"
        self._running().plug(driver, name, **options)

    def unplug(self, name: str) -> None:
        """Pull out a USB device. The same name can be plugged in again, but for a stick."""
        self._running().unplug(name)

    # ---- life --------------------------------------------------------------------------------------------------------
    def clone_from(self, template: Path) -> None:
        """Come to life from a template."""
        self._start_qemu("-incoming", "defer", ram=template / "ram")
        self._running().thaw(template / "state")
        self._arrive()

    def power_on(self, machine: Machine | None = None) -> None:
        """Boot from the VM's own disk, on another kernel or hardware if ``machine`` is given."""
        self.machine = machine or self.machine
        self._start_qemu()
        self._wait_booted()
        self._arrive()

    def reboot(self, machine: Machine | None = None) -> None:
        """Let the guest sync and restart; programs are not told with lab-init, systemd stops its units in order."""
        orderly = ["systemctl", "reboot"] if not self.machine.init else ["reboot", "-f"]
        self.check("sync")
        with contextlib.suppress(ChannelClosedError):
            self._talking().tell("start", argv=orderly, log="/dev/null", env={}, cwd="/")
        self.await_down()
        self.power_on(machine)

    def await_down(self) -> None:
        """Wait until the guest ends by itself: it was told to, or resets.

        Raises:
            VmTimeoutError: It does not.
        """
        try:
            self._running().process.wait(REBOOT_TIMEOUT_S)
        except subprocess.TimeoutExpired as err:
            raise VmTimeoutError(f"{self.name}: did not go down within {REBOOT_TIMEOUT_S:g} s\n{self.console_end()}") from err
        self.cut_power()

    def cut_power(self) -> None:
        """End the VM at once: what the guest has not synced is lost. ``power_on`` starts it again from its disk. Idempotent."""
        if self._qemu is not None:
            self._qemu.close()
        if self._channel is not None:
            self._channel.close()
        self._qemu = self._channel = None
        self._ssh_port = 0

    def console_end(self, lines: int = _CONSOLE_LINES) -> str:
        """Return the last lines of the console log, with its path."""
        path = self.folder / "console.log"
        text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return "\n".join([f"--- {path}", *text])

    # ---- for the lab and Background ----------------------------------------------------------------------------------
    def ask(self, op: str, limit_s: float, **fields: Any) -> dict[str, Any]:
        """Ask the agent, allowing it ``limit_s`` for the work itself."""
        try:
            return self._talking().ask(op, limit_s + 30, **fields)
        except ChannelClosedError as err:
            code = self._running().process.wait(5)
            raise VmError(f"{self.name}: the VM ended (QEMU's exit code {code}) during {op}\n{self.console_end()}") from err
        except TimeoutError as err:
            raise VmTimeoutError(
                f"{self.name}: the agent did not answer: {op} {fields.get('argv', '')}\n{self.console_end()}"
            ) from err
        except AgentError as err:
            raise VmError(f"{self.name}: {op} {fields.get('argv') or fields.get('path') or ''}: {err}") from err

    def make_template(self, template: Path) -> None:
        """Boot for real, warm up and freeze into the folder ``template``, which holds this VM's disk already."""
        self._start_qemu(ram=template / "ram", share=True)
        self._wait_booted()
        for command in _WARM_UP:
            self.run("sh", "-c", command)
        self._running().freeze(template / "state")
        self.cut_power()

    def _start_qemu(self, *more: str, ram: Path | None = None, share: bool = False) -> None:
        argv = self.machine.argv(self._image.folder, self._backends, folder=self.folder, ram=ram, share=share)
        self._qemu = Qemu([*argv, *more], self.folder)
        self._channel = Channel(self.folder / "agent")

    def _wait_booted(self) -> None:
        try:
            self._talking().wait_ready(BOOT_TIMEOUT_S)
        except TimeoutError as err:
            raise VmTimeoutError(f"{self.name}: no agent within {BOOT_TIMEOUT_S:g} s of power on\n{self.console_end()}") from err
        except ChannelClosedError as err:
            raise VmError(f"{self.name}: the VM ended while it booted\n{self.console_end()}") from err

    def _arrive(self) -> None:
        self.ask(
            "arrive", ARRIVE_TIMEOUT_S, time_ns=time.time_ns(), hostname=self.name, machine_id=self._machine_id,
            entropy=_b64(os.urandom(64)), address=self.address and f"{self.address}/24", mac=self._mac,
            mounts=[["/dev/vdb", _SITE], ["/dev/vdc", _CODE]],
        )  # fmt: skip

    def _running(self) -> Qemu:
        if self._qemu is None:
            raise VmError(f"{self.name}: the VM is off")
        return self._qemu

    def _talking(self) -> Channel:
        if self._channel is None:
            raise VmError(f"{self.name}: the VM is off")
        return self._channel


class Lab:
    """Makes VMs and ends them. A context manager; on an exception the VMs' folders are kept.

    Args:
        keep: Keep the VMs' folders (disks, consoles) in any case.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.keep = keep
        self.vms: list[Vm] = []
        self.image = Image.built()
        self.folder = Path(tempfile.mkdtemp(prefix="garrison-lab-"))  # short: it holds sockets
        self._site = site_disk(self.image.folder.parent)
        self._code = code_disk(self.image.folder.parent)

    def boot(self, name: str = "lab", machine: Machine = K61, *, on: Segment | None = None, reach_host: bool = False) -> Vm:
        """Return a running VM.

        Args:
            name: Host name; also tells its folder.
            machine: Kernel and hardware. The first VM of a kind takes a real boot, each further one a clone's time.
            on: Segment that its eth1 is on.
            reach_host: Let it reach 127.0.0.1 of this machine as 10.0.2.2, and what this machine reaches. Otherwise: nothing.

        Raises:
            VmError: It did not come up; or the image has no such kernel.
        """
        template = self._template(machine)
        number = len(self.vms) + 1
        backends = Backends(
            disk=Path("disk.qcow2"),
            site=self._site,
            code=self._code,
            user_network="user" if reach_host else "user,restrict=on",
            segment=on.netdev if on else Backends.segment,
        )
        folder = self.folder / f"{number}-{name}"
        folder.mkdir()
        _overlay(template / "disk.qcow2", "qcow2", folder / "disk.qcow2")
        address, mac = (f"10.9.0.{number}", f"52:54:00:09:00:{number:02x}") if on else ("", "")
        vm = Vm(name, machine, self.image, folder=folder, backends=backends, address=address, mac=mac)
        self.vms.append(vm)
        vm.clone_from(template)
        return vm

    def segment(self) -> Segment:
        """Return a new network segment, for ``boot(on=...)``."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            return Segment(probe.getsockname()[1])

    def close(self) -> None:
        """End all VMs. Idempotent."""
        for vm in self.vms:
            vm.cut_power()
        if self.keep:
            _say(f"kept {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.keep = self.keep or (kind is not None and issubclass(kind, Exception))
        self.close()

    def _template(self, machine: Machine) -> Path:
        """Return the folder of a machine's template, making it if it is not there."""
        if machine.kernel not in self.image.kernels:
            raise VmError(
                f"the lab has no kernel {machine.kernel}: {self.image.missing.get(machine.kernel, 'not a series it knows')}"
            )
        template = self.image.folder / "templates" / machine.key(version())
        template.parent.mkdir(exist_ok=True)
        with _locked(template.with_name(f"{template.name}.lock")):
            if not template.is_dir():
                began = time.monotonic()
                self._make_template(machine, template)
                _say(f"template {template.name} made in {time.monotonic() - began:.1f} s")
        return template

    def _make_template(self, machine: Machine, template: Path) -> None:
        # Beside its final place: the disk names its base relatively, and a half-made template must not be taken for one.
        making = template.with_name(f"{template.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        _overlay(Path("../../base.raw"), "raw", making / "disk.qcow2")
        blanks = {}
        for name, size_mib in (("site", SITE_DISK_MIB), ("code", CODE_DISK_MIB)):
            blanks[name] = making / f"blank-{name}"
            with blanks[name].open("wb") as disk:
                disk.truncate(size_mib << 20)
        folder = self.folder / f"template-{template.name}"
        folder.mkdir()
        backends = Backends(disk=making / "disk.qcow2", **blanks)
        vm = Vm("template", machine, self.image, folder=folder, backends=backends, address="", mac="")
        try:
            vm.make_template(making)
        except BaseException:
            vm.cut_power()
            self.keep = True
            raise
        shutil.copy(folder / "console.log", making)
        making.rename(template)


def _say(what: str) -> None:
    sys.stderr.write(f"lab: {what}\n")


def _overlay(base: Path, form: str, overlay: Path) -> None:
    """Make an empty qcow2 file over ``base``; a relative base is meant from the overlay's folder."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", form, overlay.name], check=True, cwd=overlay.parent
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
