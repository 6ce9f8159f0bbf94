"""Firewall rules by nftables, in the table ``inet garrison``, beside whatever else the machine has.

Rules of this file:
- What packets meet changes in one transaction, after everything is prepared; on an error the table holds what it held.
- Rules stay when the agent goes; ``release`` takes them away.
- Somebody else's change to our table (a restart of ``nftables.service`` flushes all tables) is undone and told.
- What is told is limited in rate; what is counted is exact. Both stand in ``status``, as does what was lost on the way.
- Other tables are never read and never written.
Owns: the table's life, the packet log, figures. Does not own: meaning (``common.policy.firewall``), shape (``plan``), nft's
language (``script``).
"""

from __future__ import annotations

import errno
import logging
import secrets
import socket
import threading
import time
from collections import Counter
from typing import Final

import msgspec

from garrison.common import limits
from garrison.common.errors import BackendUnsupportedError, GarrisonError, KernelError
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import RuleReport
from garrison.common.policy.flows import Direction
from garrison.common.policy.rules import RuleSet, Verdict
from garrison.minion.enforcers.base import Emit, Enforcer, EnforcerStatus, Probe
from garrison.minion.enforcers.bpf_lsm.options import EventRate
from garrison.minion.enforcers.nftables.netlink import ChangeSocket, Logged, LogSocket
from garrison.minion.enforcers.nftables.nft import Nft
from garrison.minion.enforcers.nftables.packets import BACKEND, alert
from garrison.minion.enforcers.nftables.plan import Outcome, Plan, make_plan
from garrison.minion.enforcers.nftables.report import report_rules
from garrison.minion.enforcers.nftables.script import (
    ALWAYS,
    MATCHED,
    PROBE,
    TABLE,
    TOLD,
    Present,
    Telling,
    clear,
    counters_of,
    delete_counters,
    delete_table,
    matched,
    names,
    prepare,
    switch,
    told,
)
from garrison.minion.enforcers.pump import Pump

__all__ = ["GROUPS", "NftablesEnforcer"]

GROUPS: Final = range(26_465, 26_481)  # of the packet log; the first that nobody listens to is taken
_KEPT_GENERATIONS: Final = 8  # whose packets may still be in the log
_FIGURES_MIN_AGE_S: Final = 5.0
_FIGURES_SHARE: Final = 100  # figures are not read more often than so many times the time that reading takes
_WORST: Final = 9  # severity of a firewall that somebody took away

_log = logging.getLogger(__name__)


class NftablesEnforcer(Enforcer):
    """Makes firewall rules hold for the node, in its network namespace.

    Args:
        emit: Takes alerts.
        rate: Packets that each rule may tell; those above are counted.
        nft: The program; looked for when not given.
    """

    name = BACKEND

    def __init__(self, emit: Emit, *, rate: EventRate | None = None, nft: Nft | None = None) -> None:
        self._emit, self._rate, self._given_nft = emit, rate or EventRate(), nft
        self._lock = threading.RLock()
        self._probe: Probe | None = None
        self._nft: Nft | None = None
        self._silent = ""  # why packets cannot be told
        self._plan: Plan | None = None
        self._digest = ""
        self._trouble = ""
        self._log_pump: Pump | None = None
        self._log_socket: LogSocket | None = None
        self._guard: Pump | None = None
        self._outcomes: dict[str, tuple[Outcome, ...]] = {}
        self._figures: dict[str, int] = {}
        self._past: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._read_at, self._read_took = 0.0, 0.0

    # ---- Enforcer ------------------------------------------------------------------------------------------------------
    def probe(self) -> Probe:
        """Make a table with everything that rules may need, on no hook, and take it away; listen to the packet log, once."""
        if self._probe is None:
            try:
                self._nft = self._given_nft or Nft()
                self._nft.run(PROBE, what="make and delete a table")
                self._silent = _why_silent()
                self._probe = Probe(ok=True, reason=self._silent)
            except (GarrisonError, OSError) as err:
                self._probe = Probe(ok=False, reason=_reason(err))
        return self._probe

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return what becomes of each firewall rule."""
        return report_rules(rules, silent=self._silent)

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Enforce the firewall rules of ``rules`` from the next packet on that begins a flow."""
        nft = self._working()
        plan = make_plan(rules)
        with self._lock:
            if plan.outcomes:
                self._listen()
                self._put(nft, plan)
            else:
                self._take_away(nft)
            self._trouble = ""
        return report_rules(rules, silent=self._silent)

    def status(self) -> EnforcerStatus:
        """Return what was counted since the table was made; not older than a few seconds."""
        with self._lock:
            self._read_figures()
            counters = self._counters()
            trouble = self._trouble
            pumps = [pump for pump in (self._log_pump, self._guard) if pump is not None]
        if not trouble and any(not pump.alive for pump in pumps):
            trouble = "alerts are no longer read, or the table no longer watched"
        return EnforcerStatus(backend=BACKEND, healthy=not trouble, detail=trouble, counters=counters)

    def close(self) -> None:
        """Stop reading alerts and watching the table. The rules stay in force."""
        with self._lock:
            pumps, self._log_pump, self._guard = (self._guard, self._log_pump), None, None
            self._log_socket, self._plan = None, None
        for pump in pumps:  # without the lock: their last turn may want it
            if pump is not None:
                pump.close()

    def release(self) -> None:
        """Take the table away."""
        self.close()
        try:
            nft = self._nft or self._given_nft or Nft()
        except BackendUnsupportedError:
            return  # nothing on this machine can have made one
        with self._lock:
            self._take_away(nft)

    # ---- the table -----------------------------------------------------------------------------------------------------
    def _working(self) -> Nft:
        probe = self.probe()
        if not probe.ok or self._nft is None:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}")
        return self._nft

    def _put(self, nft: Nft, plan: Plan) -> None:
        before = self._plan
        wrong = self._commit(nft, plan)
        if wrong:
            if before is None:
                nft.run(delete_table(), what="delete our table")
            else:
                self._commit(nft, before)
            raise KernelError(errno.EIO, f"nftables took the rules, and then {wrong}")
        self._plan, self._digest = plan, nft.digest()
        self._drop_counters(nft, plan)

    def _commit(self, nft: Nft, plan: Plan) -> str:
        """Make packets go through ``plan``; returns how the table differs from it then, empty when it does not."""
        tag = secrets.token_hex(4)
        telling = Telling(tag=tag, group=self._log_socket.group if self._log_socket else None, rate=self._rate)
        old = nft.table() or Present()
        nft.run(prepare(plan, old, telling), what="prepare rules")
        self._outcomes[tag] = plan.outcomes
        try:
            nft.run(switch(plan, telling), what="switch to rules")
        except BaseException:
            del self._outcomes[tag]
            self._clear(nft, _without(nft.table() or Present(), old))
            raise
        while len(self._outcomes) > _KEPT_GENERATIONS:
            del self._outcomes[next(iter(self._outcomes))]
        if not set(old.chains) & set(Direction):
            self._clear(nft, msgspec.structs.replace(old, counters={}))
        return self._what_is_wrong(nft, plan, telling)

    def _clear(self, nft: Nft, unused: Present) -> None:
        try:
            nft.run(clear(unused), what="clear old rules")
        except KernelError as err:
            # No packet comes there, and the next change of rules tries again.
            _log.warning("old_rules=left chains=%d error=%s %s", len(unused.chains), err, err.hint)

    def _what_is_wrong(self, nft: Nft, plan: Plan, telling: Telling) -> str:
        present = nft.table()
        if present is None:
            return "the table is not there"
        chains, maps = names(plan, telling)
        missing = {direction.value for direction in plan.roots} - set(present.roots)
        missing |= chains - set(present.chains)
        missing |= maps - {name for _, name in present.maps}
        for direction, statements in plan.roots.items():
            if present.rules.get(direction.value, 0) != len(ALWAYS[direction]) + len(statements):
                missing.add(direction.value)
        return f"these are not as they should be: {', '.join(sorted(missing)[:5])}" if missing else ""

    def _take_away(self, nft: Nft) -> None:
        present = nft.table()
        if present is not None:
            nft.run(delete_table(), what="delete our table")
        self._plan, self._digest, self._figures = None, "", {}

    def _drop_counters(self, nft: Nft, plan: Plan) -> None:
        """Take away counters that nothing counts into any more; what they had counted is kept."""
        present = nft.table()
        used = set(counters_of(plan))
        figures = present.counters if present else {}
        unused = [name for name in figures if name not in used]
        if unused:
            nft.run(delete_counters(unused), what="delete counters")
            self._past["matched"] += sum(figures[name] for name in unused if name.startswith(MATCHED))
            self._past["told"] += sum(figures[name] for name in unused if name.startswith(TOLD))

    # ---- others' changes -------------------------------------------------------------------------------------------------
    def _on_change(self, changes: ChangeSocket) -> None:
        if not changes.touched(TABLE):
            return
        with self._lock:
            if self._plan is None or self._nft is None:
                return
            if self._nft.digest() == self._digest:
                return  # it was us
            self._restore(self._nft, self._plan)

    def _restore(self, nft: Nft, plan: Plan) -> None:
        try:
            self._put(nft, plan)
        except GarrisonError as err:
            self._trouble = f"somebody changed the firewall's table, and it could not be restored: {err}"
            _log.error("table=changed restored=no error=%s", err)
        else:
            self._counts["restored"] += 1
            _log.warning("table=changed restored=yes")
        detail = self._trouble or "somebody changed or removed the firewall's table; it was restored"
        data: dict[str, Scalar | list[Scalar]] = {"state": "firewall", "detail": detail[: limits.STRING_MAX_CHARS]}
        self._emit(Event(lane=Lane.ALERT, kind=Kind.TAMPER, severity=_WORST, backend=BACKEND, data=data))

    # ---- alerts ----------------------------------------------------------------------------------------------------------
    def _listen(self) -> None:
        if self._guard is None:
            changes = ChangeSocket()
            self._guard = Pump(changes, lambda: self._on_change(changes), name="firewall-guard")
        if self._log_pump is None and not self._silent:
            log = _free_log()
            self._log_socket = log
            self._log_pump = Pump(log, lambda: self._on_packets(log), name="firewall-alerts")

    def _on_packets(self, log: LogSocket) -> None:
        packets, lost, strange = log.packets()
        self._counts.update(lost=lost, unhandled=strange)
        for packet in packets:
            self._on_packet(packet)

    def _on_packet(self, packet: Logged) -> None:
        tag, _, number = packet.prefix.partition(":")
        outcomes = self._outcomes.get(tag, ())
        if not number.isdecimal() or int(number) >= len(outcomes):
            self._counts["unnamed"] += 1
            return
        outcome = outcomes[int(number)]
        self._emit(alert(packet, outcome, interface=_interface(packet.indev or packet.outdev)))

    # ---- figures ---------------------------------------------------------------------------------------------------------
    def _read_figures(self) -> None:
        now = time.monotonic()
        if self._plan is None or self._nft is None:
            return
        if now - self._read_at < max(_FIGURES_MIN_AGE_S, _FIGURES_SHARE * self._read_took) and self._figures:
            return
        try:
            present = self._nft.table()
        except GarrisonError as err:
            self._trouble = f"the table cannot be read: {err}"
            return
        self._read_at, self._read_took = now, time.monotonic() - now
        if present is None:
            self._trouble = "the table is gone"
        else:
            self._figures = present.counters

    def _counters(self) -> dict[str, int]:
        total = Counter({"matched": self._past["matched"], "told": self._past["told"], "blocked": 0, "audited": 0})
        total.update(self._counts)
        for outcome in self._plan.outcomes if self._plan else ():
            met, heard = self._figures.get(matched(outcome), 0), self._figures.get(told(outcome), 0)
            if not met:
                continue
            total["matched"] += met
            total[f"matched.{outcome.key}"] += met
            if outcome.verdict is Verdict.ALLOW:
                continue
            total["told"] += heard
            total["blocked" if outcome.verdict is Verdict.BLOCK else "audited"] += met
            if met > heard:
                total[f"untold.{outcome.key}"] += met - heard
        return dict(total)


def _without(present: Present, others: Present) -> Present:
    chains, maps = set(others.chains), set(others.maps)
    return Present(
        chains=tuple(name for name in present.chains if name not in chains),
        maps=tuple(one for one in present.maps if one not in maps),
        counters={name: figure for name, figure in present.counters.items() if name not in others.counters},
    )


def _why_silent() -> str:
    try:
        _free_log().close()
    except GarrisonError as err:
        return f"packets are counted, not told: {err}"
    return ""


def _free_log() -> LogSocket:
    for group in GROUPS:
        try:
            return LogSocket(group)
        except KernelError as err:
            if err.errno != errno.EBUSY:
                raise
    raise KernelError(errno.EBUSY, f"listen to the packet log, groups {GROUPS.start} to {GROUPS.stop - 1}")


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:  # gone meanwhile
        return f"if-{index}"


def _reason(err: BaseException) -> str:
    hint = getattr(err, "hint", "")
    first = hint.splitlines()[0] if hint else ""
    return f"{err} ({first})" if first else str(err)
