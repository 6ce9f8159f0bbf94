"""Records of one version of the programs, told as events: each by its rule, with how many others it stands for.

Rules of this file:
- A record whose rule nobody knows is counted and logged, never guessed.
Owns: which event a record becomes. Does not own: layouts and texts (``events``), sums (``suppressed``), the ring.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from garrison.common.policy.rules import Rule
from garrison.minion.enforcers.base import Emit
from garrison.minion.enforcers.bpf_lsm.events import (
    TAMPER_BYTES,
    TAMPER_RULES,
    VERDICTS,
    alert,
    attempts_summary,
    decode_decision,
    decode_tamper,
    summary,
    tamper_event,
)
from garrison.minion.enforcers.bpf_lsm.query_events import QUERY_RECORD_BYTES, decode_query
from garrison.minion.enforcers.bpf_lsm.subject_events import SUBJECT_RECORD_BYTES, decode_subject
from garrison.minion.enforcers.bpf_lsm.suppressed import RuleKey, Suppressed

__all__ = ["Teller"]

_DECODE: Final = {SUBJECT_RECORD_BYTES: decode_subject, QUERY_RECORD_BYTES: decode_query}  # other sizes are of paths

_log = logging.getLogger(__name__)


class Teller:
    """Tells what the kernel decided. Any thread may call it.

    Args:
        emit: Takes the events.
        rules: Rules by generation; the caller may add to it.
        suppressed: Counts of what was not told.
        cgroup: Tells the path of a cgroup by its number.

    Attributes:
        rules: As given.
        unknown: Decisions whose rule nobody knows.
    """

    def __init__(
        self, emit: Emit, rules: dict[int, tuple[Rule, ...]], suppressed: Suppressed, cgroup: Callable[[int], str]
    ) -> None:
        self.rules, self.unknown = rules, 0
        self._emit, self._suppressed, self._cgroup = emit, suppressed, cgroup

    def rule(self, generation: int, number: int) -> Rule | None:
        """Return the rule that the kernel calls by this number."""
        rules = self.rules.get(generation, ())
        return rules[number - 1] if 0 < number <= len(rules) else None

    def take(self, raw: bytes) -> None:
        """Tell the record ``raw``."""
        if len(raw) == TAMPER_BYTES:
            self._take_attempt(raw)
        else:
            self._take_decision(raw)

    def sum_up(self, *, at_once: bool = False) -> None:
        """Tell how many decisions there were that no event followed; ``at_once``: also what may yet be followed by one."""
        self._suppressed.sum_up(self._emit_summary, at_once=at_once)

    def forget(self, generation: int) -> None:
        """What this generation and those before it still have to tell is told, and then they are forgotten."""
        if generation > 0:
            self.sum_up(at_once=True)
            self._suppressed.forget(generation)
            self.rules.pop(generation, None)

    def _take_attempt(self, raw: bytes) -> None:
        attempt = decode_tamper(raw)
        cgroup = self._cgroup(attempt.actor.cgroup_id)
        key = RuleKey(0, TAMPER_RULES + attempt.number)
        self._suppressed.with_event(key, attempt.suppressed, lambda more: self._emit(tamper_event(attempt, cgroup, more=more)))

    def _take_decision(self, raw: bytes) -> None:
        record = _DECODE.get(len(raw), decode_decision)(raw)
        key = RuleKey(record.generation, record.rule)
        rule = self.rule(*key)
        if rule is None:
            self._count_unknown(key, 1)
            return
        cgroup = self._cgroup(record.actor.cgroup_id)
        self._suppressed.with_event(key, record.suppressed, lambda more: self._emit(alert(record, rule, cgroup, more=more)))

    def _emit_summary(self, key: RuleKey, count: int, verdict: int) -> None:
        rule = self.rule(*key)
        if not key.generation:
            self._emit(attempts_summary(key.rule - TAMPER_RULES, VERDICTS[verdict], count))
        elif rule is None:
            self._count_unknown(key, count)
        else:
            self._emit(summary(rule, VERDICTS[verdict], count))

    def _count_unknown(self, key: RuleKey, count: int) -> None:
        self.unknown += count
        _log.error("event=unnamed generation=%d rule=%d count=%d", key.generation, key.rule, count)
