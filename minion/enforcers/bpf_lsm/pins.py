"""What stays in the kernel between agents: maps, programs, links, and the rules behind each generation, pinned on a bpffs.

    PINS/<version>/maps/<name>  programs/<name>  links/<name>  rules/<generation>  workloads

Rules of this file:
- A folder with ``links/ready`` in it is complete; others were left by an agent that died while it installed, and are removed.
- A new version is attached beside the old one, and the old one's links go only when the new one holds rules.
- Rules are kept with the tables that they are in, so events that nobody was there to read can be named later.
- Workloads are kept, so that the next agent's first generation, of this version or another, has those that the last one knew.
Owns: names and order of pins. Does not own: loading (``objects``), what is attached (``links``), tables (``layout``).
"""

from __future__ import annotations

import logging
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from garrison.bpf.loader import BpfMap, MapType, Object, open_pinned_map
from garrison.bpf.pathhash import KEY_BYTES, PathHasher
from garrison.common.errors import KernelError
from garrison.common.policy.rules import Rule
from garrison.minion.enforcers.bpf_lsm.layout import TABLES
from garrison.minion.enforcers.bpf_lsm.links import Links
from garrison.minion.enforcers.bpf_lsm.objects import attachable, load_all, version
from garrison.minion.workloads.model import Workload

__all__ = ["OUR_TABLE", "PinnedRules", "Pins", "remove"]

_SHARED: Final = (
    *TABLES, "active", "epoch", "agent", "events", "lost", "counters", "subjects", "locations", "secret", "protection", "ours",
    "exempt", "repeats", "subject_counters", "event_rate", "rule_rates", "rule_told", "workload_figures", "cgroups_made",
    "linkers",
)  # fmt: skip
_ZERO: Final = bytes(4)
_OURS: Final = struct.Struct("=Q")
OUR_TABLE: Final = struct.pack("=I", 1)  # map ``ours``: numbers that change with each generation
_OUR_OWN: Final = struct.pack("=I", 2)  # and those that stay
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(tuple[Rule, ...])
_WORKLOADS: Final = msgspec.msgpack.Decoder(tuple[Workload, ...])

_log = logging.getLogger(__name__)


class Pins:
    """The pins of this version of the programs, and those of others.

    Args:
        root: Folder on a bpffs; made when something is installed.

    Attributes:
        links: What is attached of this version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._version = version()
        self._loaded: list[Object] = []
        self._key = b""
        self.links = Links(self.folder)

    @property
    def folder(self) -> Path:
        """Where this version's pins are."""
        return self.root / self._version

    @property
    def rules(self) -> PinnedRules:
        """The rules of its generations."""
        return PinnedRules(self.folder / "rules")

    def others(self) -> list[Path]:
        """Return the folders of other versions, and of installations that were not finished."""
        if not self.root.is_dir():
            return []
        return [folder for folder in self.root.iterdir() if folder != self.folder or not self.links.is_ready()]

    def is_installed(self) -> bool:
        """Tell whether this version is there and holds rules, or can."""
        return self.links.is_complete()

    def open_maps(self) -> dict[str, BpfMap]:
        """Open the maps of this version."""
        return {name: open_pinned_map(self.folder / "maps" / name) for name in _SHARED}

    def load(self) -> None:
        """Load all programs, for ``install``; attaches nothing. Idempotent.

        Raises:
            KernelError: The kernel refused.
        """
        if not self._loaded:
            self._key = secrets.token_bytes(KEY_BYTES)
            load_all(PathHasher(self._key).rodata, self._loaded)

    def install(self) -> None:
        """Pin everything, and attach what is always needed. Without rules the programs decide nothing yet.

        Raises:
            KernelError: The kernel refused; nothing of it is left.
        """
        self.load()
        try:
            for name in ("maps", "rules"):
                (self.folder / name).mkdir(mode=0o700, parents=True)
            makers = {name: made for made in reversed(self._loaded) for name in made.maps}
            makers["secret"].maps["secret"].update(_ZERO, self._key)
            for key in _numbers(self._loaded):
                makers["ours"].maps["ours"].update(key, _OUR_OWN)
            for name in _SHARED:
                makers[name].pin_map(name, self.folder / "maps" / name)
            self.links.install(attachable(self._loaded))
        except BaseException:
            remove(self.folder)
            raise
        finally:
            self.close()

    def keep_workloads(self, workloads: Sequence[Workload]) -> None:
        """Keep these for the next agent, instead of those before."""
        whole, part = self.folder / "workloads", self.folder / "workloads-new"  # no dot: a bpffs takes none
        part.unlink(missing_ok=True)
        _pin_value(part, _ENCODER.encode(workloads), name="workloads")
        part.rename(whole)

    def known_workloads(self) -> tuple[Workload, ...]:
        """Return what was kept last by this version, or else by another."""
        for folder in (self.folder, *self.others()):
            if (folder / "workloads").exists():
                try:
                    return _WORKLOADS.decode(_pinned_value(folder / "workloads"))
                except (msgspec.DecodeError, zlib.error, KernelError) as err:
                    _log.warning("pins=%s workloads=unreadable error=%s", folder, err)  # another version's; soon found anew
        return ()

    def close(self) -> None:
        """Let go of what was loaded; what is pinned stays. Idempotent."""
        for made in self._loaded:
            made.close()
        self._loaded.clear()

    def remove_all(self) -> None:
        """Take everything away."""
        if self.root.is_dir():
            for folder in self.root.iterdir():
                remove(folder)
            self.root.rmdir()


class PinnedRules:
    """Rules by generation, each generation in a map of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, generation: int, rules: Sequence[Rule], keep_last: int) -> None:
        """Keep the rules of a generation, and drop all but the last ones."""
        (self._folder / str(generation)).unlink(missing_ok=True)
        _pin_value(self._folder / str(generation), _ENCODER.encode(rules), name="rules")
        for number in self._generations():
            if number <= generation - keep_last:
                (self._folder / str(number)).unlink()

    def load(self) -> dict[int, tuple[Rule, ...]]:
        """Return what is kept."""
        return {number: self._read(number) for number in self._generations()}

    def _generations(self) -> Iterable[int]:
        return sorted(int(path.name) for path in self._folder.iterdir()) if self._folder.is_dir() else ()

    def _read(self, generation: int) -> tuple[Rule, ...]:
        return _DECODER.decode(_pinned_value(self._folder / str(generation)))


def _pin_value(path: Path, raw: bytes, *, name: str) -> None:
    packed = zlib.compress(raw)
    made = BpfMap.create(MapType.ARRAY, 4, len(packed), 1, name=name)
    try:
        made.update(_ZERO, packed)
        made.pin(path)
    finally:
        made.close()


def _pinned_value(path: Path) -> bytes:
    held = open_pinned_map(path)
    try:
        return zlib.decompress(held.lookup(_ZERO) or b"")
    finally:
        held.close()


def remove(folder: Path) -> None:
    """Remove a version's folder: links first, so that nothing is decided by half."""
    shutil.rmtree(folder / "links", ignore_errors=True)
    shutil.rmtree(folder)


def _numbers(loaded: Sequence[Object]) -> Iterable[bytes]:
    """Yield the kernel's numbers of maps and of programs that are or may be attached, as keys of ``ours``."""
    for made in loaded:
        yield from (_OURS.pack(held.id << 1) for held in made.maps.values())
    yield from (_OURS.pack(program.id << 1 | 1) for program in attachable(loaded))
