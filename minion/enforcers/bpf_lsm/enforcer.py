"""Process and file rules held by LSM programs in the kernel, which go on holding them when the agent is gone.

Rules of this file:
- Programs and maps are pinned. An agent that starts finds them and takes over; nothing is detached in between.
- Two copies of every table: the one that is not active is filled, then one number is switched. Each decision is made by exactly
  one generation.
- Fail-closed: a path that cannot be told counts as one that block rules name. A generation that does not fit is not switched to.
- ``close`` leaves everything in force. Only ``release`` takes it away.
Owns: the programs' life, pins, generations. Does not own: what rules mean (``program``), bytes (``layout``, ``events``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Final

from garrison.bpf.cgroups import CgroupNames, cgroup2_root
from garrison.bpf.loader import BpfMap, MapType, Object, Program, object_path, open_pinned_map
from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.bpf.ring import RingReader
from garrison.common.errors import BackendUnsupportedError, GarrisonError, KernelError
from garrison.common.frames import RuleReport
from garrison.common.policy.rules import Rule, RuleSet
from garrison.minion.enforcers.base import Emit, Enforcer, EnforcerStatus, Probe
from garrison.minion.enforcers.bpf_lsm.events import COUNTERS, alert, decode_decision
from garrison.minion.enforcers.bpf_lsm.layout import TABLES, Tables, TableType, lay_out
from garrison.minion.enforcers.bpf_lsm.program import compile_program
from garrison.minion.enforcers.bpf_lsm.report import BACKEND, report_rules

__all__ = ["OBJECTS", "PINS", "BpfLsmEnforcer"]

PINS: Final = Path("/sys/fs/bpf/garrison")
OBJECTS: Final = ("enforce_exec", "enforce_files", "enforce_maps", "watch", "protect")
# Programs for hooks that not every kernel has: object -> program -> hook.
_OPTIONAL: Final = {"enforce_files": {"guard_ftruncate": "file_truncate"}}
_SHARED: Final = (*TABLES, "active", "epoch", "agent", "events", "lost", "counters", "subjects", "locations", "secret")
_ATTACHED: Final = ("guard_", "watch_")  # names of programs that are attached; others are run
_INNER_MAP: Final = 1 << 12  # BPF_F_INNER_MAP: numbered tables of a copy may have any size
_KEPT_GENERATIONS: Final = 8  # whose events may still be in the ring
_ZERO: Final = bytes(4)
_U32: Final = struct.Struct("=I")
_LOST_KEY: Final = struct.Struct("=II")

_log = logging.getLogger(__name__)


class BpfLsmEnforcer(Enforcer):
    """Holds process and file rules for the whole machine.

    Args:
        emit: Takes alerts.
        pins: Directory on a bpffs.
    """

    name = BACKEND

    def __init__(self, emit: Emit, *, pins: Path = PINS) -> None:
        self._emit, self._pins = emit, pins
        self._lock = threading.Lock()
        self._probe: Probe | None = None
        self._maps: dict[str, BpfMap] = {}
        self._hasher: PathHasher | None = None
        self._reader: RingReader | None = None
        self._names: CgroupNames | None = None
        self._generation = 0
        self._rules: dict[int, tuple[Rule, ...]] = {}
        self._unknown = 0

    # ---- Enforcer ------------------------------------------------------------------------------------------------------
    def probe(self) -> Probe:
        """Load all programs, once, and attach the one that is never called in between."""
        if self._probe is None:
            try:
                if "bpf" not in _active_lsms():
                    raise BackendUnsupportedError("the kernel's list of security modules has no bpf", hint="add bpf to lsm=")
                loaded = _load_all({}, PathHasher(secrets.token_bytes(KEY_BYTES)))
                for made in loaded:
                    made.close()
                self._probe = Probe(ok=True)
            except (GarrisonError, OSError) as err:
                self._probe = Probe(ok=False, reason=str(err))
        return self._probe

    def compile(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Return what becomes of each process and file rule."""
        return report_rules(rules)

    def apply(self, rules: RuleSet) -> tuple[RuleReport, ...]:
        """Enforce the process and file rules of ``rules`` from the next operation on."""
        if not (probe := self.probe()).ok:
            raise BackendUnsupportedError(f"{BACKEND} cannot be used: {probe.reason}")
        program = compile_program(rules)
        with self._lock:
            self._take_over()
            number = self._generation + 1
            tables = lay_out(program, number, hasher=self._held_hasher(), inode_of=partial(_inode_of, devices=_devices()))
            copy = _U32.pack(1 - self._active())
            for name in TABLES:
                self._fill(name, copy, tables)
            self._rules[number] = program.rules
            self._maps["active"].update(_ZERO, copy)
            self._generation = number
            self._rules.pop(number - _KEPT_GENERATIONS, None)
        return report_rules(rules)

    def status(self) -> EnforcerStatus:
        """Return figures since the programs were loaded, lost events by rule among them."""
        with self._lock:
            counters = self._counters() | {"unknown": self._unknown}
            reader = self._reader
        if reader is not None and not reader.alive:
            return EnforcerStatus(backend=BACKEND, healthy=False, detail="events are no longer read", counters=counters)
        return EnforcerStatus(backend=BACKEND, healthy=True, counters=counters)

    def close(self) -> None:
        """Stop reading events. What is enforced stays enforced."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            if self._names is not None:
                self._names.close()
                self._names = None
            for held in self._maps.values():
                held.close()
            self._maps = {}

    def release(self) -> None:
        """Take everything away: links first, so that nothing is decided by half."""
        self.close()
        for folder in ("links", "maps"):
            shutil.rmtree(self._pins / folder, ignore_errors=True)
        shutil.rmtree(self._pins, ignore_errors=True)

    # ---- taking over -----------------------------------------------------------------------------------------------------
    def _take_over(self) -> None:
        """Find what is pinned, or load, attach and pin it. Idempotent."""
        if self._maps:
            return
        version = self._pins / "version"
        if (self._pins / "maps").is_dir() and version.is_dir() and (version / _version()).is_dir():
            self._maps = {name: open_pinned_map(self._pins / "maps" / name) for name in _SHARED}
            self._hasher = PathHasher(self._maps["secret"].lookup(_ZERO) or bytes(KEY_BYTES))
        else:
            self._install()
        self._note_agent()
        head = self._head(self._active())
        self._generation = _U32.unpack_from(head)[0] if head else 0
        self._names = CgroupNames(cgroup2_root())
        self._reader = RingReader(self._maps["events"], self._on_record, name="lsm-events")

    def _install(self) -> None:
        key = secrets.token_bytes(KEY_BYTES)
        self._hasher = PathHasher(key)
        loaded = _load_all({}, self._hasher)
        try:
            (self._pins / "maps").mkdir(mode=0o700, parents=True)
            (self._pins / "links").mkdir(mode=0o700)
            first = loaded[0]
            first.maps["secret"].update(_ZERO, key)
            for name in _SHARED:
                first.pin_map(name, self._pins / "maps" / name)
            for name, made in zip(OBJECTS, loaded, strict=True):
                for program in _attachable(name, made):
                    program.attach().pin(self._pins / "links" / program.name)
            (self._pins / "version" / _version()).mkdir(parents=True)
            self._maps = {name: open_pinned_map(self._pins / "maps" / name) for name in _SHARED}
        except BaseException:
            shutil.rmtree(self._pins, ignore_errors=True)
            raise
        finally:
            for made in loaded:
                made.close()

    def _note_agent(self) -> None:
        with Object(object_path(OBJECTS[0])) as noting:
            noting.autoload(["note_agent"])
            noting.reuse_map("agent", self._maps["agent"])
            noting.load()
            noting.programs["note_agent"].run()

    # ---- tables ----------------------------------------------------------------------------------------------------------
    def _held_hasher(self) -> PathHasher:
        if self._hasher is None:
            raise KernelError(0, "read the key of path hashes")
        return self._hasher

    def _active(self) -> int:
        number: int = _U32.unpack(self._maps["active"].lookup(_ZERO) or _ZERO)[0]
        return number & 1

    def _head(self, copy: int) -> bytes:
        raw = self._maps["heads"].lookup(_U32.pack(copy))
        if raw is None:
            return b""
        with_id = BpfMap.by_id(_U32.unpack(raw)[0], name="heads")
        try:
            return with_id.lookup(_ZERO) or b""
        finally:
            with_id.close()

    def _fill(self, name: str, copy: bytes, tables: Tables) -> None:
        rows, kind = tables[name], TABLES[name]
        made = _make_table(name, kind, len(rows))
        try:
            made.update_batch(rows)
            self._maps[name].update(copy, _U32.pack(made.fd))
        finally:
            made.close()  # the outer map holds it

    # ---- figures and events ------------------------------------------------------------------------------------------------
    def _counters(self) -> dict[str, int]:
        if not self._maps:
            return {}
        total: Counter[str] = Counter()
        for index, name in enumerate(COUNTERS):
            total[name] = self._maps["counters"].lookup_sum(_U32.pack(index))
        for key in list(self._maps["lost"].keys()):
            generation, number = _LOST_KEY.unpack(key)
            rule = self._rule(generation, number)
            total[f"lost.{rule.id if rule else f'generation-{generation}'}"] += struct.unpack(
                "=Q", self._maps["lost"].lookup(key) or bytes(8)
            )[0]
        return dict(total)

    def _rule(self, generation: int, number: int) -> Rule | None:
        rules = self._rules.get(generation, ())
        return rules[number - 1] if 0 < number <= len(rules) else None

    def _on_record(self, raw: bytes) -> None:
        record = decode_decision(raw)
        rule = self._rule(record.generation, record.rule)
        if rule is None:
            self._unknown += 1
            _log.error("event=unnamed generation=%d rule=%d", record.generation, record.rule)
            return
        cgroup = self._names.path(record.actor.cgroup_id) if self._names else ""
        self._emit(alert(record, rule, cgroup))


def _load_all(shared: dict[str, BpfMap], hasher: PathHasher) -> list[Object]:
    """Load every object, all with the same maps, nothing attached."""
    loaded: list[Object] = []
    maps = dict(shared)
    try:
        for name in OBJECTS:
            made = Object(object_path(name))
            loaded.append(made)
            made.set_rodata(hasher.rodata)
            for map_name in made.map_names & maps.keys():
                made.reuse_map(map_name, maps[map_name])
            for program in _offered(name):
                made.enable(program)
            made.load()
            maps = {**made.maps, **maps}
    except BaseException:
        for made in loaded:
            made.close()
        raise
    return loaded


def _attachable(name: str, made: Object) -> list[Program]:
    left_out = _OPTIONAL.get(name, {}).keys() - set(_offered(name))
    return [p for p in made.programs.values() if p.name.startswith(_ATTACHED) and p.name not in left_out]


def _offered(name: str) -> list[str]:
    """Return the optional programs of an object that this kernel has hooks for."""
    return [program for program, hook in _OPTIONAL.get(name, {}).items() if _has_hook(hook)]


@cache
def _has_hook(hook: str) -> bool:
    return f"\0bpf_lsm_{hook}\0".encode() in Path("/sys/kernel/btf/vmlinux").read_bytes()


def _make_table(name: str, kind: TableType, rows: int) -> BpfMap:
    map_type, flags = (MapType.HASH, 0) if kind.keyed else (MapType.ARRAY, _INNER_MAP)
    return BpfMap.create(map_type, kind.key_bytes, kind.value_bytes, max(rows, 1), name=name, flags=flags)


def _version() -> str:
    """Digest of the programs: pins of another version are not taken over."""
    return hashlib.sha256(b"".join(object_path(name).read_bytes() for name in OBJECTS)).hexdigest()[:16]


def _inode_of(path: str, devices: Mapping[bytes, int]) -> tuple[int, int] | None:
    """Return (device, inode) of what is at ``path``; with a final slash only of a directory.

    The device is as the kernel itself numbers the file system, by the mount: ``st_dev`` is another on btrfs.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (os.O_DIRECTORY if path.endswith("/") else 0))
    except (OSError, ValueError):
        return None  # not there: the rule holds by path alone, which is what it says
    try:
        mount = re.search(rb"^mnt_id:\t(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_bytes(), re.MULTILINE)
        device = devices.get(mount[1]) if mount else None
        return None if device is None else (device, os.fstat(fd).st_ino)
    finally:
        os.close(fd)


def _devices() -> dict[bytes, int]:
    """Return mount id → device of this mount namespace."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount, _, device, _ = line.split(maxsplit=3)
        major, minor = map(int, device.split(b":"))
        found[mount] = major << 20 | minor
    return found


def _active_lsms() -> list[str]:
    try:
        return Path("/sys/kernel/security/lsm").read_text(encoding="ascii").strip().split(",")
    except OSError as err:
        raise BackendUnsupportedError("the kernel's list of security modules cannot be read", hint="mount securityfs") from err
