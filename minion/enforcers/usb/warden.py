"""Makes what was decided of devices true in sysfs, and puts back what was there before.

    new device ─► default 2: not authorised, but for internal ports ─► decided ─► authorised, or left so and noted as refused

Rules of this file:
- While rules may refuse something, new devices on our buses wait for their decision. A bus is ours if new devices were
  authorised on it before; on others somebody else decides who comes in, and we only refuse.
- Nothing is authorised that somebody else keeps out: what was not authorised when the bus became ours, or is so no longer
  although we let it pass.
- Noted before it is done, so that it can be undone by another process.
Owns: ``authorized`` and ``authorized_default``. Does not own: decisions, threads, events.
"""

from __future__ import annotations

from typing import Final

from garrison.minion.enforcers.usb.holdings import Holdings, HoldingsFile, Key
from garrison.minion.enforcers.usb.sysfs import Device, UsbTree

__all__ = ["Warden"]

_OPEN: Final = frozenset({1, -1})  # of new devices: authorised; -1 is the kernel's word for its own default
_INTERNAL: Final = 2  # only on ports that the firmware calls hard-wired


class Warden:
    """Authorises devices, or not.

    Args:
        tree: The machine's devices.
        file: Record of what was changed; one that another process left is taken over.
    """

    def __init__(self, tree: UsbTree, file: HoldingsFile) -> None:
        self._tree, self._file = tree, file
        self._held = file.read()
        self._passed = set[Key]()

    @property
    def refused(self) -> int:
        """How many devices may not be used because we said so."""
        return len(self._held.refused)

    @property
    def foreign_buses(self) -> int:
        """On how many buses somebody else decides who comes in."""
        return sum(name not in self._held.defaults for name in self._tree.defaults() if name)

    def shut(self) -> None:
        """Have new devices wait for their decision from now on, also on buses that are new. Cheap when it is so already.

        Raises:
            KernelError: The kernel refused.
        """
        present = self._tree.defaults()
        ours = {name: value for name, value in present.items() if value in _OPEN}
        if not ours:
            return
        buses = {name for name in ours if name and name not in self._held.defaults}
        foreign = {device.key for device in self._devices() if device.root_hub in buses and not device.authorized}
        # One that somebody has opened meanwhile is shut again, and what it was at first stays what it goes back to.
        self._note(defaults={**ours, **self._held.defaults}, foreign=self._held.foreign | (foreign - self._held.refused))
        for name in ours:
            self._tree.set_default(name, _INTERNAL)

    def open(self) -> None:
        """Have new devices decided by whoever did before us. Those that are there stay as they are; raises as ``shut``."""
        present = self._tree.defaults()
        for name, value in self._held.defaults.items():
            if present.get(name) == _INTERNAL:  # else somebody has changed it since
                self._tree.set_default(name, value)
        self._note(defaults={})

    def refuse(self, device: Device) -> None:
        """Keep a device from being used; raises as ``shut``."""
        self._passed.discard(device.key)
        if device.authorized or _is_ours(device, self._held):
            self._note(refused=self._held.refused | {device.key})
        if device.authorized:
            self._tree.authorize(device.name, allowed=False)

    def let(self, device: Device) -> bool:
        """Let a device be used, unless somebody else keeps it from that; raises as ``shut``.

        Returns:
            Whether it may be used now.
        """
        if not device.authorized:
            if device.key in self._passed and device.key not in self._held.refused:
                self._note(foreign=self._held.foreign | {device.key})
            if not _is_ours(device, self._held):
                return False
            self._tree.authorize(device.name, allowed=True)
            self._note(refused=self._held.refused - {device.key})
        self._passed.add(device.key)
        return True

    def forget(self, name: str) -> None:
        """Take note that a device or a bus is gone."""
        self._passed = {key for key in self._passed if key[0] != name}
        without = self._held.without(name)
        self._note(defaults=without.defaults, refused=without.refused, foreign=without.foreign)

    def restore(self) -> None:
        """Put back what was there before us; raises as ``shut``."""
        before = self._held
        self.open()
        for device in self._devices():  # after it: what comes from now on is let in by the kernel
            if not device.authorized and _is_ours(device, before):
                self._tree.authorize(device.name, allowed=True)
        self._note(refused=frozenset(), foreign=frozenset())
        self._passed.clear()

    def _devices(self) -> list[Device]:
        return [device for name in self._tree.names() if (device := self._tree.device(name)) is not None]

    def _note(
        self,
        *,
        defaults: dict[str, int] | None = None,
        refused: frozenset[Key] | None = None,
        foreign: frozenset[Key] | None = None,
    ) -> None:
        held = Holdings(
            defaults=self._held.defaults if defaults is None else defaults,
            refused=self._held.refused if refused is None else refused,
            foreign=self._held.foreign if foreign is None else foreign,
        )
        if held != self._held:
            self._file.write(held)
            self._held = held


def _is_ours(device: Device, held: Holdings) -> bool:
    """Whether it is by us that a device that is not authorised is not."""
    if device.key in held.refused:
        return True
    return device.root_hub in held.defaults and device.key not in held.foreign
