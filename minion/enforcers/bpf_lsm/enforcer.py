"""Rules held by LSM programs in the kernel, which go on holding them when the agent is gone.

Rules of this file:
- Programs and maps are pinned. An agent that starts finds them and takes over; nothing is detached in between.
- Two copies of every table: the one that is not active is filled, then one number is switched. Each decision is made by exactly
  one generation.
- Workloads come and go without a new generation, unless they are selected in a way that the present one does not know. On trial
  that is added to both copies in place.
- Fail-closed: a path that cannot be told counts as one that block rules name. A generation that does not fit is not switched to.
- Programs that no rule needs are not attached. Those that the next rules need are attached before the switch.
- While rules are on trial (``hold``) the copy with those before is not touched, and one write brings them back.
- ``close`` leaves everything in force. Only ``release`` takes it away.
Owns: the programs' life, pins, generations. Does not own: what rules mean (``program``), bytes (``layout``, ``events``).
"""

from __future__ import annotations

import errno
import logging
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from garrison.bpf.cgroups import CgroupNames, cgroup2_root
from garrison.bpf.loader import BpfMap, Object, object_path, open_pinned_map
from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.bpf.ring import RingReader
from garrison.common.errors import BackendUnsupportedError, CompileError, GarrisonError, KernelError
from garrison.common.frames import RuleReport
from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.base import CgroupMade, Emit, Enforcer, EnforcerStatus, MapWrite, Probe
from garrison.minion.enforcers.bpf_lsm.copies import Copies
from garrison.minion.enforcers.bpf_lsm.events import lowered_event
from garrison.minion.enforcers.bpf_lsm.extension import extended, missing_profiles
from garrison.minion.enforcers.bpf_lsm.figures import read_figures
from garrison.minion.enforcers.bpf_lsm.inodes import Inodes, interpreter, packed_inode
from garrison.minion.enforcers.bpf_lsm.layout import TABLES, lay_out, lay_out_extension
from garrison.minion.enforcers.bpf_lsm.needs import needed
from garrison.minion.enforcers.bpf_lsm.options import PROTECTION, LsmOptions, Tamper
from garrison.minion.enforcers.bpf_lsm.pins import OUR_TABLE, PinnedRules, Pins, remove
from garrison.minion.enforcers.bpf_lsm.program import Program, compile_program
from garrison.minion.enforcers.bpf_lsm.report import BACKEND
from garrison.minion.enforcers.bpf_lsm.residents import Residents
from garrison.minion.enforcers.bpf_lsm.suppressed import Suppressed
from garrison.minion.enforcers.bpf_lsm.telling import Teller
from garrison.minion.enforcers.cgroup_table import change_cgroups, lay_out_cgroups
from garrison.minion.enforcers.profiles import Placements, Profile, needed_profiles, shortage
from garrison.minion.workloads.model import Workload

__all__ = ["PINS", "BpfLsmEnforcer"]

PINS: Final = Path("/sys/fs/bpf/garrison")
_KEPT_GENERATIONS: Final = 8  # whose events may still be in the ring
_ZERO: Final = bytes(4)
_U32: Final = struct.Struct("=I")
_OURS: Final = struct.Struct("=Q")

Held = tuple[RuleSet, Program]

_log = logging.getLogger(__name__)


class BpfLsmEnforcer(Enforcer):
    """Holds rules on programs, files, networks, domains and capabilities, and presets, for the whole machine.

    Args:
        emit: Takes alerts.
        pins: Directory on a bpffs.
        options: What becomes of attempts to weaken enforcement, and how many events a rule may tell.
    """

    name = BACKEND

    def __init__(self, emit: Emit, *, pins: Path = PINS, options: LsmOptions | None = None) -> None:
        self._emit, self._pins, self._options = emit, Pins(pins), options or LsmOptions()
        self._lock = threading.Lock()
        self._changing = threading.RLock()  # held while a generation is made: figures can be asked for meanwhile
        self._probe: Probe | None = None
        self._maps: dict[str, BpfMap] = {}
        self._copies = Copies(self._maps)
        self._hasher: PathHasher | None = None
        self._reader: RingReader | None = None
        self._teller: Teller | None = None
        self._names: CgroupNames | None = None
        self._generation = 0
        self._held: Held | None = None
        self._kept: int | None = None
        self._placements: Placements = {}
        self._before: tuple[Held | None, Placements] = (None, {})
        self._residents = Residents(self._pins)

    # ---- Enforcer ------------------------------------------------------------------------------------------------------
    def probe(self) -> Probe:
        """Load all programs, once; if they are attached already, that is proof enough."""
        if self._probe is None:
            try:
                if "bpf" not in _active_lsms():
                    raise BackendUnsupportedError("the kernel's list of security modules has no bpf", hint="add bpf to lsm=")
                if not self._pins.is_installed():
                    self._pins.load()
                self._probe = Probe(ok=True)
            except (GarrisonError, OSError) as err:
                self._probe = Probe(ok=False, reason=str(err), hint=getattr(err, "hint", None) or "")
        return self._probe

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return what becomes of each rule that it knows."""
        return self._residents.report(rules, self._shortage())

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Enforce ``rules`` from the next operation on."""
        if not (probe := self.probe()).ok:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}", hint=probe.hint)
        with self._changing:
            self._switch(rules)
            return self._residents.report(rules, self._shortage())

    def _switch(self, rules: RuleSet) -> None:
        with self._lock:
            teller = self._take_over()
        placements = self._residents.placed(rules)
        program = compile_program(rules, needed_profiles(placements))
        with self._lock:
            number = self._generation + 1
            tables = lay_out(program, number, hasher=self._held_hasher(), inode_of=Inodes().of, placements=placements)
            copy, needs = self._free_copy(), needed(program.rules)
            self._pins.links.attach(needs)
            self._copies.fill(copy, {name: tables[name] for name in TABLES})
            self._pins.rules.keep(number, program.rules, _KEPT_GENERATIONS)
            teller.rules[number] = program.rules
            self._copies.switch(copy)
            self._pins.links.switched(needs)
            self._generation = number
            self._held, self._placements = (rules, program), placements
            self._residents.keep()
            self._protect()
            self._retire_others()
            teller.forget(number - _KEPT_GENERATIONS)
        self._pins.links.trim()

    def hold(self) -> Sequence[MapWrite]:
        """Keep the active copy as it is."""
        if not (probe := self.probe()).ok:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}", hint=probe.hint)
        with self._lock:
            self._take_over()
            self._kept, self._before = self._copies.active, (self._held, self._placements)
            self._pins.links.hold()
            active, agent = self._maps["active"], self._maps["agent"]
            # Back to the copy; then nobody is the agent any more, so that protection lets the agent be ended and replaced.
            return (MapWrite(active.fd, _ZERO, _U32.pack(self._kept)), MapWrite(agent.fd, _ZERO, self._no_agent()))

    def go_back(self, rules: RuleSet) -> None:
        """Switch to the copy that was kept."""
        with self._changing:
            with self._lock:
                kept, self._kept = self._kept, None
                if kept is not None:
                    self._copies.switch(kept)
                    self._pins.links.go_back()
                    self._held, self._placements = self._before
            if kept is not None:
                self._pins.links.trim()
                self._catch_up()
                return
        self.apply(rules)

    def keep(self) -> None:
        """Let the next rules be written over those before."""
        with self._changing:
            with self._lock:
                self._kept = None
                self._pins.links.keep()
            self._pins.links.trim()
            self._catch_up()

    def _catch_up(self) -> None:
        # Generations on trial are not built anew for workloads that come, and take in only what fits beside what they have.
        if self._held is None:
            return
        try:
            self._settle(*self._held)
        except KernelError as err:
            _log.error("workloads=untold error=%s", err)

    def status(self) -> EnforcerStatus:
        """Return figures since the programs were loaded, lost events by rule among them."""
        with self._lock:
            if self._teller is not None:
                self._teller.sum_up()
            counters = self._figures() | {"workloads": len(self._placements)}
            reader = self._reader
            trouble = self._pins.links.trouble() if reader is not None else ""
        if reader is not None and not reader.alive:
            trouble = "events are no longer read"
        detail = trouble or self._shortage()
        return EnforcerStatus(backend=BACKEND, healthy=not detail, detail=detail, counters=counters)

    def close(self) -> None:
        """Stop reading events. What is enforced stays enforced."""
        self._residents.close()  # without a lock: whom it tells may be about to set workloads
        with self._changing, self._lock:
            self._kept = None
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            self._teller = None
            if self._names is not None:
                self._names.close()
                self._names = None
            self._pins.close()
            self._forget_agent()
            for held in self._maps.values():
                held.close()
            self._maps = {}
            self._held = None

    def release(self) -> None:
        """Take everything away."""
        self.close()
        self._pins.remove_all()

    # ---- workloads -------------------------------------------------------------------------------------------------------
    def set_workloads(self, workloads: Sequence[Workload]) -> None:
        """Take these for all workloads of the node, from the next operation on.

        Raises:
            KernelError: The kernel refused; the previous ones still hold.
        """
        with self._changing, self._residents.told(workloads) as news:
            if news and self._held is not None:  # else the next rules bring them
                self._settle(*self._held)

    def watch_cgroups(self, take: Callable[[CgroupMade], None]) -> None:
        """Call ``take`` with each cgroup that is made, from a thread of its own, while programs are attached."""

        def made(cgroup: CgroupMade) -> None:
            if cgroup.path and self._names:
                self._names.remember(cgroup.cgroup_id, cgroup.path)  # it may be gone when its first event is read
            take(cgroup)

        with self._lock:
            self._residents.watch(made)
            self._residents.feed(self._maps)

    def _settle(self, rules: RuleSet, program: Program) -> None:
        """Bring the kernel's table of cgroups up to date, with a new generation if it must be."""
        if self._kept is None and missing_profiles(program, self._residents.placed(rules)):
            try:
                self._switch(rules)
            except CompileError as err:
                # What is new counts as unknown then: it is refused what any workload is.
                _log.error("workloads=untold error=%s", err)
            else:
                return
        with self._lock:
            active, kept = self._copies.active, self._kept
            self._held, self._placements = self._settled(active, (rules, program), self._placements)
            if kept == active:
                self._before = self._held, self._placements
            elif kept is not None and self._before[0] is not None:
                # The deadman may go back to it, and nobody be there to catch up.
                self._before = self._settled(kept, self._before[0], self._before[1])
            self._residents.keep()

    def _settled(self, copy: int, held: Held, before: Placements) -> tuple[Held, Placements]:
        """Bring one copy's table of cgroups up to date, with the profiles that it lacks; returns what it holds then."""
        rules, program = held
        after, hasher = self._residents.placed(rules), self._held_hasher()
        old = lay_out_cgroups(before, program.profiles, hasher)
        if self._kept is not None and (more := missing_profiles(program, after)):  # on trial there is no copy to build another in
            program = self._extended(copy, rules, program, more)
        with self._copies.opened("cgroups", copy) as table:
            change_cgroups(table, self._maps["workload_figures"], old, lay_out_cgroups(after, program.profiles, hasher))
        return (rules, program), after

    def _extended(self, copy: int, rules: RuleSet, program: Program, more: Sequence[Profile]) -> Program:
        try:
            grown = extended(rules, program, more)
        except CompileError as err:
            grown = None
            _log.error("workloads=untold error=%s", err)
        if grown is None:
            return program  # what is new counts as unknown: it is refused what any workload is; the status tells
        heads = self._copies.first_row("heads", copy), self._copies.first_row("subject_heads", copy)
        tables = lay_out_extension(grown, _U32.unpack_from(heads[0])[0], hasher=self._held_hasher(), heads=heads)
        self._copies.fill(copy, tables)
        self._protect()
        return grown

    def _shortage(self) -> str:
        return shortage(self._placements, self._held[1].profiles) if self._held else ""

    # ---- taking over -----------------------------------------------------------------------------------------------------
    def _take_over(self) -> Teller:
        """Find what is pinned, or load, attach and pin it; returns who tells what comes of it. Idempotent."""
        if self._teller is not None:
            return self._teller
        if not self._pins.is_installed():
            if self._pins.folder.is_dir():
                remove(self._pins.folder)
            self._pins.install()
        self._maps = self._pins.open_maps()
        self._hasher = PathHasher(self._maps["secret"].lookup(_ZERO) or bytes(KEY_BYTES))
        self._copies = Copies(self._maps)
        head = self._copies.first_row("heads", self._copies.active)
        kept = self._pins.rules.load()
        # Above what was on trial and taken back, too: its events may be in the ring still, to be named by its rules.
        self._generation = max([_U32.unpack_from(head)[0] if head else 0, *kept])
        self._names = CgroupNames(cgroup2_root())
        self._maps["event_rate"].update(_ZERO, self._options.rate.packed())
        suppressed = Suppressed(self._maps["rule_rates"], self._maps["rule_told"])
        self._teller = Teller(self._emit, kept, suppressed, self._cgroup)
        self._reader = RingReader(self._maps["events"], self._teller.take, name="lsm-events")
        self._note_agent()
        self._residents.feed(self._maps)
        self._pins.links.take_over()
        return self._teller

    def _retire_others(self) -> None:
        """Let go of other versions, now that this one holds rules. What they still had to tell is told."""
        for folder in self._pins.others():
            try:
                self._hear_out(folder)
            except GarrisonError as err:
                _log.warning("pins=%s events=unreadable error=%s", folder, err)  # perhaps it never got so far as to tell anything
            remove(folder)

    def _hear_out(self, folder: Path) -> None:
        """Tell what another version has told nobody yet, by the rules that it held."""
        maps = {name: open_pinned_map(folder / "maps" / name) for name in ("events", "rule_rates", "rule_told")}
        try:
            teller = Teller(
                self._emit,
                PinnedRules(folder / "rules").load(),
                Suppressed(maps["rule_rates"], maps["rule_told"]),
                self._cgroup,
            )
            RingReader(maps["events"], teller.take, name="lsm-old-events").close()
            teller.sum_up(at_once=True)
        finally:
            for held in maps.values():
                held.close()

    # ---- protecting itself -----------------------------------------------------------------------------------------------
    def _protect(self) -> None:
        """Tell the kernel which tables are ours now, and where the pins are."""
        tables = {_OURS.pack(number << 1) for number in self._copies.ids()}
        ours = self._maps["ours"]
        for key in set(ours.keys()) - tables:
            if ours.lookup(key) == OUR_TABLE:
                ours.delete(key)
        for key in tables:
            ours.update(key, OUR_TABLE)
        at = Inodes().of(f"{self._pins.root}/") or (0, 0)
        if linker := Inodes().of(interpreter(Path("/proc/self/exe"))):
            self._maps["linkers"].update(packed_inode(linker), OUR_TABLE)
        held, wanted = self._maps["protection"], self._options.tamper
        before = Tamper(PROTECTION.unpack(held.lookup(_ZERO) or bytes(PROTECTION.size))[2])
        held.update(_ZERO, PROTECTION.pack(at[1], at[0], wanted))
        if wanted < before:
            self._emit(lowered_event(before.name.lower(), wanted.name.lower()))

    def _forget_agent(self) -> None:
        """From now on the next agent may take over, as if this one had died."""
        if self._maps:
            self._maps["agent"].update(_ZERO, self._no_agent())

    def _no_agent(self) -> bytes:
        return (self._maps["agent"].lookup(_ZERO) or bytes(16))[:12] + bytes(4)

    def _note_agent(self) -> None:
        for name, program, held in (("enforce_exec", "note_agent", "agent"), ("enforce_capabilities", "note_exempt", "exempt")):
            with Object(object_path(name)) as noting:
                noting.autoload([program])
                noting.reuse_map(held, self._maps[held])
                noting.load()
                noting.programs[program].run()

    # ---- tables ----------------------------------------------------------------------------------------------------------
    def _held_hasher(self) -> PathHasher:
        if self._hasher is None:
            raise KernelError(0, "read the key of path hashes")
        return self._hasher

    def _free_copy(self) -> int:
        free = 1 - self._copies.active
        if free == self._kept:
            raise KernelError(errno.EBUSY, "write new tables while those before are kept for the way back")
        return free

    # ---- figures and events ------------------------------------------------------------------------------------------------
    def _figures(self) -> dict[str, int]:
        if not self._maps or self._teller is None:
            return {}
        return read_figures(self._maps, self._teller.rule) | {"unknown": self._teller.unknown}

    def _cgroup(self, number: int) -> str:
        return self._names.path(number) if self._names else ""


def _active_lsms() -> list[str]:
    try:
        return Path("/sys/kernel/security/lsm").read_text(encoding="ascii").strip().split(",")
    except OSError as err:
        raise BackendUnsupportedError("the kernel's list of security modules cannot be read", hint="mount securityfs") from err
