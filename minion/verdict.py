"""Whether a generation on trial stays: from what is known by now, and the time.

    WAIT ──► KEEP      confirmed by whoever the terms ask for, and the node's own probes are good
         └─► GIVE_UP   time is over, the probes keep failing, the master refuses, or the deadman is gone

Rules of this file:
- Pure: a verdict follows from ``Known`` and a clock that is an argument. What is known only grows, but for the rounds of probes.
- A person at the node who confirms outweighs everything but the deadline: who can say it can reach the node.
- Probes flap: of the last ``PROBE_ROUNDS`` rounds ``PROBE_PASSES`` must be good, the newest among them.
- Without a deadman nothing is kept: it was the promise under which the rules were let in.
Owns: the decision. Does not own: finding out (``probes``, ``tryout``), what follows (``duty``).
"""

from __future__ import annotations

from enum import Enum, auto

import msgspec

from garrison.common import limits
from garrison.common.confirm import ConfirmTerms

__all__ = ["Judgement", "Known", "Origin", "Verdict", "judge", "needs_master", "soft_deadline"]


class Origin(Enum):
    """How a generation came."""

    LINK = auto()  # from the master, which was reachable then
    IMPORT = auto()  # carried here


class Verdict(Enum):
    """What to do."""

    WAIT = auto()
    KEEP = auto()
    GIVE_UP = auto()


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a generation on trial.

    Attributes:
        rounds: Of local probes, newest last: what was wrong in each, empty for a good one.
        master_confirmed: It did, over a connection made since.
        master_refused: Why it does not; it will not change its mind.
        master_trouble: Why it could not be asked the last time.
        person_confirmed: Somebody at the node did, and named the right digest.
        deadman_gone: It does not wait any more.
    """

    rounds: tuple[str, ...] = ()
    master_confirmed: bool = False
    master_refused: str = ""
    master_trouble: str = ""
    person_confirmed: bool = False
    deadman_gone: bool = False

    def with_round(self, trouble: str) -> Known:
        """Return this after another round of probes."""
        return msgspec.structs.replace(self, rounds=(*self.rounds, trouble)[-limits.PROBE_FAILURES_MAX :])

    @property
    def healthy(self) -> bool:
        """Whether the probes say that the node works."""
        last = self.rounds[-limits.PROBE_ROUNDS :]
        return bool(last) and not last[-1] and sum(not trouble for trouble in last) >= limits.PROBE_PASSES


class Judgement(msgspec.Struct, frozen=True):
    """A verdict and its reason; empty for ``WAIT``."""

    verdict: Verdict
    why: str = ""


def needs_master(terms: ConfirmTerms, origin: Origin) -> bool:
    """Whether the node's own probes are not enough."""
    return origin is Origin.LINK if terms.offline is None else not terms.offline


def soft_deadline(deadline: float, timeout_s: float) -> float:
    """Return when the agent goes back by itself, so that the deadman need not end it."""
    return deadline - min(limits.CONFIRM_MARGIN_S, timeout_s / 4)


def judge(known: Known, terms: ConfirmTerms, origin: Origin, *, left_s: float) -> Judgement:
    """Return the verdict now.

    Args:
        known: By now.
        terms: The author's.
        origin: How it came.
        left_s: Seconds to the agent's own deadline; 0 or less when it has passed.
    """
    asks_master = needs_master(terms, origin)
    if known.deadman_gone:
        return Judgement(Verdict.GIVE_UP, "the deadman ended, and nothing may be tried without one")
    if left_s <= 0:
        return Judgement(Verdict.GIVE_UP, f"not confirmed in time: {_missing(known, asks_master=asks_master)}")
    if known.person_confirmed:
        return Judgement(Verdict.KEEP, "confirmed by a person at the node")
    if known.master_refused:
        return Judgement(Verdict.GIVE_UP, f"the master does not confirm it: {known.master_refused}")
    if len(known.rounds) >= limits.PROBE_FAILURES_MAX and all(known.rounds):
        return Judgement(Verdict.GIVE_UP, f"the node does not work under it: {known.rounds[-1]}")
    if not known.healthy or (asks_master and not known.master_confirmed):
        return Judgement(Verdict.WAIT)
    return Judgement(Verdict.KEEP, "confirmed by the master" if asks_master else "confirmed by the node's own probes")


def _missing(known: Known, *, asks_master: bool) -> str:
    missing = []
    if not known.healthy:
        missing.append(
            next((trouble for trouble in reversed(known.rounds) if trouble), "the node was not looked at often enough")
        )
    if asks_master and not known.master_confirmed:
        missing.append(known.master_trouble or "the master said nothing")
    return "; ".join(missing) or "it was confirmed too late"
