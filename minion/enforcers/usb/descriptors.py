"""What a USB device says it can do, from its raw descriptors. Pure; every byte comes from the device and may be hostile.

Rules of this file:
- Every interface of every configuration and alternate setting counts: programs can switch between them without asking again.
- The kernel hands out whole descriptors only, so what does not fit is not a device that it could use either: ``whole`` is false.
Source: USB 2.0, section 9.6; Linux's ``usb_parse_configuration`` and ``read_descriptors``.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from garrison.common.policy.devices import DeviceFunction

__all__ = ["DESCRIPTORS_MAX_BYTES", "Said", "read_descriptors"]

_DEVICE: Final = struct.Struct("<BBHBBBBHHHBBBB")
_DEVICE_TYPE, _INTERFACE_TYPE = 1, 4
_INTERFACE_BYTES: Final = 9
_CLASS_AT: Final = 5  # of an interface; subclass and protocol follow
_HEADER_BYTES: Final = 2  # length, type
_FUNCTIONS_MAX: Final = 256  # no honest device has a tenth of it; each is weighed against each rule
DESCRIPTORS_MAX_BYTES: Final = _DEVICE.size + 8 * 0xFFFF  # Linux takes at most eight configurations


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says.

    Attributes:
        vendor: Number of its vendor; -1 when it could not be read.
        product: The vendor's number of the product; likewise.
        functions: Each once, sorted.
        whole: All of it could be read.
    """

    vendor: int = -1
    product: int = -1
    functions: tuple[DeviceFunction, ...] = ()
    whole: bool = False


def read_descriptors(raw: bytes) -> Said:
    """Return what a device descriptor, followed by those of its configurations, says."""
    if len(raw) < _DEVICE.size or raw[0] < _DEVICE.size or raw[1] != _DEVICE_TYPE:
        return Said()
    _, _, _, class_, subclass, protocol, _, vendor, product, *_ = _DEVICE.unpack_from(raw)
    functions, whole = _interfaces(raw[_DEVICE.size :])
    if class_:
        functions.add(DeviceFunction(class_, subclass, protocol, whole=True))
    return Said(vendor=vendor, product=product, functions=tuple(sorted(functions)), whole=whole)


def _interfaces(raw: bytes) -> tuple[set[DeviceFunction], bool]:
    found = set[DeviceFunction]()
    at = 0
    while at < len(raw):
        length = raw[at]
        if length < _HEADER_BYTES or at + length > len(raw) or len(found) >= _FUNCTIONS_MAX:
            return found, False
        if raw[at + 1] == _INTERFACE_TYPE and length >= _INTERFACE_BYTES:
            found.add(DeviceFunction(*raw[at + _CLASS_AT : at + _CLASS_AT + 3]))
        at += length
    return found, True
