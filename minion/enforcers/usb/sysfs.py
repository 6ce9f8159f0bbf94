"""USB devices in sysfs: the one place that reads and writes it.

Rules of this file:
- A path is made of a name of the kernel's own shape (``1-1.4``, ``usb1``) and a fixed file name, of nothing that a device says.
- A device that goes away while it is looked at is not there; that is no error.
- A device's own strings are escaped and cut as soon as they are read.
Owns: files. Does not own: what is to be written (``plan``), when (``enforcer``).
Source: Documentation/usb/authorization.rst, Documentation/ABI/testing/sysfs-bus-usb.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import KernelError
from garrison.minion.enforcers.usb.descriptors import DESCRIPTORS_MAX_BYTES, Said, read_descriptors

__all__ = ["Device", "UsbTree", "escaped", "is_root_hub"]

TEXT_MAX_CHARS: Final = 128  # a string descriptor has at most 126 characters
_ATTRIBUTE_MAX_BYTES: Final = 4096
_MOUNTS_MAX_BYTES: Final = 16 << 20  # the kernel's limit of 100,000 mounts, at 160 bytes each
_NAME: Final = re.compile(r"usb\d{1,5}|\d{1,5}-\d{1,3}(?:\.\d{1,3}){0,5}", re.ASCII)
_ROOT_HUB: Final = re.compile(r"usb\d{1,5}", re.ASCII)
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
# What a machine cannot do without while it runs.
_NEEDED: Final = (b"/", b"/usr", b"/var", b"/boot", b"/boot/efi")
_SLAVES_DEPTH_MAX: Final = 8  # LVM on LUKS on RAID has three


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as sysfs shows it.

    Attributes:
        name: Its place on the bus: ``1-1.4`` is port 4 of the hub at port 1 of bus 1.
        number: The kernel's number of it, another each time that it is plugged in.
        said: What it says it can do.
        authorized: It may be used.
        manufacturer: Its own words, escaped; so are the next two.
        title: Name of the product.
        serial: Serial number.
    """

    name: str
    number: int
    said: Said
    authorized: bool
    manufacturer: str = ""
    title: str = ""
    serial: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from another one plugged in at the same place later."""
        return self.name, self.number

    @property
    def level(self) -> int:
        """How far from the machine: 1 for one of its own ports."""
        return self.name.count(".") + 1

    @property
    def root_hub(self) -> str:
        """Name of the root hub of its bus."""
        return f"usb{self.name.partition('-')[0]}"


def is_root_hub(name: str) -> bool:
    """Return whether a device of this name is a host controller's own hub."""
    return _ROOT_HUB.fullmatch(name) is not None


def escaped(raw: bytes) -> str:
    """Return a device's string so that it is one line of printable characters, whatever the device put there."""
    text = raw.decode(errors="backslashreplace").strip()[:TEXT_MAX_CHARS]
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii") for c in text)


class UsbTree:
    """The USB devices of a machine.

    Args:
        sys: Where sysfs is.
        mounts: The table of mounts.
        modules: Folder of the kernels' modules.
    """

    def __init__(
        self, sys: Path = Path("/sys"), *, mounts: Path = Path("/proc/self/mountinfo"), modules: Path = Path("/lib/modules")
    ) -> None:
        self._sys, self._mounts, self._modules = sys, mounts, modules
        self._devices = sys / "bus/usb/devices"
        self._parameter = sys / "module/usbcore/parameters/authorized_default"

    # ---- what there is ---------------------------------------------------------------------------------------------------
    def why_missing(self) -> str:
        """Return why there can be no USB here; empty when there is, or when a module may still bring it."""
        if (self._sys / "bus/usb").is_dir():
            return ""
        folder = self._modules / platform.release()
        for index in ("modules.dep", "modules.builtin"):
            with contextlib.suppress(OSError):
                if b"/usbcore.ko" in (folder / index).read_bytes():
                    return ""
        return "this kernel has no USB"

    def why_unwritable(self) -> str:
        """Return why nothing can be written; empty when it can, or when there is nothing to write yet."""
        shut = [hub for hub in self.root_hubs() if not os.access(self._devices / hub / "authorized_default", os.W_OK)]
        return "sysfs cannot be written here" if shut else ""

    def names(self) -> list[str]:
        """Return the names of all devices but root hubs, hubs before what is behind them."""
        return sorted((name for name in self._listed() if not is_root_hub(name)), key=lambda name: (name.count("."), name))

    def root_hubs(self) -> list[str]:
        """Return the names of all root hubs."""
        return sorted(name for name in self._listed() if is_root_hub(name))

    def device(self, name: str) -> Device | None:
        """Return a device; ``None`` when it is not there, or no longer."""
        number, authorized = self._number(name, "devnum"), self._number(name, "authorized")
        raw = self._read(self._file(name, "descriptors"), DESCRIPTORS_MAX_BYTES)
        if number is None or authorized is None or raw is None:
            return None
        words = [escaped(self._read(self._file(name, file)) or b"") for file in ("manufacturer", "product", "serial")]
        manufacturer, title, serial = words
        return Device(
            name=name,
            number=number,
            said=read_descriptors(raw),
            authorized=authorized != 0,
            manufacturer=manufacturer,
            title=title,
            serial=serial,
        )

    def _listed(self) -> list[str]:
        try:
            return [path.name for path in self._devices.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:  # no module has brought USB yet
            return []

    # ---- authorisation ---------------------------------------------------------------------------------------------------
    def authorize(self, name: str, *, allowed: bool) -> bool:
        """Let a device be used, or not.

        Returns:
            Whether it is there.

        Raises:
            KernelError: The kernel refused.
        """
        return self._write(self._file(name, "authorized"), int(allowed))

    def defaults(self) -> dict[str, int]:
        """Return by name what becomes of new devices: for each root hub, and for controllers to come (empty name)."""
        files = {"": self._parameter, **{hub: self._file(hub, "authorized_default") for hub in self.root_hubs()}}
        read = {name: self._whole_number(path) for name, path in files.items()}
        return {name: value for name, value in read.items() if value is not None}

    def set_default(self, name: str, value: int) -> bool:
        """Say what becomes of new devices; arguments as ``defaults`` returns them; returns and raises as ``authorize``."""
        return self._write(self._file(name, "authorized_default") if name else self._parameter, value)

    # ---- what must not be taken away ---------------------------------------------------------------------------------------
    def carriers(self) -> frozenset[str]:
        """Return the names of devices that carry the root file system or others that the machine needs, and hubs before them."""
        found = set[str]()
        for number in self._needed():
            found.update(self._carrying(self._sys / "dev/block" / number, _SLAVES_DEPTH_MAX))
        return frozenset(found)

    def _needed(self) -> Iterator[str]:
        table = self._read(self._mounts, _MOUNTS_MAX_BYTES)
        if table is None:
            raise KernelError(errno.ENOENT, f"read {self._mounts}")
        for line in table.splitlines():
            fields, _, rest = line.partition(b" - ")
            _, _, number, _, where, *_ = fields.split()
            if where not in _NEEDED:
                continue
            yield number.decode("ascii")
            source = rest.split()[1] if len(rest.split()) > 1 else b""
            if source.startswith(b"/dev/"):  # of btrfs, whose own number is no disk's
                with contextlib.suppress(OSError):
                    of_source = Path(os.fsdecode(source)).stat().st_rdev
                    yield f"{os.major(of_source)}:{os.minor(of_source)}"

    def _carrying(self, block: Path, depth: int) -> Iterator[str]:
        real = Path(os.path.realpath(block))
        yield from (part for part in real.parts if _NAME.fullmatch(part) and not is_root_hub(part))
        if depth and real.is_dir():
            for slave in sorted((real / "slaves").glob("*")):
                yield from self._carrying(slave, depth - 1)

    # ---- files -------------------------------------------------------------------------------------------------------------
    def _file(self, name: str, file: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a USB device")
        return self._devices / name / file

    def _number(self, name: str, file: str) -> int | None:
        return self._whole_number(self._file(name, file))

    def _whole_number(self, path: Path) -> int | None:
        raw = self._read(path)
        try:
            return None if raw is None else int(raw)
        except ValueError as err:
            raise KernelError(errno.EPROTO, f"read a number from {path}") from err

    @staticmethod
    def _read(path: Path, size: int = _ATTRIBUTE_MAX_BYTES) -> bytes | None:
        try:
            with path.open("rb") as file:
                return file.read(size)
        except OSError as err:
            if err.errno in _GONE:
                return None
            raise KernelError(err.errno or 0, f"read {path}") from err

    @staticmethod
    def _write(path: Path, value: int) -> bool:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(fd, f"{value}".encode("ascii"))
            finally:
                os.close(fd)
        except OSError as err:
            if err.errno in _GONE:
                return False
            raise KernelError(err.errno or 0, f"write {value} to {path}") from err
        return True
