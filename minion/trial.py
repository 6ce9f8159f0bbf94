"""A generation on trial, its end, and the events that tell what became of generations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from garrison.common import limits
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import RuleReport
from garrison.common.names import Digest
from garrison.minion.arming import Armed, DeadmanRecord
from garrison.minion.bundles import Generation, Staged
from garrison.minion.bundles.disk import TrialNote

__all__ = ["OnTrial", "OnTrialEnd", "apply_event", "how_it_ended", "tamper_event"]

_GOING_WELL: Final = frozenset({"applied", "pending"})


@dataclass(frozen=True)
class OnTrial:
    """A generation that is enforced and not confirmed yet.

    Attributes:
        staged: The generation.
        armed: What brings the one before back if nobody does.
        rules: Its compile report.
    """

    staged: Staged
    armed: Armed
    rules: tuple[RuleReport, ...]

    @property
    def generation(self) -> Generation:
        """The generation."""
        return self.staged.generation


@dataclass(frozen=True)
class OnTrialEnd:
    """A generation that was taken back, and why."""

    number: int
    bundle: Digest
    why: str


def how_it_ended(note: TrialNote, record: DeadmanRecord | None, boot: str) -> tuple[str, bool]:
    """Return why a trial that no agent saw end did so, and whether it is not to be tried again.

    Args:
        note: Of the trial, from the disk.
        record: What the last deadman left.
        boot: The kernel's id of this boot.
    """
    if note.boot != boot:
        times = f", {note.tries} times" if note.tries > 1 else ""
        return f"the machine went down before it was confirmed{times}", note.tries >= limits.CONFIRM_TRIES_MAX
    if record is None or record.state != "reverted" or (record.generation, record.digest) != (note.generation, note.bundle):
        return "the agent ended before it was confirmed", True
    return "; ".join([record.why, *record.errors]), True


def tamper_event(state: str, detail: str, *, severity: int, **more: Scalar) -> Event:
    """Return the event that says that enforcement is weaker than it should be."""
    text = detail[: limits.STRING_MAX_CHARS]
    return Event(lane=Lane.ALERT, kind=Kind.TAMPER, severity=severity, data={"state": state, "detail": text, **more})


def apply_event(state: str, generation: int, bundle: str, error: str, rules: tuple[RuleReport, ...] = ()) -> Event:
    """Return the event that says what became of a generation; ``rules`` are counted by status."""
    data: dict[str, Scalar | list[Scalar]] = {"state": state, "generation": generation, "bundle": bundle, "error": error[:1000]}
    for rule in rules:
        data[f"rules_{rule.status}"] = int(str(data.get(f"rules_{rule.status}", 0))) + 1
    return Event(lane=Lane.STATE, kind=Kind.APPLY, severity=3 if state in _GOING_WELL else 8, data=data)
