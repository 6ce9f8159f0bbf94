"""One QEMU process: its command line, its monitor, freezing it into a template and starting from one.

Rules of this file:
- A template is a VM that was booted once and stopped: its memory (a sparse file), device state and disk. A clone maps the
  memory privately, so it costs what it changes, and runs within a tenth of a second.
- A clone must show the guest the very machine that was frozen: CPU, memory size, devices and PCI addresses come from ``Machine``
  alone. What is *behind* a disk or network card may differ from clone to clone.
- QEMU dies with the thread that started it (PR_SET_PDEATHSIG), so it may only be started from the main thread.

Owns: QEMU's options, QMP. Does not own: what runs in the guest (lab.py), what is on the disks (payload.py, vagrant/image).
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Backends", "Machine", "Qemu", "QemuError", "version"]

BINARY = "qemu-system-x86_64"
# la57: QEMU's page walks get slower for nothing. cx16: kernel 6.12 oopses on cmpxchg16b under QEMU 7.2's TCG.
CPU = "max,-la57,-cx16"
START_TIMEOUT_S = 20.0
SITE_DISK_MIB = 512
CODE_DISK_MIB = 64


class QemuError(Exception):
    """QEMU did not start, or refused a monitor command; the text is its own."""


@dataclass(frozen=True)
class Machine:
    """What the guest sees of its machine; all of it is frozen into a template.

    Attributes:
        kernel: Series of the kernel, as in the image's manifest.
        cmdline: Words added to the kernel's command line.
        init: First program; empty: systemd.
        memory_mib: RAM.
        icount: Instructions are the clock: time in the guest is the number of instructions executed. Only with one CPU.
        cpus: Virtual CPUs, each a thread of QEMU's.
        usb: It has a USB controller; what is plugged in is ``Qemu.plug``'s to say.
    """

    kernel: str
    cmdline: tuple[str, ...] = ()
    init: str = ""
    memory_mib: int = 512
    icount: bool = False
    cpus: int = 1
    usb: bool = False

    def key(self, qemu_version: str) -> str:
        """Return a name for templates of this machine: differs whenever a frozen state would not fit."""
        argv = self.argv(
            Path("/image"), Backends(disk=Path("d"), site=Path("s"), code=Path("c")), folder=Path("/f"), ram=Path("r")
        )
        digest = hashlib.sha256(json.dumps([qemu_version, asdict(self), argv]).encode()).hexdigest()[:8]
        return "-".join([self.kernel, "icount" if self.icount else Path(self.init or "systemd").name, digest])

    def argv(self, image: Path, backends: Backends, *, folder: Path, ram: Path | None, share: bool = False) -> list[str]:
        """Return QEMU's command line.

        Args:
            image: Folder with kernels and initrds.
            backends: What is behind the devices.
            folder: Where QEMU makes its sockets and the console log.
            ram: File that holds the guest's memory; None: ordinary memory.
            share: Write changes of memory to ``ram``.
        """
        memory = f"memory-backend-file,id=ram,size={self.memory_mib}M,mem-path={ram},share={'on' if share else 'off'}"
        if ram is None:
            memory = f"memory-backend-ram,id=ram,size={self.memory_mib}M"
        words = ["console=ttyS0 panic=-1 net.ifnames=0 quiet", f"init={self.init}" if self.init else "", *self.cmdline]
        disks = [(backends.disk, "qcow2", "off"), (backends.site, "raw", "on"), (backends.code, "raw", "on")]
        argv = [
            BINARY,
            "-machine",
            "q35,memory-backend=ram",
            "-object",
            memory,
            "-m",
            str(self.memory_mib),
            "-cpu",
            CPU,
            "-smp",
            str(self.cpus),
        ]
        argv += ["-accel", "tcg,thread=single" if self.icount else "tcg"]
        argv += ["-icount", "shift=0,sleep=off"] if self.icount else []
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-kernel", f"{image}/vmlinuz-{self.kernel}", "-initrd", f"{image}/initrd-{self.kernel}"]
        argv += ["-append", " ".join(filter(None, words))]
        for number, (path, form, readonly) in enumerate(disks):
            # cache=unsafe: this machine does not lose power in a test, and what a killed QEMU had flushed is with its kernel.
            argv += ["-drive", f"if=none,id=d{number},file={path},format={form},readonly={readonly},cache=unsafe"]
            argv += ["-device", f"virtio-blk-pci,drive=d{number},addr=0x{3 + number:x}"]
        for number, backend in enumerate([backends.user_network, backends.segment]):
            argv += ["-netdev", f"{backend},id=n{number}"]
            argv += ["-device", f"virtio-net-pci,netdev=n{number},romfile=,addr=0x{6 + number:x},mac=52:54:00:00:00:0{number}"]
        argv += [
            "-device",
            "virtio-serial-pci,addr=0x8,id=serial",
            "-chardev",
            f"socket,id=agent,path={folder}/agent,server=on,wait=off",
        ]
        argv += ["-device", "virtserialport,chardev=agent,name=vmsh", "-device", "virtio-rng-pci,addr=0x9"]
        argv += ["-device", "qemu-xhci,id=usb,addr=0xa"] if self.usb else []
        argv += ["-chardev", f"file,id=console,path={folder}/console.log,append=on", "-serial", "chardev:console"]
        return [*argv, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]


@dataclass(frozen=True)
class Backends:
    """What is behind a VM's devices.

    Attributes:
        disk: The root's qcow2 file, written to.
        site: Read-only disk of ``SITE_DISK_MIB`` with Python packages.
        code: Read-only disk of ``CODE_DISK_MIB`` with the checkout.
        user_network: ``-netdev`` backend of eth0; ``restrict=on`` lets the guest reach nothing.
        segment: ``-netdev`` backend of eth1.
    """

    disk: Path
    site: Path
    code: Path
    user_network: str = "user,restrict=on"
    segment: str = field(default="hubport,hubid=0")


class Qemu:
    """A running QEMU.

    Args:
        argv: From ``Machine.argv``, with ``-incoming defer`` for a clone.
        folder: The one given to ``Machine.argv``; also gets QEMU's own words in ``qemu.log``.

    Raises:
        QemuError: It ended at once, or is not installed.
    """

    def __init__(self, argv: list[str], folder: Path) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise QemuError("VMs must be started from the main thread: the kernel ends QEMU when the thread that started it ends")
        self._log = folder / "qemu.log"
        for name in ("agent", "qmp"):
            (folder / name).unlink(missing_ok=True)
        try:
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
                )
        except FileNotFoundError as err:
            raise QemuError(f"{err.filename} is not installed; ./dev vm and ./dev vm-test install it") from err
        self._monitor = _Monitor(self._connected(folder / "qmp"))

    def _connected(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise QemuError(f"QEMU ended with exit code {self.process.returncode}: {self._log.read_text().strip()}")
            try:
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                time.sleep(0.005)
            else:
                return connection
        self.kill()
        raise QemuError(f"QEMU's monitor did not answer within {START_TIMEOUT_S:g} s")

    def freeze(self, state: Path) -> None:
        """Stop the guest, write its devices' state to ``state`` and end QEMU; memory stays in the shared file."""
        self._monitor.execute("stop")
        self._ignore_shared_memory()
        self._monitor.execute("migrate", uri=f"exec:cat > {state}")
        self._until("query-migrate", {"completed"}, failed={"failed", "cancelled"})
        self._monitor.execute("quit")
        self.process.wait(timeout=START_TIMEOUT_S)

    def thaw(self, state: Path) -> None:
        """Continue from a frozen state. The process must have been started with ``-incoming defer``."""
        self._ignore_shared_memory()
        self._monitor.execute("migrate-incoming", uri=f"exec:cat {state}")
        self._until("query-status", {"paused", "running", "prelaunch", "postmigrate"}, failed={"internal-error", "shutdown"})
        self._monitor.execute("cont")

    def forward_port(self, guest_port: int) -> int:
        """Forward a free port of 127.0.0.1 to a port of the guest's eth0; returns it."""
        said = self._monitor.execute("human-monitor-command", **{"command-line": f"hostfwd_add n0 tcp:127.0.0.1:0-:{guest_port}"})
        if said:
            raise QemuError(f"port {guest_port} cannot be forwarded: {said.strip()}")
        listed = self._monitor.execute("human-monitor-command", **{"command-line": "info usernet"})
        rows = [line.split() for line in listed.splitlines() if "HOST_FORWARD" in line]
        return next(int(row[3]) for row in reversed(rows) if row[5] == str(guest_port))

    def plug(self, driver: str, name: str, **options: Any) -> None:
        """Plug in a USB device; ``driver`` and ``options`` as ``-device`` takes them. Disks come with ``add_disk``."""
        self._monitor.execute("device_add", driver=driver, id=name, bus="usb.0", **options)

    def unplug(self, name: str) -> None:
        """Pull it out."""
        self._monitor.execute("device_del", id=name)

    def add_disk(self, name: str, size_bytes: int) -> None:
        """Make what is behind a disk that is plugged in later: it reads as zeros."""
        self._monitor.execute("blockdev-add", **{"driver": "null-co", "node-name": name, "size": size_bytes, "read-zeroes": True})

    def kill(self) -> None:
        """End QEMU at once: for the guest this is a power cut. Idempotent."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill it and give back the monitor. Idempotent."""
        self.kill()
        self._monitor.close()

    def _ignore_shared_memory(self) -> None:
        self._monitor.execute("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])

    def _until(self, command: str, wanted: set[str], *, failed: set[str]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            answer = self._monitor.execute(command)
            if answer.get("status") in wanted:
                return
            if answer.get("status") in failed:
                break
            time.sleep(0.005)
        raise QemuError(f"{command}: {answer}; {self._log.read_text().strip()}")


class _Monitor:
    """QMP: one command at a time, events ignored."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(START_TIMEOUT_S)
        self._file = connection.makefile("rw")
        self._file.readline()  # greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise QemuError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise QemuError(f"{command}: QEMU ended")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def version() -> str:
    """Return QEMU's version line: a frozen state belongs to the QEMU that froze it.

    Raises:
        QemuError: It is not installed.
    """
    try:
        return subprocess.run([BINARY, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except FileNotFoundError as err:
        raise QemuError(f"{BINARY} is not installed; ./dev vm and ./dev vm-test install it") from err
