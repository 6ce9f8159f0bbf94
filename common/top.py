"""``states/top.yml``: which hosts get which policies, in which mode. From what people wrote to each node's share.

::

    policies:
    - files: [policies/base/*.yaml]     # globs below the states folder
      hosts: edge:!lab                  # a host pattern, as in Ansible
      mode: audit                       # or enforce, which is the default
    postures:                           # what allow-lists do with the rest; audit where nothing is said
    - hosts: vault
      file: block
    confirm:                            # how long a node may take to confirm a new policy, and by whom
    - hosts: ships
      timeout: 10m
      offline: true

Rules of this file:
- Unknown keys are refused. A glob without files and a pattern without hosts are mistakes, never nothing.
- A file that several entries give to a node is enforced there if one of them enforces it; likewise ``block`` wins for
  postures: the order of entries means nothing. Two ``confirm`` entries for one host are a mistake.
- Every mistake of every file is found in one go, each with file, line and key.
Owns: the file's format and its resolution. Does not own: inventories (two callables are given), signing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from garrison.common import limits
from garrison.common.confirm import ConfirmTerms, parse_duration
from garrison.common.errors import BundleError, InventoryError, PolicyError
from garrison.common.names import NodeName
from garrison.common.policy.lint import lint
from garrison.common.policy.load import TOP_FILE, Document, Lines, check_text, dotted, parse_yaml, read_text
from garrison.common.policy.rules import Mode, Posture, Postures
from garrison.common.trust.bundle import NodeShare, check_path

__all__ = ["TOP_FILE", "States", "Top", "read_states", "read_top"]

_T = TypeVar("_T")

Select = Callable[[str], Sequence[NodeName]]
Labels = Callable[[NodeName], Mapping[str, str]]


def _glob(value: str) -> str:
    if not value or value.startswith("/") or ".." in value.split("/") or "\0" in value:
        raise ValueError("must be a path or glob below the states folder")
    return value


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PolicyEntry(_Model):
    """Files, for hosts, in a mode."""

    files: Annotated[list[Annotated[str, AfterValidator(_glob)]], Field(min_length=1)]
    hosts: Annotated[str, Field(min_length=1)]
    mode: Annotated[Mode, BeforeValidator(lambda value: _word(Mode, value))] = Mode.ENFORCE


_Posture = Annotated[Posture | None, BeforeValidator(lambda value: _word(Posture, value))]


class PostureEntry(_Model):
    """Postures, for hosts."""

    hosts: Annotated[str, Field(min_length=1)]
    file: _Posture = None
    network: _Posture = None
    capability: _Posture = None
    device: _Posture = None


class ConfirmEntry(_Model):
    """How a new policy is confirmed, for hosts."""

    hosts: Annotated[str, Field(min_length=1)]
    timeout: Annotated[int, BeforeValidator(lambda value: parse_duration(str(value)))] = limits.CONFIRM_DEFAULT_S
    offline: Annotated[bool | None, BeforeValidator(lambda value: None if value == "auto" else value)] = None


class Top(_Model):
    """The file."""

    policies: Annotated[list[PolicyEntry], Field(min_length=1)]
    postures: list[PostureEntry] = []
    confirm: list[ConfirmEntry] = []


@dataclass(frozen=True)
class States:
    """A states folder, resolved.

    Attributes:
        files: Path below the folder → content, of every file that some node gets.
        nodes: Every host of the inventory → its share; empty for a host that no entry names.
        notes: What was passed over, for people.
    """

    files: dict[str, bytes]
    nodes: dict[NodeName, NodeShare]
    notes: list[str]


def _word(kind: Callable[[str], _T], value: object) -> _T:
    return kind(str(value))  # the enum's ValueError names the wrong word


def read_states(folder: Path, hosts: Iterable[NodeName], *, select: Select, labels: Labels) -> tuple[States, list[PolicyError]]:
    """Return the resolved states folder and every mistake in it; with a mistake the states are incomplete and must not be used.

    Args:
        folder: Holds ``top.yml`` and the policies.
        hosts: All hosts of the inventory.
        select: Hosts that a pattern means; an ``InventoryError`` or nothing for a pattern that means none.
        labels: Labels of a host.
    """
    errors: list[PolicyError] = []
    states = States({}, {}, [])
    try:
        top, lines = read_top(folder / TOP_FILE)
    except PolicyError as err:
        return states, [err]
    except ExceptionGroup as group:
        return states, [err for err in group.exceptions if isinstance(err, PolicyError)]
    resolver = _Resolver(folder, lines, select, errors)
    modes: dict[NodeName, dict[str, Mode]] = {host: {} for host in hosts}
    for number, entry in enumerate(top.policies):
        paths = resolver.files(entry.files, ("policies", number, "files"))
        for host in resolver.hosts(entry.hosts, ("policies", number, "hosts")):
            for path in paths:
                stricter = entry.mode is Mode.ENFORCE or path not in modes.setdefault(host, {})
                modes[host][path] = entry.mode if stricter else modes[host][path]
    postures, confirm = _postures(top, resolver), _confirm(top, resolver)
    for host, files in modes.items():
        share = NodeShare(
            files=files,
            labels=dict(labels(host)),
            postures=postures.get(host, Postures()),
            confirm=confirm.get(host, ConfirmTerms()),
        )
        states.nodes[host] = share
    _read_policies(folder, sorted({path for files in modes.values() for path in files} | resolver.seen), states, errors)
    return states, errors


def read_top(path: Path) -> tuple[Top, Lines]:
    """Return ``top.yml`` and the line of each of its keys.

    Raises:
        PolicyError: It cannot be read, is not YAML, or is not one document.
        ExceptionGroup: Of ``PolicyError``: every key that is wrong.
    """
    documents = list(parse_yaml(read_text(path), str(path)))
    if len(documents) != 1:
        raise PolicyError(f"must hold one document, holds {len(documents)}", file=str(path))
    value, lines = documents[0]
    try:
        return Top.model_validate(value), lines
    except ValidationError as err:
        mistakes = [_mistake(problem, lines, str(path)) for problem in err.errors(include_url=False)]
        raise ExceptionGroup(str(path), mistakes) from None


def _mistake(problem: Any, lines: Lines, file: str) -> PolicyError:
    where: tuple[str | int, ...] = tuple(problem["loc"])
    text, hint = str(problem["msg"]).removeprefix("Value error, "), ""
    if problem["type"] == "extra_forbidden":
        text, hint = "is no key here", "check the spelling and the indentation"
    elif problem["type"] == "missing":
        text = "is missing"
    return PolicyError(text[:1].lower() + text[1:], file=file, line=_line(lines, where), key=dotted(where), hint=hint)


def _line(lines: Lines, where: tuple[str | int, ...]) -> int:
    while where and where not in lines:
        where = where[:-1]
    return lines[where]


class _Resolver:
    """Looks up globs and patterns of one top file and collects what is wrong with them."""

    def __init__(self, folder: Path, lines: Lines, select: Select, errors: list[PolicyError]) -> None:
        self._folder, self._lines, self._select, self._errors = folder, lines, select, errors
        self._top = str(folder / TOP_FILE)
        self.seen: set[str] = set()

    def files(self, globs: Sequence[str], where: tuple[str | int, ...]) -> list[str]:
        """Return the files that globs mean, as paths below the folder."""
        found: list[str] = []
        for number, pattern in enumerate(globs):
            try:
                matched = sorted(p.relative_to(self._folder).as_posix() for p in self._folder.glob(pattern) if p.is_file())
                found += [check_path(path) for path in matched]
            except (ValueError, NotImplementedError, OSError, BundleError) as err:
                self.add(f"cannot be looked up: {err}", (*where, number))
                continue
            if not matched:
                self.add(f"{pattern!r} matches no file below {self._folder}", (*where, number))
        self.seen.update(found)
        return found

    def hosts(self, pattern: str, where: tuple[str | int, ...]) -> Sequence[NodeName]:
        """Return the hosts that a pattern means."""
        try:
            found = self._select(pattern)
        except InventoryError as err:
            self.add(str(err), where, err.hint)
            return ()
        if not found:
            self.add(f"{pattern!r} matches no host of the inventory", where)
        return found

    def add(self, text: str, where: tuple[str | int, ...], hint: str = "") -> None:
        """Note a mistake."""
        self._errors.append(PolicyError(text, file=self._top, line=_line(self._lines, where), key=dotted(where), hint=hint))


def _postures(top: Top, resolver: _Resolver) -> dict[NodeName, Postures]:
    found: dict[NodeName, Postures] = {}
    for number, entry in enumerate(top.postures):
        said = {name: getattr(entry, name) for name in ("file", "network", "capability", "device")}
        blocks = {name: posture for name, posture in said.items() if posture is Posture.BLOCK}
        for host in resolver.hosts(entry.hosts, ("postures", number, "hosts")):
            found[host] = msgspec.structs.replace(found.get(host, Postures()), **blocks)
    return found


def _confirm(top: Top, resolver: _Resolver) -> dict[NodeName, ConfirmTerms]:
    found: dict[NodeName, ConfirmTerms] = {}
    for number, entry in enumerate(top.confirm):
        for host in resolver.hosts(entry.hosts, ("confirm", number, "hosts")):
            if host in found:
                resolver.add(
                    f"{host} has terms from an entry before", ("confirm", number, "hosts"), "let one entry mean each host"
                )
            found[host] = ConfirmTerms(timeout_s=entry.timeout, offline=entry.offline)
    return found


def _read_policies(folder: Path, paths: Sequence[str], states: States, errors: list[PolicyError]) -> None:
    documents: list[Document] = []
    for path in paths:
        file = folder / path
        try:
            text = read_text(file)
        except PolicyError as err:
            errors.append(err)
            continue
        states.files[path] = text.encode()  # what was checked is what will be signed, even if the file changes meanwhile
        found, mistakes = check_text(text, str(file))
        errors += mistakes
        documents += found
        if not found and not mistakes:
            states.notes.append(f"{file}: holds no policy")
    for finding in lint(documents):
        if finding.level == "error":
            errors.append(PolicyError(finding.text, file=finding.file, line=finding.line, key=finding.key, hint=finding.hint))
        else:
            key = f"{finding.key}: " if finding.key else ""
            states.notes.append(f"{finding.level}: {finding.file}:{finding.line}: {key}{finding.text}")
