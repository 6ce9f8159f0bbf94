"""The kernel's word of USB devices that come and go.

Rules of this file:
- Only the kernel is heard: a message counts if its sender has port 0 and it came by the kernel's group. Others are counted.
- Of a message one thing is used: the name of a device, and only if it has the shape of one. The rest is read anew in sysfs.
- A full socket buffer loses messages, not memory: the kernel says so (ENOBUFS), and everything is looked at then.
Source: linux/lib/kobject_uevent.c; Documentation/ABI/testing/sysfs-bus-usb.
"""

from __future__ import annotations

import errno
import re
import socket
from typing import Final, Protocol

import msgspec

from garrison.common.errors import KernelError

__all__ = ["News", "Uevent", "UeventSocket", "UeventSource", "decode_uevent"]

_NETLINK_KOBJECT_UEVENT: Final = 15
_KERNEL, _KERNEL_GROUP = 0, 1  # port and group; udev's own words go by group 2
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 1 << 20
_MESSAGE_BYTES: Final = 8192  # the kernel's UEVENT_BUFFER_SIZE is 2048
_TURNS: Final = 256
_DEVICE: Final = re.compile(rb"(usb[0-9]{1,5}|[0-9]{1,5}-[0-9]{1,3}(?:\.[0-9]{1,3}){0,5})(:[0-9]{1,3}\.[0-9]{1,3})?")
_TYPES: Final = (b"usb_device", b"usb_interface")


class Uevent(msgspec.Struct, frozen=True):
    """Something about a device changed.

    Attributes:
        device: Its name on the bus, ``1-1.4``, or a root hub's, ``usb1``.
        gone: It is no longer there.
    """

    device: str
    gone: bool = False


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What a socket had to say.

    Attributes:
        uevents: Those about USB, in order.
        overrun: The kernel had to drop some.
        forged: Messages that were not the kernel's.
    """

    uevents: tuple[Uevent, ...] = ()
    overrun: bool = False
    forged: int = 0


def decode_uevent(raw: bytes) -> Uevent | None:
    """Return what a message says of a USB device; ``None`` when it is about something else or makes no sense."""
    head, *lines = raw.split(b"\0")
    fields = dict(line.split(b"=", 1) for line in lines if b"=" in line)
    if fields.get(b"SUBSYSTEM") != b"usb" or fields.get(b"DEVTYPE") not in _TYPES:
        return None
    action, path = fields.get(b"ACTION", b""), fields.get(b"DEVPATH", b"")
    named = _DEVICE.fullmatch(path.rpartition(b"/")[2])
    if head != action + b"@" + path or named is None:
        return None
    of_device = named[2] is None
    if of_device is not (fields[b"DEVTYPE"] == b"usb_device"):
        return None
    return Uevent(named[1].decode("ascii"), gone=of_device and action == b"remove")


class UeventSource(Protocol):
    """What says that devices come and go."""

    def fileno(self) -> int:
        """Return what to wait on."""

    def read(self) -> News:
        """Return what there is, without waiting."""

    def close(self) -> None:
        """Hear no more."""


class UeventSocket:
    """Hears what the kernel says; read without waiting.

    Raises:
        KernelError: There is no such socket here.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        except OSError as err:
            raise KernelError(err.errno or 0, "socket(NETLINK_KOBJECT_UEVENT)") from err
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.bind((0, _KERNEL_GROUP))
            self._socket.setblocking(False)
        except OSError as err:
            self._socket.close()
            raise KernelError(err.errno or 0, "listen to the kernel's uevents") from err

    def fileno(self) -> int:
        """Return what to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def read(self) -> News:
        """Return what there is."""
        found: list[Uevent] = []
        overrun, forged = False, 0
        for _ in range(_TURNS):  # and then the caller gets its turn
            try:
                raw, _, _, sender = self._socket.recvmsg(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                overrun = True
                continue
            if tuple(sender) != (_KERNEL, _KERNEL_GROUP):
                forged += 1
            elif (uevent := decode_uevent(raw)) is not None:
                found.append(uevent)
        return News(uevents=tuple(found), overrun=overrun, forged=forged)
