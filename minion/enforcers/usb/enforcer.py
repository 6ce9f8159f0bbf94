"""USB device rules by the kernel's authorisation of devices.

Rules of this file:
- The kernel is listened to before devices are listed, so that none is missed; what is lost makes everything be looked at again.
- Every device is judged when rules change and when the kernel says something of it. Judging it again tells nothing.
- While rules may refuse something, a device waits, unauthorised, until it is judged. That outlives an agent that dies: new
  devices are not let in then (closed), and those that are there stay as they are.
- ``close`` has the kernel let new devices in again, since nobody is left to judge them; what was refused stays so, or each
  restart of the agent would let it in for a moment. The last rule taken away, and ``release``, put everything back.
Owns: threads, events, figures. Does not own: meaning (``common.policy.devices``), what is spared (``plan``), sysfs (``warden``).
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from garrison.common.errors import BackendUnsupportedError, GarrisonError, KernelError
from garrison.common.frames import RuleReport
from garrison.common.policy.devices import device_rules, may_refuse
from garrison.common.policy.rules import RuleSet, Verdict
from garrison.minion.enforcers.base import Emit, Enforcer, EnforcerStatus, Probe
from garrison.minion.enforcers.pump import Pump
from garrison.minion.enforcers.usb.holdings import HoldingsFile
from garrison.minion.enforcers.usb.plan import Outcome, judge
from garrison.minion.enforcers.usb.report import BACKEND, alert, report_rules
from garrison.minion.enforcers.usb.sysfs import Device, UsbTree, is_root_hub
from garrison.minion.enforcers.usb.uevents import UeventSocket, UeventSource
from garrison.minion.enforcers.usb.warden import Warden

__all__ = ["UsbEnforcer"]

_NO_RULES: Final = RuleSet()

_log = logging.getLogger(__name__)


class UsbEnforcer(Enforcer):
    """Makes USB device rules hold.

    Args:
        emit: Takes alerts.
        runtime_dir: Where what was changed is written down.
        tree: The machine's devices; those of sysfs when not given.
        listen: Opens what says that devices come and go.
    """

    name = BACKEND

    def __init__(
        self,
        emit: Emit,
        *,
        runtime_dir: Path,
        tree: UsbTree | None = None,
        listen: Callable[[], UeventSource] = UeventSocket,
    ) -> None:
        self._emit, self._runtime_dir = emit, runtime_dir
        self._tree, self._listen = tree or UsbTree(), listen
        self._lock = threading.RLock()
        self._probe: Probe | None = None
        self._missing = ""
        self._rules = _NO_RULES
        self._warden: Warden | None = None
        self._pump: Pump | None = None
        self._told: dict[str, tuple[int, str, Verdict, str]] = {}  # by device: what was told of it last
        self._failed: dict[str, str] = {}  # by device: what the kernel did not do
        self._trouble = ""
        self._counts: Counter[str] = Counter()

    # ---- Enforcer ------------------------------------------------------------------------------------------------------
    def probe(self) -> Probe:
        """Listen to the kernel, and look whether there can be USB devices and sysfs can be written, once."""
        if self._probe is None:
            self._missing = self._tree.why_missing()
            try:
                self._listen().close()
                unwritable = self._tree.why_unwritable()
                self._probe = Probe(ok=not unwritable, reason=unwritable or self._missing)
            except GarrisonError as err:
                self._probe = Probe(ok=False, reason=str(err))
        return self._probe

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return what becomes of each device rule."""
        self.probe()
        return report_rules(rules, missing=self._missing)

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Judge every device by the device rules of ``rules``, those that are there and those to come."""
        probe = self.probe()
        if not probe.ok:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}")
        ended = None
        with self._lock:
            before, self._rules = self._rules, rules
            try:
                if device_rules(rules):
                    self._hold()
                else:
                    ended = self._let_go()
            except GarrisonError:
                self._rules = before
                self._go_back()
                raise
            self._trouble = ""
        if ended is not None:
            ended.close()
        return report_rules(rules, missing=self._missing)

    def status(self) -> EnforcerStatus:
        """Return figures since the agent's start."""
        with self._lock:
            trouble, failed, pump, warden = self._trouble, dict(self._failed), self._pump, self._warden
            figures = {"refused_now": warden.refused, "foreign_buses": warden.foreign_buses} if warden and pump else {}
            counters = {**self._counts, **figures}
        if failed:
            trouble = trouble or f"the kernel did not do as told with {', '.join(sorted(failed))}: {next(iter(failed.values()))}"
        if pump is not None and (not pump.alive or pump.failed):
            trouble = trouble or "new devices are not judged: see the log"
        return EnforcerStatus(backend=BACKEND, healthy=not trouble, detail=trouble, counters=counters)

    def close(self) -> None:
        """Judge nothing any more; new devices are the kernel's to let in. What was refused stays refused."""
        self._stop_listening()
        with self._lock:
            self._rules = _NO_RULES
            self._told.clear()
            if self._warden is None:
                return
            try:
                self._warden.open()
            except GarrisonError as err:
                # Closed is the safe side; the next agent, or garrison enforcer release, takes it from the record.
                _log.error("usb=shut error=%s", err)
            self._warden = None

    def release(self) -> None:
        """Put back what was there before the first rule, whoever changed it: this process or one before."""
        self._stop_listening()
        with self._lock:
            self._rules = _NO_RULES
            self._told.clear()
            (self._warden or Warden(self._tree, HoldingsFile(self._runtime_dir))).restore()
            self._warden = None

    # ---- rules -----------------------------------------------------------------------------------------------------------
    def _hold(self) -> None:
        if self._pump is None:
            uevents = self._listen()
            self._pump = Pump(uevents, lambda: self._on_uevents(uevents), name="usb-uevents")
        if self._warden is None:
            self._warden = Warden(self._tree, HoldingsFile(self._runtime_dir))
        self._guard(self._warden)
        self._look_at_all(present=True)

    def _guard(self, warden: Warden) -> None:
        if may_refuse(self._rules):
            warden.shut()
        else:
            warden.open()

    def _let_go(self) -> Pump | None:
        """Put everything back; returns the thread that is to be ended without the lock."""
        pump, self._pump = self._pump, None
        if self._warden is not None:
            self._warden.restore()
        self._told.clear()
        self._failed.clear()
        return pump

    def _go_back(self) -> None:
        try:
            if device_rules(self._rules):
                self._hold()
            elif self._warden is not None:
                self._warden.restore()
        except GarrisonError as err:
            self._trouble = f"devices could not be put back as they were: {err}"
            _log.error("usb=changed error=%s", err)

    def _stop_listening(self) -> None:
        with self._lock:
            pump, self._pump = self._pump, None
        if pump is not None:  # without the lock: its last turn may want it
            pump.close()

    # ---- devices ---------------------------------------------------------------------------------------------------------
    def _on_uevents(self, uevents: UeventSource) -> None:
        news = uevents.read()
        self._counts.update(forged=news.forged, overruns=int(news.overrun))
        with self._lock:
            if self._warden is None or not device_rules(self._rules):
                return
            try:
                for uevent in news.uevents:
                    if uevent.gone:
                        self._forget(self._warden, uevent.device)
                if news.uevents:
                    self._guard(self._warden)
                for name in dict.fromkeys(uevent.device for uevent in news.uevents):
                    if not is_root_hub(name):
                        self._look_at(name, present=False)
                if news.overrun:
                    self._look_at_all(present=False)
                self._trouble = ""
            except GarrisonError as err:
                self._trouble = f"devices could not be judged: {err}"
                _log.error("usb=unjudged error=%s", err)

    def _look_at_all(self, *, present: bool) -> None:
        for name in self._tree.names():
            self._look_at(name, present=present)

    def _look_at(self, name: str, *, present: bool) -> None:
        if self._warden is None or (device := self._read(name)) is None:
            return
        outcome = judge(self._rules, device, self._tree.carriers())
        try:
            result = self._made_true(self._warden, device, outcome)
            self._failed.pop(name, None)
        except KernelError as err:
            if err.errno in (errno.ENOSPC, errno.EROFS):  # the record or sysfs as a whole, not this device
                raise
            self._note_failure(name, err)
            result = errno.errorcode.get(err.errno or 0, str(err.errno))
        self._tell(device, outcome, result, present=present)

    def _read(self, name: str) -> Device | None:
        try:
            return self._tree.device(name)
        except KernelError as err:  # one that cannot be looked at is not let in, and must not keep others out
            self._note_failure(name, err)
            return None

    def _note_failure(self, name: str, err: KernelError) -> None:
        self._failed[name] = str(err)
        self._counts["failed"] += 1

    @staticmethod
    def _made_true(warden: Warden, device: Device, outcome: Outcome) -> str:
        if outcome.refused:
            warden.refuse(device)
            return "refused"
        return "passed" if warden.let(device) else "left"

    def _tell(self, device: Device, outcome: Outcome, result: str, *, present: bool) -> None:
        verdict, rule = outcome.decision.verdict, outcome.decision.rule
        tale = (device.number, rule.id if rule else "", verdict, result)
        if self._told.get(device.name) == tale:
            return
        self._told[device.name] = tale
        self._counts.update(["judged", *(["spared"] if outcome.spared else []), *(["left"] if result == "left" else [])])
        self._counts[{Verdict.BLOCK: "blocked", Verdict.AUDIT: "audited", Verdict.ALLOW: "allowed"}[verdict]] += 1
        if verdict is not Verdict.ALLOW:
            self._emit(alert(device, outcome, result=result, present=present))

    def _forget(self, warden: Warden, name: str) -> None:
        warden.forget(name)
        self._told.pop(name, None)
        self._failed.pop(name, None)
