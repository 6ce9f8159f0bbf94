"""What this node holds at this moment, and why it may be other than what it was assigned.

Rules of this file:
- In this order: break-glass (nothing is enforced), safe mode (the generation before, or nothing), the newest stored generation.
- A new generation is looked over before the kernel sees it (``lockout``), noted on disk, put under a deadman and applied on
  trial. Only when it was confirmed it is committed; else the previous one is enforced again, which is still the one on disk.
- Nothing here weakens a node silently: each way in and out is an event, and stands in the status until it is over.
- Any thread may call. ``look`` never waits for a generation that is being applied.
Owns: the decision and what follows for the stack. Does not own: counting (``boot``), finding (``break_glass``, ``release_note``),
whether a trial ends well (``tryout``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import BundleError, GarrisonError, KernelError
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import RuleReport
from garrison.common.policy.never_deny import Need
from garrison.minion import boot, release_note
from garrison.minion.arming import Arm, DeadmanRecord
from garrison.minion.boot import BootLog, BootRecord, Footing
from garrison.minion.break_glass import Glass, look_for_glass
from garrison.minion.bundles import BundleStore, Generation, Staged
from garrison.minion.enforcers.stack import EnforcerStack
from garrison.minion.lockout import refuse_lockouts
from garrison.minion.trial import OnTrial, OnTrialEnd, apply_event, how_it_ended, tamper_event
from garrison.minion.workloads.model import Workload

__all__ = ["Duty"]

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
        workloads: What runs on this node, as it is known at the moment.
        arm: Starts a deadman; ``None`` where nothing is ever tried.
        glass: Looks for broken glass.
        healthy_s: Seconds after which a boot counts as good.

    Attributes:
        generation: What is enforced, and was confirmed; ``None`` for nothing.
        rules: Its compile report.
        trial: What is enforced instead for the moment, on trial; ``None`` for nothing.
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
        workloads: Callable[[], Sequence[Workload]] = tuple,
        arm: Arm | None = None,
        glass: Callable[[], Glass] = look_for_glass,
        healthy_s: float = limits.BOOT_HEALTHY_S,
    ) -> None:
        self._directory, self._boot, self._log = directory, boot_id, BootLog(directory)
        self._store, self._stack, self._emit = store, stack, emit
        self._needs, self._workloads = needs, workloads
        self._arm, self._look_for_glass, self._healthy_s = arm, glass, healthy_s
        self._lock = threading.Lock()
        self._glass, self._record = Glass(), BootRecord()
        self._since = time.monotonic()
        self._uncounted = ""
        self.generation: Generation | None = None
        self.rules: tuple[RuleReport, ...] = ()
        self.trial: OnTrial | None = None
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
    def settle(self, record: DeadmanRecord | None) -> OnTrialEnd | None:
        """Decide what becomes of a generation that was on trial when an agent before this one ended; call it before ``take_up``.

        Args:
            record: What the last deadman left.

        Returns:
            What is not to be tried again, and why; ``None`` when there is no such thing.
        """
        store = self._store
        trial = store.on_trial if store else None
        if store is None or trial is None or trial.over:
            return None
        why, for_good = how_it_ended(trial, record, self._boot)
        if not for_good:
            store.end_trial(counts=True)
            self._emit(apply_event("interrupted", trial.generation, trial.bundle, why))
            return None
        store.reject_trial(why)
        self._emit(apply_event("reverted", trial.generation, trial.bundle, why))
        return OnTrialEnd(trial.generation, trial.bundle, why)

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
        self._drop_trial("something else is to be enforced")
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
        self._drop_trial(obstacle)
        gone = self._stack.release()
        self.generation, self.rules, self.error = None, (), ""
        self.obstacle = obstacle if gone else f"{obstacle}; not all of it could be taken out of the kernel"
        _log.error("enforcement=none reason=%s", self.obstacle)

    # ---- something new -----------------------------------------------------------------------------------------------------
    def begin(self, staged: Staged) -> OnTrial:
        """Apply a staged generation on trial, under a deadman; ``keep`` or ``give_up`` ends that.

        Raises:
            GarrisonError: It is not enforced; the previous one is, as before.
        """
        with self._lock:
            if self._store is None or self._arm is None or self._glass.broken:
                raise BundleError(f"nothing is applied now: {self.obstacle or 'this node joined no master'}")
            if self.trial is not None:
                raise BundleError(f"generation {self.trial.generation.number} is on trial")
            new = staged.generation
            self._refuse_doubted(self._store, new)
            refuse_lockouts(new.documents(), new.facts, new.share.postures, self._needs, self._workloads())
            self._store.begin_trial(staged, self._boot)
            try:
                self.trial = self._try(self._arm, staged)
            except (GarrisonError, OSError):
                self._store.end_trial(counts=False)
                raise
            self._emit(apply_event("pending", new.number, new.bundle, "", self.trial.rules))
            return self.trial

    def _try(self, arm: Arm, staged: Staged) -> OnTrial:
        new, prepared = staged.generation, self._stack.begin(staged.generation.normalised())
        try:
            armed = arm(
                generation=new.number,
                digest=new.bundle,
                boot=self._boot,
                timeout_s=new.confirm_s,
                writes=prepared.writes,
            )
        except (GarrisonError, OSError):
            self._stack.keep()  # nothing was applied yet
            raise
        try:
            return OnTrial(staged, armed, prepared.apply())
        except (GarrisonError, OSError) as err:
            self._stack.go_back()
            armed.stand_down(str(err))
            raise

    def keep(self, why: str) -> None:
        """Commit what is on trial: it was confirmed. Leaves safe mode, and what somebody released is enforced again.

        Raises:
            GarrisonError: It cannot be kept, and the previous one is enforced again.
        """
        with self._lock:
            trial, store = self._tried(), self._store
            try:
                # The deadman first: once it is gone nobody goes back behind the disk's back. If this process ends in between, the
                # disk still has the one before, and the next start goes by that.
                if store is None or not trial.armed.disarm(trial.generation.bundle):
                    raise KernelError(0, "disarm the deadman in time")
                committed = store.commit(trial.staged)
            except GarrisonError as err:
                self._end_trial(trial, f"it was confirmed and could not be kept: {err}", quarantine=False)
                raise
            self._stack.keep()
            self.trial, self.generation, self.rules, self.error, self.obstacle = None, committed, trial.rules, "", ""
            self._since = time.monotonic()
            self._record = self._changed(boot.applied)
            _log.info("confirmed=%s bundle=%s why=%s", committed.number, committed.bundle, why)

    def give_up(self, why: str, *, quarantine: bool = True) -> OnTrialEnd:
        """Enforce again what was enforced before; ``quarantine``: what was on trial is not taken again.

        Raises:
            BundleError: Nothing is on trial any more.
        """
        with self._lock:
            trial = self._tried()
            self._end_trial(trial, why, quarantine=quarantine)
            return OnTrialEnd(trial.generation.number, trial.generation.bundle, why)

    def _tried(self) -> OnTrial:
        if self.trial is None:
            raise BundleError("nothing is on trial any more")
        return self.trial

    def _drop_trial(self, why: str) -> None:
        if self.trial is not None:
            self._end_trial(self.trial, why, quarantine=False)

    def _end_trial(self, trial: OnTrial, why: str, *, quarantine: bool) -> None:
        # The kernel first; a disk that takes no note must not keep it waiting.
        number, bundle = trial.generation.number, trial.generation.bundle
        self.trial = None
        if not self._stack.go_back():
            trial.armed.go_back(f"{why}; the agent could not go back by itself")  # which ends this process
        trial.armed.stand_down(why)
        if self._store is not None and quarantine:
            self._store.reject_trial(why)
        elif self._store is not None:
            self._store.end_trial(counts=False)
        _log.error("reverted=%s bundle=%s quarantined=%s why=%s", number, bundle, quarantine, why)
        self._emit(apply_event("reverted" if quarantine else "interrupted", number, bundle, why))

    def close(self) -> None:
        """End a trial without a verdict: the agent is about to end in order."""
        with self._lock:
            self._drop_trial("the agent was told to end before it was confirmed")

    def _refuse_doubted(self, store: BundleStore, new: Generation) -> None:
        if not self._record.safe_mode:
            return
        doubted = store.current()
        if doubted is not None and new.number <= doubted.number:
            raise BundleError(
                f"this node is in safe mode and does not take generation {new.number} again: {self.obstacle}",
                hint="assign another policy, or run on the node: garrison minion confirm",
            )

    # ---- counting ----------------------------------------------------------------------------------------------------------
    def _counted(self) -> BootRecord:
        return self._changed(lambda record: boot.begin(record, self._boot))

    def _count_health(self) -> None:
        due = time.monotonic() - self._since >= self._healthy_s
        in_the_way = self.obstacle and not self._record.safe_mode  # in safe mode, what is held is what was to be held
        if due and self._store is not None and self.trial is None and not (in_the_way or self.error or self._record.healthy):
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
        who = {"uid": note.uid, "auid": note.login_uid, "at": note.at_ns, "ordered": note.ordered}
        self._emit(tamper_event("released", text, severity=_WORST, **who))
        if not ended:
            self._hold_nothing(f"released: {text}; until the agent is restarted or a new generation is applied")
        return True
