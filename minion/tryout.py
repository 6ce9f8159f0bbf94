"""Looks after the generation on trial: asks the node, the master and people, and ends the trial one way or the other.

Rules of this file:
- Probes, the master and notes of people are asked side by side, so that one that hangs delays no verdict.
- The master is asked over a connection of its own, made for that; what was connected before proves nothing.
- A trial ends exactly once; whoever waits for that is told how.
Owns: asking, and when. Does not own: the verdict (``verdict``), what it does (``duty``), what is told to the master (``agent``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import GarrisonError, LinkError
from garrison.minion.arming import boottime
from garrison.minion.bundles import Staged
from garrison.minion.confirm_note import take_confirmation
from garrison.minion.duty import Duty
from garrison.minion.link.peer import MasterRefusedError
from garrison.minion.probes import Probes
from garrison.minion.trial import OnTrial, OnTrialEnd
from garrison.minion.verdict import Judgement, Known, Origin, Verdict, judge, needs_master, soft_deadline

__all__ = ["AskMaster", "Tryout"]

_AFTER_GOOD_S: Final = 0.1
_WHEN_WELL_S: Final = 5.0  # what is waited for then is somebody's word; sshd takes many greetings without a login for an attack
_AFTER_BAD_S: Final = 1.0
_LOOK_S: Final = 0.5

AskMaster = Callable[[OnTrial], Awaitable[None]]
"""Returns when the master has confirmed. Raises ``MasterRefusedError``, or ``LinkError`` when it could not be asked."""

_log = logging.getLogger(__name__)


class Tryout:
    """At most one trial at a time.

    Args:
        duty: Applies, keeps and gives up.
        directory: The agent's data directory.
        probes: Of this node.
    """

    def __init__(self, duty: Duty, directory: Path, probes: Probes) -> None:
        self._duty, self._directory, self._probes = duty, directory, probes
        self._task: asyncio.Task[None] | None = None
        self._known, self._news = Known(), asyncio.Event()
        self._ending = asyncio.Lock()

    async def begin(
        self, staged: Staged, origin: Origin, *, ask: AskMaster, ended: Callable[[OnTrialEnd | None], Awaitable[None]]
    ) -> OnTrial:
        """Put ``staged`` on trial and return; ``ended`` is called later with what was taken back, ``None`` when it was kept.

        Raises:
            GarrisonError: It is not enforced.
        """
        probes = await asyncio.to_thread(self._probes.that_work)
        await asyncio.to_thread(take_confirmation, self._directory)  # one that was left before speaks of something else
        trial = await asyncio.to_thread(self._duty.begin, staged)
        self._known, self._news = Known(), asyncio.Event()
        self._task = asyncio.create_task(self._look_after(trial, origin, probes, ask, ended))
        self._task.add_done_callback(_log_bug)
        return trial

    async def supersede(self) -> None:
        """End a trial without a verdict, since something newer is to be tried; nothing when there is none."""
        task = self._task
        if task is None:
            return
        async with self._ending:
            if self._duty.trial is not None:
                number = self._duty.trial.generation.number
                await asyncio.to_thread(self._duty.give_up, f"generation {number} made way for a newer one", quarantine=False)
        self._news.set()
        await asyncio.gather(task, return_exceptions=True)  # not cancelled: it may be telling how the trial ended

    async def stop(self) -> None:
        """Stop looking after a trial; what is on trial stays so until ``Duty.close``."""
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # ---- one trial ---------------------------------------------------------------------------------------------------------
    async def _look_after(
        self,
        trial: OnTrial,
        origin: Origin,
        probes: Probes,
        ask: AskMaster,
        ended: Callable[[OnTrialEnd | None], Awaitable[None]],
    ) -> None:
        terms = trial.generation.share.confirm
        askers = [asyncio.create_task(self._probe(probes)), asyncio.create_task(self._watch_notes(trial))]
        if needs_master(terms, origin):
            askers.append(asyncio.create_task(self._ask_master(trial, ask)))
        until = soft_deadline(trial.armed.deadline, trial.generation.confirm_s)
        try:
            judgement = await self._judged(trial, origin, until)
        finally:
            for task in askers:
                task.cancel()
        if judgement is None:
            return  # somebody else ended the trial, and tells it
        async with self._ending:
            outcome = await asyncio.shield(asyncio.to_thread(self._carry_out, judgement, trial))
        await ended(outcome)

    async def _judged(self, trial: OnTrial, origin: Origin, until: float) -> Judgement | None:
        while self._duty.trial is trial:
            known = msgspec.structs.replace(self._known, deadman_gone=not trial.armed.alive)
            left = until - boottime()
            judgement = judge(known, trial.generation.share.confirm, origin, left_s=left)
            if judgement.verdict is not Verdict.WAIT:
                return judgement
            self._news.clear()
            try:
                async with asyncio.timeout(min(_LOOK_S, max(left, 0))):
                    await self._news.wait()
            except TimeoutError:
                continue
        return None

    def _carry_out(self, judgement: Judgement, trial: OnTrial) -> OnTrialEnd | None:
        if judgement.verdict is Verdict.KEEP:
            try:
                self._duty.keep(judgement.why)
            except GarrisonError as err:
                return OnTrialEnd(trial.generation.number, trial.generation.bundle, f"confirmed, and could not be kept: {err}")
            return None
        return self._duty.give_up(judgement.why)

    def _learn(self, known: Known) -> None:
        self._known = known
        self._news.set()

    # ---- asking ------------------------------------------------------------------------------------------------------------
    async def _probe(self, probes: Probes) -> None:
        while True:
            trouble = await asyncio.to_thread(probes.trouble)
            if trouble:
                _log.warning("probe=bad detail=%s", trouble)
            self._learn(self._known.with_round(trouble))
            await asyncio.sleep(_AFTER_BAD_S if trouble else _WHEN_WELL_S if self._known.healthy else _AFTER_GOOD_S)

    async def _ask_master(self, trial: OnTrial, ask: AskMaster) -> None:
        while True:
            try:
                await ask(trial)
            except MasterRefusedError as err:
                self._learn(msgspec.structs.replace(self._known, master_refused=str(err)))
                return
            except LinkError as err:
                self._learn(msgspec.structs.replace(self._known, master_trouble=str(err)))
                await asyncio.sleep(_AFTER_BAD_S)
            else:
                self._learn(msgspec.structs.replace(self._known, master_confirmed=True))
                return

    async def _watch_notes(self, trial: OnTrial) -> None:
        while True:
            note = await asyncio.to_thread(take_confirmation, self._directory)
            if note is not None and note.digest == trial.generation.bundle:
                _log.warning("confirmed=by-hand uid=%s", note.uid)
                self._learn(msgspec.structs.replace(self._known, person_confirmed=True))
                return
            if note is not None:
                _log.error("confirm=refused digest=%s on_trial=%s", note.digest, trial.generation.bundle)
            await asyncio.sleep(_LOOK_S)


def _log_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("trial=unwatched", exc_info=task.exception())  # the deadman then ends it
