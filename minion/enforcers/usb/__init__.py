"""USB device rules by the kernel's own authorisation of devices, in sysfs."""

from garrison.minion.enforcers.usb.enforcer import UsbEnforcer

__all__ = ["UsbEnforcer"]
