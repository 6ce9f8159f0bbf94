"""What this node holds at this moment, and why it may be other than what it was assigned.

Rules of this file:
- In this order: break-glass (nothing is enforced), safe mode (the generation before, or nothing), the newest stored generation.
- A new generation is looked over before the kernel sees it (``lockout``), applied, and only then committed. What fails changes
  nothing: the previous one stays enforced and on disk.
- Nothing here weakens a node silently: each way in and out is an event, and stands in the status until it is over.
- Any thread may call. ``look`` never waits for ``switch``.
Owns: the decision and what follows for the stack. Does not own: counting (``boot``), finding (``break_glass``, ``release_note``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import BundleError, GarrisonError
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import RuleReport
from garrison.common.policy.never_deny import Need
from garrison.common.policy.normalise import Normalised
from garrison.common.policy.rules import RuleSet
from garrison.minion import boot, release_note
from garrison.minion.boot import BootLog, BootRecord, Footing
from garrison.minion.break_glass import Glass, look_for_glass
from garrison.minion.bundles import BundleStore, Generation, Staged
from garrison.minion.enforcers.stack import EnforcerStack
from garrison.minion.lockout import refuse_lockouts

__all__ = ["Duty", "apply_event", "tamper_event"]

_WORST: Final = 9  # severity of "nothing is enforced"

_log = logging.getLogger(__name__)


class Duty:
    """The generation that is held, and what stands in its way.

    Args:
        directory: The minion's data directory.
        boot_id: The kernel's id of this boot.
        store: Stored generations; ``None`` before the node joined a master.
        stack: Backends that are to hold them.
        emit: Takes events.
        needs: What the agent itself needs; see ``lockout.local_needs``.
        glass: Looks for broken glass.
        healthy_s: Seconds after which a boot counts as good.

    Attributes:
        generation: What is enforced; ``None`` for nothing.
        rules: Its compile report.
        error: Why the last attempt to apply failed; empty when it did not.
        obstacle: Why not the newest stored generation is enforced; empty when it is.
        glass_broken: Nothing may be applied.
    """

    def __init__(
        self,
        directory: Path,
        boot_id: str,
        *,
        store: BundleStore | None,
        stack: EnforcerStack,
        emit: Callable[[Event], None],
        needs: tuple[Need, ...] = (),
        glass: Callable[[], Glass] = look_for_glass,
        healthy_s: float = limits.BOOT_HEALTHY_S,
    ) -> None:
        self._directory, self._boot, self._log = directory, boot_id, BootLog(directory)
        self._store, self._stack, self._emit, self._needs = store, stack, emit, needs
        self._look_for_glass, self._healthy_s = glass, healthy_s
        self._lock = threading.Lock()
        self._glass, self._record = Glass(), BootRecord()
        self._since = time.monotonic()
        self._uncounted = ""
        self.generation: Generation | None = None
        self.rules: tuple[RuleReport, ...] = ()
        self.error = ""
        self.obstacle = ""

    @property
    def glass_broken(self) -> bool:
        """Whether somebody said that nothing is to be enforced."""
        return self._glass.broken

    @property
    def safe_mode(self) -> bool:
        """Whether boots failed, so that the newest generation is not trusted."""
        return self._record.safe_mode and not self._glass.broken

    # ---- from the start on ------------------------------------------------------------------------------------------------
    def take_up(self) -> None:
        """Enforce what this node may start with."""
        with self._lock:
            self._note_release(ended=True)
            self._glass = self._look_for_glass()
            self._tell_glass(Glass())
            self._take_up()

    def look(self) -> bool:
        """Follow break-glass, a confirmation and a release; call it every few seconds as long as the agent turns.

        Returns:
            Whether something changed that the master should know.
        """
        if not self._lock.acquire(blocking=False):
            return False  # a generation is being applied: soon enough the next time
        try:
            before, self._glass = self._glass, self._look_for_glass()
            if before != self._glass:
                self._tell_glass(before)
            if before.broken != self._glass.broken or self._confirmed():
                self._take_up()
                if self.generation is not None:
                    self._emit(apply_event("applied", self.generation.number, self.generation.bundle, "", self.rules))
                return True
            if self._note_release(ended=False):
                return True
            self._count_health()
            return False
        finally:
            self._lock.release()

    def _take_up(self) -> None:
        # Anything but a running agent's own rules may be in the kernel now: what is said here has to become true there.
        self._since, self.obstacle = time.monotonic(), ""
        if self._glass.broken:
            self._hold_nothing(f"break-glass: {self._glass.why}")
            return
        if self._store is None:
            return
        self._record = self._counted()
        try:
            self._hold(self._store, self._record)
        except (GarrisonError, OSError) as err:
            # Fail-open, and loud: the kernel refused what it took before, or no stored generation verifies any more. An agent
            # that died of it would start again into the same error and could not be told anything better.
            self.error = str(err)
            self.obstacle = f"failed: {err}"
            _log.error("applied=none error=%s", err)
            self._emit(apply_event("failed", 0, "", str(err)))

    def _hold(self, store: BundleStore, record: BootRecord) -> None:
        wanted = store.current() if record.footing is Footing.SOUND else None
        if record.safe_mode:
            wanted = self._in_safe_mode(store, record)
        if wanted is None:
            if record.safe_mode:
                self._hold_nothing(self.obstacle)
            return
        self.rules = self._stack.apply(wanted.normalised())
        self.generation, self.error = wanted, ""
        _log.info("applied=boot generation=%s bundle=%s stale=%s", wanted.number, wanted.bundle, wanted.stale)

    def _in_safe_mode(self, store: BundleStore, record: BootRecord) -> Generation | None:
        wanted = None
        why = f"{limits.BOOT_FAILURES_MAX} boots in a row never became healthy"
        if record.footing is Footing.PREVIOUS:
            try:
                wanted = store.previous()
            except BundleError as err:
                why = f"{why}, and {err}"
        else:
            why = f"{why}, nor did one with the generation before"
        held = f"generation {wanted.number}, the one before the newest," if wanted else "nothing"
        self.obstacle = f"safe mode: {held} is enforced: {why}"
        _log.error("safe_mode=%s detail=%s", record.footing, self.obstacle)
        self._emit(tamper_event("safe-mode", self.obstacle, severity=_WORST))
        return wanted

    def _hold_nothing(self, obstacle: str) -> None:
        gone = self._stack.release()
        self.generation, self.rules, self.error = None, (), ""
        self.obstacle = obstacle if gone else f"{obstacle}; not all of it could be taken out of the kernel"
        _log.error("enforcement=none reason=%s", self.obstacle)

    # ---- something new -----------------------------------------------------------------------------------------------------
    def switch(self, staged: Staged) -> None:
        """Apply a staged generation and commit it; leaves safe mode, and what somebody released is enforced again.

        Raises:
            GarrisonError: It is not enforced and not committed; the previous one is, as before.
        """
        with self._lock:
            if self._store is None or self._glass.broken:
                raise BundleError(f"nothing is applied now: {self.obstacle or 'this node joined no master'}")
            new = staged.generation
            self._refuse_doubted(self._store, new)
            refuse_lockouts(new.documents(), new.facts, new.share.postures, self._needs)
            self._apply_and_commit(self._store, staged)
            self._since = time.monotonic()
            self._record = self._changed(boot.applied)

    def _refuse_doubted(self, store: BundleStore, new: Generation) -> None:
        if not self._record.safe_mode:
            return
        doubted = store.current()
        if doubted is not None and new.number <= doubted.number:
            raise BundleError(
                f"this node is in safe mode and does not take generation {new.number} again: {self.obstacle}",
                hint="assign another policy, or run on the node: garrison minion confirm",
            )

    def _apply_and_commit(self, store: BundleStore, staged: Staged) -> None:
        # The kernel first: what it refuses is never committed. What cannot be committed is taken back, so that a restart
        # does not silently bring back other rules than those that were reported.
        rules = self._stack.apply(staged.generation.normalised())
        try:
            self.generation = store.commit(staged)
        except GarrisonError:
            before = self.generation
            self.rules = self._stack.apply(before.normalised() if before else Normalised(rules=RuleSet()))
            raise
        self.rules, self.error, self.obstacle = rules, "", ""

    # ---- counting ----------------------------------------------------------------------------------------------------------
    def _counted(self) -> BootRecord:
        return self._changed(lambda record: boot.begin(record, self._boot))

    def _count_health(self) -> None:
        due = time.monotonic() - self._since >= self._healthy_s
        in_the_way = self.obstacle and not self._record.safe_mode  # in safe mode, what is held is what was to be held
        if due and self._store is not None and not (in_the_way or self.error or self._record.healthy):
            self._record = self._changed(boot.healthy)

    def _confirmed(self) -> bool:
        # Only safe mode waits for a word of somebody else; the record is read for that alone.
        return self.safe_mode and not self._log.read().safe_mode

    def _changed(self, step: Callable[[BootRecord], BootRecord]) -> BootRecord:
        try:
            record = self._log.change(step)
        except GarrisonError as err:
            if str(err) != self._uncounted:
                _log.error("boot=uncounted error=%s", err)
                data: dict[str, Scalar | list[Scalar]] = {"state": "degraded", "part": "boot-counter", "detail": str(err)}
                self._emit(Event(lane=Lane.STATE, kind=Kind.AGENT, severity=7, data=data))
            self._uncounted = str(err)
            return step(self._log.read())
        self._uncounted = ""
        return record

    # ---- telling -----------------------------------------------------------------------------------------------------------
    def _tell_glass(self, before: Glass) -> None:
        glass = self._glass
        if glass.broken:
            self._emit(tamper_event("break-glass", glass.why, severity=_WORST))
        elif before.broken:
            self._emit(tamper_event("break-glass-over", glass.why or before.why, severity=5))
        elif glass.why:
            self._emit(tamper_event("break-glass-ignored", glass.why, severity=6))

    def _note_release(self, *, ended: bool) -> bool:
        """Tell that somebody took kernel enforcement away; ``ended``: what is enforced is about to be put in place again."""
        note = release_note.take(self._directory)
        if note is None:
            return False
        text = f"kernel enforcement was released by user {note.uid} (login {note.login_uid}) with garrison enforcer release"
        self._emit(tamper_event("released", text, severity=_WORST, uid=note.uid, auid=note.login_uid, at=note.at_ns))
        if not ended:
            self._hold_nothing(f"released: {text}; until the agent is restarted or a new generation is applied")
        return True


def tamper_event(state: str, detail: str, *, severity: int, **more: Scalar) -> Event:
    """Return the event that says that enforcement is weaker than it should be."""
    text = detail[: limits.STRING_MAX_CHARS]
    return Event(lane=Lane.ALERT, kind=Kind.TAMPER, severity=severity, data={"state": state, "detail": text, **more})


def apply_event(state: str, generation: int, bundle: str, error: str, rules: tuple[RuleReport, ...] = ()) -> Event:
    """Return the event that says what became of a generation; ``rules`` are counted by status."""
    data: dict[str, Scalar | list[Scalar]] = {"state": state, "generation": generation, "bundle": bundle, "error": error[:1000]}
    for rule in rules:
        data[f"rules_{rule.status}"] = int(str(data.get(f"rules_{rule.status}", 0))) + 1
    return Event(lane=Lane.STATE, kind=Kind.APPLY, severity=3 if state == "applied" else 8, data=data)
