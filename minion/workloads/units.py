"""systemd units that this node knows, running or not, and the labels that their files give them. systemd itself is not asked.

Rules of this file:
- ``[X-Garrison]`` ``Labels=app=web tier=front`` in a unit file or a drop-in gives a unit labels; systemd ignores sections
  that begin with ``X-``. Several lines add up, an empty one begins anew, as with systemd's own lists.
- Only what root wrote counts: system units, and users' units in ``/etc`` and ``/usr``. A user's own unit files give no labels.
- A unit that does not run has its cgroup predicted: ``Slice=``, else ``system.slice``, for a template's instance the
  template's slice.
Pure but for ``read_units``.

Source: systemd.unit(5), systemd.syntax(7), systemd.resource-control(5), systemd.special(7).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from garrison.common import limits
from garrison.minion.workloads.files import read_regular
from garrison.minion.workloads.places import slice_path

__all__ = ["SYSTEM_PATHS", "USER_PATHS", "UnitFacts", "Units", "parse_unit", "read_units", "template_of", "unit_folders"]

# Most important first, as systemd looks them through.
SYSTEM_PATHS: Final = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")
USER_PATHS: Final = ("etc/systemd/user", "run/systemd/user", "usr/local/lib/systemd/user", "usr/lib/systemd/user")
GENERATED: Final = ("run/systemd/generator.early", "run/systemd/generator", "run/systemd/generator.late")
_SECTION: Final = re.compile(r"\[([^\]]*)\]")
_KIND: Final = ".service"
_MASK: Final = "/dev/null"


class UnitFacts(msgspec.Struct, frozen=True):
    """What files say of a unit.

    Attributes:
        labels: Keys and values.
        slice: As written in ``Slice=``, with specifiers; empty when not.
    """

    labels: tuple[tuple[str, str], ...] = ()
    slice: str = ""


_NOTHING: Final = UnitFacts()


class Units(msgspec.Struct, frozen=True):
    """Units of one manager.

    Attributes:
        files: By name as the file has it: ``nginx.service``, ``getty@.service``.
        instances: Instances of templates that something wants: ``getty@tty1.service``.
        bare: Those of ``files`` that have drop-ins and no file of their own: they run only if somebody makes them otherwise.
        left_out: Files that could not be read or were too many.
    """

    files: dict[str, UnitFacts] = {}
    instances: frozenset[str] = frozenset()
    bare: frozenset[str] = frozenset()
    left_out: int = 0

    def facts(self, name: str) -> UnitFacts:
        """Return what files say of a unit: its own, else its template's; labels of both add up."""
        own, template = self.files.get(name), self.files.get(template_of(name) or "")
        if own is None or template is None:
            return own or template or UnitFacts()
        return UnitFacts(labels=(*template.labels, *own.labels), slice=own.slice or template.slice)

    def names(self) -> set[str]:
        """Return the units that may run: all but templates."""
        return {name for name in self.files.keys() - self.bare if not name.partition("@")[2].startswith(".")} | self.instances

    def cgroup(self, name: str) -> str:
        """Return where a system unit will be when it runs; empty when its slice cannot be told."""
        facts = self.facts(name)
        if facts.slice:
            home = _specified(facts.slice, name)
            path = slice_path(home)
            return f"{path}/{name}" if path or home == "-.slice" else ""
        if template := template_of(name):
            escaped = template.removesuffix(f"@{_KIND}").replace("-", "\\x2d")
            return f"/system.slice/system-{escaped}.slice/{name}"
        return f"/system.slice/{name}"


def template_of(name: str) -> str:
    """Return the template of an instance, ``getty@.service`` for ``getty@tty1.service``; empty for other units."""
    stem, at, instance = name.removesuffix(_KIND).partition("@")
    return f"{stem}@{_KIND}" if at and instance and name.endswith(_KIND) else ""


def parse_unit(text: str, before: UnitFacts = _NOTHING) -> UnitFacts:
    """Return what a unit file or drop-in says, on top of what stood in the ones before it."""
    labels, home, section = list(before.labels), before.slice, ""
    for line in _joined(text):
        if header := _SECTION.fullmatch(line):
            section = header[1]
            continue
        key, is_setting, value = (part.strip() for part in line.partition("="))
        if not is_setting:
            continue
        if section == "X-Garrison" and key == "Labels":
            labels = [*labels, *_labels(value)] if value else []
        elif key == "Slice" and section in {"Service", "Scope"}:
            home = value
    return UnitFacts(labels=tuple(labels), slice=home)


def _joined(text: str) -> Iterator[str]:
    """Yield lines as systemd reads them: joined after a backslash, without comments, not even amid a joined line."""
    pending = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("#", ";")):
            continue
        if stripped.endswith("\\"):
            pending += stripped[:-1] + " "
            continue
        if full := (pending + stripped).strip():
            yield full
        pending = ""
    if pending.strip():
        yield pending.strip()


def _labels(value: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(value)
    except ValueError:  # a quote that does not end: systemd refuses such a line too
        return []
    return [(key, text) for word in words for key, sign, text in [word.partition("=")] if sign]


def _specified(text: str, name: str) -> str:
    """Return ``text`` with the specifiers that a slice may be named by."""
    prefix, _, instance = name.removesuffix(_KIND).partition("@")
    for specifier, value in (("%i", instance), ("%p", prefix), ("%n", name), ("%N", name.removesuffix(_KIND))):
        text = text.replace(specifier, value)
    return text


# ---- reading ---------------------------------------------------------------------------------------------------------
def unit_folders(root: Path, paths: Sequence[str]) -> list[Path]:
    """Return the folders with unit files and drop-ins that there are, most important first."""
    found = [root / path for path in (*paths, *(GENERATED if paths == SYSTEM_PATHS else ())) if (root / path).is_dir()]
    inner = [sub for folder in found for sub in _listed(folder) if sub.name.endswith((f"{_KIND}.d", ".wants")) and sub.is_dir()]
    return [*found, *inner]


def read_units(root: Path = Path("/"), paths: Sequence[str] = SYSTEM_PATHS) -> Units:
    """Return the services that the files below ``root`` describe. A file that cannot be read is counted, not raised."""
    where: dict[str, Path] = {}
    drop_ins: dict[str, dict[str, Path]] = {}
    instances: set[str] = set()
    total = left_out = 0
    for folder in unit_folders(root, paths):
        for path in _listed(folder):
            total += 1
            if total > limits.UNIT_FILES_MAX:
                left_out += 1
            elif folder.name.endswith(".wants"):
                instances |= {path.name} if template_of(path.name) else set()
            elif folder.name.endswith(f"{_KIND}.d"):
                if path.name.endswith(".conf"):
                    drop_ins.setdefault(folder.name.removesuffix(".d"), {}).setdefault(path.name, path)
            elif path.name.endswith(_KIND):
                where.setdefault(path.name, path)
    files: dict[str, UnitFacts] = {}
    for name in sorted({*where, *drop_ins}):
        chain = [*([where[name]] if name in where else []), *(path for _, path in sorted(drop_ins.get(name, {}).items()))]
        facts, unread = _read_chain(name, chain)
        left_out += unread
        if facts is not None:
            files[name] = facts
    return Units(files=files, instances=frozenset(instances), bare=frozenset(files.keys() - where.keys()), left_out=left_out)


def _read_chain(name: str, chain: Sequence[Path]) -> tuple[UnitFacts | None, int]:
    """Return what a unit's files say together, ``None`` for an alias or a masked unit, and how many could not be read."""
    facts, unread = UnitFacts(), 0
    for path in chain:
        try:
            target = path.resolve(strict=True)
            if str(target) == _MASK or (path.name == name and target.name != name):
                return None, unread
            facts = parse_unit(read_regular(target).decode(errors="replace"), facts)
        except (OSError, RuntimeError):  # gone meanwhile, a link to nowhere or to itself, or not root's
            unread += path.exists()
    return facts, unread


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # gone since it was listed
        return []
