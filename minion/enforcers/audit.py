"""Process rules watched, not enforced: the backend of last resort, which sees each exec and can refuse none.

Rules of this file:
- What a rule means is ``match.decide``; what it would have blocked is reported with verdict ``audit`` and result ``passed``.
- An exec is judged as it happened: by the program that runs now; a script by its interpreter.
- The caller is the program that this process ran before, or its parent's; when neither is known the source is unknown, which
  counts against block and audit rules, as everywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from garrison.bpf.records import proc_link
from garrison.common.errors import BackendUnsupportedError
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import RuleReport
from garrison.common.policy.match import Decision, Operation, decide
from garrison.common.policy.rules import Entity, HostScope, Mode, Posture, Rule, RuleSet, RuleStatus, Verdict
from garrison.minion.enforcers.base import Emit, Enforcer, EnforcerStatus, Probe
from garrison.minion.enforcers.exec_feed import Exec, ExecFeed, FeedEvent, feed_works

__all__ = ["AuditEnforcer"]

BACKEND: Final = "audit"
_IMAGES_MAX: Final = 32_768  # processes whose program is remembered; PID_MAX of a default kernel
_SEES_ONLY: Final = "audit only: sees, cannot refuse"
_WORKLOAD: Final = "selects workloads by label; needs the bpf-lsm backend"


class AuditEnforcer(Enforcer):
    """Reports execs that process rules speak of.

    Args:
        emit: Takes alerts.
        feed: Where execs come from; the shared feed when not given.
    """

    name = BACKEND

    def __init__(self, emit: Emit, *, feed: ExecFeed | None = None) -> None:
        self._emit, self._feed = emit, feed or ExecFeed.shared()
        self._rules = RuleSet()
        self._unsubscribe: Callable[[], None] | None = None
        self._images: OrderedDict[int, str] = OrderedDict()
        self._seen = self._alerts = 0

    def probe(self) -> Probe:
        """Load the feed for real, once."""
        reason = feed_works()
        return Probe(ok=not reason, reason=reason)

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return what becomes of each process rule."""
        return tuple(_report(rule, rules) for rule in rules.rules if rule.entity is Entity.PROCESS)

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Watch for the process rules of ``rules`` from the next exec on."""
        if not (probe := self.probe()).ok:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}")
        held = tuple(r for r in rules.rules if r.entity is Entity.PROCESS and isinstance(r.scope, HostScope))
        if held and self._unsubscribe is None:
            self._unsubscribe = self._feed.subscribe(self._on_event)
        self._rules = RuleSet(rules=held, postures=rules.postures)
        if not held:
            self.close()
        return self.compile(rules)

    def status(self) -> EnforcerStatus:
        """Return execs judged and alerts given; lost execs are the feed's."""
        counters = {"seen": self._seen, "audited": self._alerts, "dropped": self._feed.counters()["dropped_execs"]}
        watching = self._unsubscribe is not None
        healthy = not watching or self._feed.alive
        return EnforcerStatus(
            backend=BACKEND, healthy=healthy, detail="" if healthy else "execs are no longer read", counters=counters
        )

    def close(self) -> None:
        """Stop watching."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    # ---- execs ---------------------------------------------------------------------------------------------------------
    def _on_event(self, event: FeedEvent) -> None:
        if not isinstance(event, Exec):
            self._images.pop(event.actor.pid, None)
            return
        self._seen += 1
        source = self._caller(event)
        self._images[event.actor.pid] = event.actor.exe if event.exe_known else ""
        while len(self._images) > _IMAGES_MAX:
            self._images.popitem(last=False)
        decision = decide(self._rules, operation_of(event, source))
        if decision.rule is not None and decision.verdict is not Verdict.ALLOW:
            self._alerts += 1
            self._emit(alert(event, decision, decision.rule))

    def _caller(self, event: Exec) -> str:
        pid, ppid = event.actor.pid, event.actor.ppid
        return self._images.get(pid) or self._images.get(ppid) or (proc_link(ppid, "exe") if ppid > 0 else "")


def operation_of(event: Exec, source: str) -> Operation:
    """Return the exec as ``match`` sees it; what the record does not tell for sure is unknown, not guessed."""
    actor = event.actor
    return Operation(
        entity=Entity.PROCESS,
        path=actor.exe if event.exe_known else "",
        source=source,
        is_owner=_owns(actor.uid, actor.exe),
        tty=bool(actor.tty),
        args=actor.args[1:] if event.args_known else None,
    )


def alert(event: Exec, decision: Decision, rule: Rule) -> Event:
    """Return the event of an exec that a rule speaks of."""
    data: dict[str, Scalar | list[Scalar]] = {
        "message": rule.message,
        "tags": list(rule.tags),
        "by_posture": decision.by_posture or None,
    }
    return Event(
        ts=event.ts,
        mono=event.mono,
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity,
        actor=event.actor,
        object=event.actor.exe,
        operation="exec",
        verdict=Verdict.AUDIT.value,
        result="passed",
        policy=rule.policy,
        rule=rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value},
    )


def _owns(uid: int, path: str) -> bool:
    try:
        return Path(path).stat().st_uid == uid
    except OSError:  # gone, or of another mount namespace: unknown counts against the operation
        return False


def _report(rule: Rule, rules: RuleSet) -> RuleReport:
    if not isinstance(rule.scope, HostScope):
        return RuleReport(rule=rule.id, status=RuleStatus.IMPOSSIBLE, backend=BACKEND, reason=_WORKLOAD)
    refuses = rule.mode is Mode.ENFORCE and (
        rule.verdict is Verdict.BLOCK or (rule.verdict is Verdict.ALLOW and rules.postures.file is Posture.BLOCK)
    )
    status, reason = (RuleStatus.DEGRADED, _SEES_ONLY) if refuses else (RuleStatus.AUDITED, "")
    return RuleReport(rule=rule.id, status=status, backend=BACKEND, reason=reason)
