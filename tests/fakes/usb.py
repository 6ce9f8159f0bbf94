"""A folder that looks like sysfs, and a kernel that tells of what is plugged in: for what the real ones cannot show."""

from __future__ import annotations

import socket
from pathlib import Path

from garrison.minion.enforcers.usb.sysfs import UsbTree
from garrison.minion.enforcers.usb.uevents import News, decode_uevent

__all__ = ["HUB", "KEYBOARD", "STICK", "FakeUsb", "descriptors"]

Triple = tuple[int, int, int]
STICK: Triple = (8, 6, 80)
KEYBOARD: Triple = (3, 1, 1)
HUB: Triple = (9, 0, 0)


def descriptors(*interfaces: Triple, device: Triple = (0, 0, 0), vendor: int = 0x1234, product: int = 0xABCD) -> bytes:
    """Return what sysfs shows of a device with one configuration."""
    head = (
        bytes([18, 1, 0, 2, *device, 64])
        + vendor.to_bytes(2, "little")
        + product.to_bytes(2, "little")
        + bytes([0, 1, 1, 2, 3, 1])
    )
    endpoint = bytes([7, 5, 0x81, 2, 64, 0, 0])
    each = [bytes([9, 4, number & 255, 0, 1, *triple, 0]) + endpoint for number, triple in enumerate(interfaces)]
    body = b"".join(each)
    return head + bytes([9, 2]) + (9 + len(body)).to_bytes(2, "little") + bytes([len(interfaces) & 255, 1, 0, 0x80, 50]) + body


class _Ear:
    """One who listens; a datagram for each message."""

    def __init__(self, end: socket.socket, usb: FakeUsb) -> None:
        self._end, self._usb = end, usb

    def fileno(self) -> int:
        return self._end.fileno()

    def read(self) -> News:
        heard = []
        while True:
            try:
                heard.append(decode_uevent(self._end.recv(8192)))
            except BlockingIOError:
                break
        overrun, self._usb.overrun = self._usb.overrun, False
        return News(uevents=tuple(uevent for uevent in heard if uevent), overrun=overrun)

    def close(self) -> None:
        self._usb.mouths.pop(self._end).close()
        self._end.close()


class FakeUsb:
    """A machine with one bus.

    Args:
        root: An empty folder.
        default: What becomes of new devices at first.
    """

    def __init__(self, root: Path, *, default: int = 1) -> None:
        self.sys, self.overrun = root / "sys", False
        self.mouths: dict[socket.socket, socket.socket] = {}
        self._devices = self.sys / "bus/usb/devices"
        self._devices.mkdir(parents=True)
        (self.sys / "module/usbcore/parameters").mkdir(parents=True)
        (self.sys / "module/usbcore/parameters/authorized_default").write_text("-1\n")
        (root / "mountinfo").write_text("22 1 254:1 / / rw - ext4 /dev/vda1 rw\n")
        self._number = 1
        self.bus("usb1", default=default)
        self.tree = UsbTree(self.sys, mounts=root / "mountinfo", modules=root / "modules")
        self._root = root

    def listen(self) -> _Ear:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        self.mouths = {**self.mouths, theirs: mine}
        return _Ear(theirs, self)

    def bus(self, name: str, *, default: int = 1) -> None:
        (self._devices / name).mkdir()
        (self._devices / name / "authorized_default").write_text(f"{default}\n")

    def plug(self, name: str, raw: bytes, *, silent: bool = False, product: bytes = b"Thing") -> None:
        """Plug a device in; the kernel authorises it as its bus says."""
        folder = self._devices / name
        self._number += 1
        folder.mkdir()
        (folder / "devnum").write_text(f"{self._number}\n")
        (folder / "descriptors").write_bytes(raw)
        (folder / "product").write_bytes(product + b"\n")
        (folder / "authorized").write_text("1\n" if self.default(f"usb{name.partition('-')[0]}") in (1, -1) else "0\n")
        if not silent:
            self.say("add", name)

    def unplug(self, name: str) -> None:
        for file in sorted((self._devices / name).iterdir()):
            file.unlink()
        (self._devices / name).rmdir()
        self.say("remove", name)

    def say(self, action: str, name: str) -> None:
        path = f"/devices/pci0000:00/usb1/{name}"
        fields = [f"ACTION={action}", f"DEVPATH={path}", "SUBSYSTEM=usb", "DEVTYPE=usb_device", "SEQNUM=1"]
        for mouth in self.mouths.values():
            mouth.send("\0".join([f"{action}@{path}", *fields, ""]).encode())

    def lose(self) -> None:
        """Have the kernel say that it dropped messages."""
        self.overrun = True
        for mouth in self.mouths.values():
            mouth.send(b"x")

    def carry(self, name: str, *, mounted: str = "/") -> None:
        """Have a file system that the machine runs from lie on a device, below a mapped one."""
        disk = self.sys / "devices/pci0000:00/usb1" / name / "host0/block/sda/sda1"
        mapped = self.sys / "devices/virtual/block/dm-0"
        (mapped / "slaves").mkdir(parents=True)
        disk.mkdir(parents=True)
        (mapped / "slaves/sda1").symlink_to(disk)
        (self.sys / "dev/block").mkdir(parents=True)
        (self.sys / "dev/block/253:0").symlink_to(mapped)
        (self._root / "mountinfo").write_text(f"22 1 253:0 / {mounted} rw - ext4 /dev/mapper/root rw\n")

    def authorized(self, name: str) -> bool:
        return (self._devices / name / "authorized").read_text().strip() == "1"

    def set_authorized(self, name: str, *, allowed: bool) -> None:
        (self._devices / name / "authorized").write_text(f"{allowed:d}\n")

    def default(self, name: str = "usb1") -> int:
        return int((self._devices / name / "authorized_default").read_text())

    def set_default(self, value: int, name: str = "usb1") -> None:
        (self._devices / name / "authorized_default").write_text(f"{value}\n")

    def default_of_new_buses(self) -> int:
        return int((self.sys / "module/usbcore/parameters/authorized_default").read_text())

    def cannot_be_opened(self, name: str) -> None:
        """Have a device that is authorised stay so: a number that not even root can write stands in its place."""
        file = self._devices / name / "authorized"
        file.unlink()
        file.symlink_to("/proc/sys/kernel/ngroups_max")
