"""The ``fanotify`` backend: rules on programs and files, held by the responder.

Rules of this file:
- A swap of rules leaves no open unprotected: the responder sets new marks, switches tables between two events, then drops marks.
- Fail-closed: rules that cannot be applied leave the previous ones enforced. Fail-open, reported as ``tamper``: a responder that
  hangs, is killed, or ends with the agent.
- The thread that reads records opens nothing but ``/proc``, takes no lock while it emits, and starts the responder again when
  it ended.
Owns: the life of the responder, probing. Does not own: the table (``table``), marks (``marks``), what is said (``reports``).
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import BackendUnsupportedError, FrameError, KernelError
from garrison.common.events import Event, Kind, Lane
from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Rule, RuleSet, Verdict
from garrison.minion.enforcers.base import Emit, Enforcer, EnforcerStatus, Probe
from garrison.minion.enforcers.fanotify.marks import Files, NodeFiles, plan_marks, why_unwatchable
from garrison.minion.enforcers.fanotify.process import BINARY, Responder
from garrison.minion.enforcers.fanotify.records import decode_record, event_of
from garrison.minion.enforcers.fanotify.reports import NAME, is_enforceable, report
from garrison.minion.enforcers.fanotify.table import FileId, build_table

__all__ = ["FanotifyEnforcer"]

_RESTART_EVERY_S: Final = 1.0
_SILENT_MAX_S: Final = 2.0  # the watcher's beat rises ten times a second
_TABLES_REMEMBERED: Final = 4  # rules of past generations, for records still under way
# Dynamic loaders of glibc and musl: the kernel opens them for execution on behalf of every program.
_LOADERS: Final = ("/lib*/ld-*.so*", "/lib*/*/ld-*.so*", "/usr/lib*/ld-*.so*", "/usr/lib*/*/ld-*.so*")

_log = logging.getLogger(__name__)


class FanotifyEnforcer(Enforcer):
    """Holds rules on programs and files with permission events.

    Args:
        emit: Takes alerts.
        runtime_dir: For the probe's scratch file.
    """

    name = NAME

    def __init__(self, emit: Emit, *, runtime_dir: Path) -> None:
        self._emit, self._runtime_dir = emit, runtime_dir
        self._probe: Probe | None = None
        self._lock = threading.RLock()  # one swap or restart at a time; never held while emitting
        self._responder: Responder | None = None
        self._table: tuple[bytes, int] | None = None
        self._generation = 0
        self._rules: dict[int, tuple[Rule, ...]] = {}
        self._lapse = ""
        self._beat: tuple[float, int] = (0.0, -1)
        self._restarts = 0
        self._closed = False

    # ---- Enforcer ------------------------------------------------------------------------------------------------------
    def probe(self) -> Probe:
        """Refuse the open of a scratch file for real."""
        if self._probe is None:
            try:
                self._probe = self._try()
            except (KernelError, OSError, subprocess.SubprocessError) as err:
                self._probe = Probe(ok=False, reason=f"fanotify permission events cannot be used: {err}")
        return self._probe

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return a line for each rule on programs or files."""
        files = NodeFiles()
        lines = (report(rule, rules.postures, lambda r: why_unwatchable(r, files)) for rule in rules.rules)
        return tuple(line for line in lines if line is not None)

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Hand the rules to the responder.

        Raises:
            BackendUnsupportedError: ``probe`` said no.
            KernelError: The kernel refused; the previous rules still hold.
            CompileError: The rules cannot be expressed; the previous rules still hold.
        """
        if not self.probe().ok:
            raise BackendUnsupportedError(self.probe().reason)
        held = msgspec.structs.replace(rules, rules=tuple(rule for rule in rules.rules if is_enforceable(rule)))
        with self._lock:
            if self._closed:
                raise BackendUnsupportedError("the fanotify backend is closed")
            generation = self._generation + 1
            table = _table(held, generation)
            self._remember(generation, held.rules)
            self._generation = generation
            if self._responder is None:
                self._start_again()
            self._started().swap(table, generation)
            self._table = (table, generation)
        return self.compile(rules)

    def status(self) -> EnforcerStatus:
        """Return the responder's counters."""
        responder = self._responder
        if responder is None:
            detail = self._lapse
            return EnforcerStatus(backend=NAME, healthy=not detail and self.probe().ok, detail=detail or self.probe().reason)
        counters = responder.counters()
        counters["restarts"] += self._restarts
        lapsed = "the responder's worker is gone; another is being started" if counters.pop("lapsed") else ""
        detail = self._lapse or lapsed or self._silence(counters.pop("watcher_beat"))
        counters.pop("worker_pid")
        return EnforcerStatus(backend=NAME, healthy=not detail, detail=detail, counters=counters)

    def close(self) -> None:
        """End the responder."""
        with self._lock:
            self._closed = True
            responder, self._responder = self._responder, None
        if responder is not None:
            responder.close()

    # ---- the responder's life --------------------------------------------------------------------------------------------
    def _started(self) -> Responder:
        if self._responder is None:
            self._responder = Responder()
            threading.Thread(target=self._read, args=(self._responder,), name="fanotify-records", daemon=True).start()
        return self._responder

    def _read(self, responder: Responder) -> None:
        while raw := responder.receive():
            try:
                record = decode_record(raw)
            except FrameError as err:
                _log.error("record=damaged error=%s", err)
                continue
            self._emit(event_of(record, self._rules))
        self._revive(responder)

    def _revive(self, dead: Responder) -> None:
        """Start another responder with the last table, for as long as it takes, unless ``dead`` was ended on purpose."""
        with self._lock:
            if self._closed or self._responder is not dead:
                return
            self._responder, self._lapse = None, "the responder ended"
            dead.close()
        self._tell("ended", "the responder was killed or ended; pending opens were let go", severity=9)
        while not self._restarted():
            time.sleep(_RESTART_EVERY_S)
        self._tell("restarted", "the responder runs again with the last rules", severity=3)

    def _restarted(self) -> bool:
        with self._lock:
            if self._closed or self._responder is not None:
                return True
            try:
                self._start_again()
            except KernelError as err:
                self._lapse = f"the responder cannot be started again: {err}"
                _log.error("responder=down error=%s", err)
                return False
        return True

    def _start_again(self) -> None:
        """Start a responder that holds what was last applied.

        Raises:
            KernelError: It cannot be started or refused the table; there is none then.
        """
        responder = self._started()
        if self._table is not None:
            try:
                responder.swap(*self._table)
            except KernelError:
                self._responder = None
                responder.close()
                raise
            self._restarts += 1
        self._lapse = ""

    def _tell(self, state: str, reason: str, *, severity: int) -> None:
        data = {"state": state, "reason": reason}
        self._emit(Event(lane=Lane.ALERT, kind=Kind.TAMPER, severity=severity, backend=NAME, data={**data}))

    def _remember(self, generation: int, rules: tuple[Rule, ...]) -> None:
        kept = sorted(self._rules)[-(_TABLES_REMEMBERED - 1) :]
        self._rules = {**{old: self._rules[old] for old in kept}, generation: rules}

    def _silence(self, beat: int) -> str:
        now, (since, last) = time.monotonic(), self._beat
        if beat != last:
            self._beat = (now, beat)
            return ""
        return "the responder's watcher does not turn" if now - since > _SILENT_MAX_S else ""

    # ---- probe -----------------------------------------------------------------------------------------------------------
    def _try(self) -> Probe:
        with tempfile.NamedTemporaryFile(prefix=".probe-", dir=self._runtime_dir) as scratch:
            path = os.path.realpath(scratch.name)
            target = PathTarget(how=PathKind.EXACT, value=path)
            rule = Rule(id="probe/0", policy="probe", entity=Entity.FILE, verdict=Verdict.BLOCK, target=target)
            responder = Responder()
            try:
                responder.swap(_table(RuleSet(rules=(rule,)), 1), 1)
                refused = _open_elsewhere(path)
                other = _open_elsewhere("/dev/null")
            finally:
                responder.close()
        if refused != errno.EPERM or other != 0:
            return Probe(ok=False, reason=f"a refused open gave {errno.errorcode.get(refused, refused)} instead of EPERM")
        return Probe(ok=True)


def _open_elsewhere(path: str) -> int:
    """Open ``path`` in a process that is not exempt, as the agent is; returns the errno."""
    return subprocess.run([str(BINARY), "--open", path], check=False, timeout=10, stdin=subprocess.DEVNULL).returncode


def _table(rules: RuleSet, generation: int) -> bytes:
    files: Files = NodeFiles()
    marks = plan_marks(rules.rules, files)
    return build_table(rules, generation=generation, marks=marks, file_id=files.file_id, loaders=_loaders(files))


def _loaders(files: Files) -> list[FileId]:
    found = (files.file_id(path) for pattern in _LOADERS for path in glob.glob(pattern))  # noqa: PTH207 - several roots
    return [identity for identity in found if identity is not None]
