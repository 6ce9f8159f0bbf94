"""From YAML text to policy documents, with the place of every mistake.

Rules of this file:
- The parser composes nodes, never objects: tags cannot make anything, duplicate keys are seen, lines are kept.
- Size, number of documents, depth and number of nodes after aliases are limited before anything is built.
- Documents of other API groups are returned as ``Foreign``: skipped and said so, since people keep them in the same folders.
- ``check_text`` gives every error of a file, for lint; ``load_text`` raises the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from pydantic import TypeAdapter, ValidationError

from garrison.common import limits
from garrison.common.errors import PolicyError
from garrison.common.policy import models

__all__ = [
    "TOP_FILE",
    "Document",
    "Foreign",
    "KeyPath",
    "Policy",
    "check_text",
    "dotted",
    "load_files",
    "load_text",
    "parse_yaml",
    "read_text",
    "yaml_files",
]

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]

_KINDS: Final[dict[str, TypeAdapter[Any]]] = {
    "KubeArmorPolicy": TypeAdapter(models.ContainerPolicy),
    "KubeArmorClusterPolicy": TypeAdapter(models.ClusterPolicy),
    "KubeArmorHostPolicy": TypeAdapter(models.HostPolicy),
    "KubeArmorNetworkPolicy": TypeAdapter(models.NetworkPolicy),
}
_GROUP: Final = "security.kubearmor.com/"
TOP_FILE: Final = "top.yml"  # of a states folder: says which node holds which policies, and is none
_COLLECTIONS: Final = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy and where it stands.

    Attributes:
        model: The document.
        file: Path as given.
        line: One-based line where the document begins.
        lines: Line of each key path in the document.
    """

    model: models.PolicyDocument
    file: str
    line: int
    lines: Lines = {}

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.model.metadata.name

    @property
    def kind(self) -> str:
        """One of KubeArmor's four kinds."""
        return self.model.kind

    def line_of(self, path: KeyPath) -> int:
        """Return the line of the innermost key of ``path`` that stands in the document."""
        return _line_of(self.lines, path) or self.line


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """A document of another API group, which garrison does not enforce."""

    kind: str
    name: str
    file: str
    line: int


Document = Policy | Foreign


def load_text(text: str, file: str = "<string>") -> list[Document]:
    """Return the documents in ``text``.

    Raises:
        PolicyError: The first thing that is wrong.
    """
    documents, errors = check_text(text, file)
    if errors:
        raise errors[0]
    return documents


def load_files(paths: Iterable[Path]) -> list[Document]:
    """Return the documents of files, and of every ``*.yaml`` and ``*.yml`` below directories, in order of path.

    Raises:
        PolicyError: The first thing that is wrong, an unreadable file or a directory without policies included.
    """
    return [document for path in yaml_files(paths) for document in load_text(read_text(path), str(path))]


def yaml_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files that ``paths`` name.

    Raises:
        PolicyError: A path does not exist, or a directory holds no YAML file.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix in {".yaml", ".yml"} and p.is_file() and p != path / TOP_FILE)
        if not found:
            raise PolicyError("holds no *.yaml file", file=str(path))
        yield from found


def read_text(path: Path) -> str:
    """Return a policy file's text.

    Raises:
        PolicyError: Absent, unreadable, too large or not UTF-8.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > limits.POLICY_FILE_MAX_BYTES:
            raise PolicyError(f"is {len(raw)} bytes, the limit is {limits.POLICY_FILE_MAX_BYTES}", file=str(path))
        return raw.decode("utf-8-sig")
    except OSError as err:
        raise PolicyError(f"cannot be read: {err.strerror}", file=str(path)) from err
    except UnicodeDecodeError as err:
        raise PolicyError("is not UTF-8 text", file=str(path)) from err


def check_text(text: str, file: str = "<string>") -> tuple[list[Document], list[PolicyError]]:
    """Return the documents that are right and every error in those that are not."""
    documents: list[Document] = []
    errors: list[PolicyError] = []
    try:
        for value, lines in parse_yaml(text, file):
            _take(value, lines, file, documents, errors)
    except PolicyError as err:
        errors.append(err)
    return documents, errors


def parse_yaml(text: str, file: str) -> Iterator[tuple[Any, Lines]]:
    """Yield each document as plain values and the line of each key path (``()`` for the document).

    Raises:
        PolicyError: Not YAML, a duplicate key, an unknown tag, or over a limit.
    """
    if len(text.encode()) > limits.POLICY_FILE_MAX_BYTES:
        raise PolicyError(f"is over {limits.POLICY_FILE_MAX_BYTES} bytes", file=file)
    builder = _Builder(file)
    try:
        for count, node in enumerate(yaml.compose_all(text, Loader=yaml.SafeLoader), 1):
            if count > limits.POLICY_DOCUMENTS_MAX:
                raise PolicyError(f"holds more than {limits.POLICY_DOCUMENTS_MAX} documents", file=file)
            lines: Lines = {(): node.start_mark.line + 1}
            value = builder.build(node, (), lines, 0)
            if value is not None:
                yield value, lines
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        problem = getattr(err, "problem", None) or str(err)
        raise PolicyError(f"is not YAML: {problem}", file=file, line=mark.line + 1 if mark else 0) from err
    except RecursionError as err:
        raise PolicyError(f"is nested deeper than {limits.YAML_DEPTH_MAX}", file=file) from err


class _Builder:
    """Turns nodes into values; counts nodes over the whole file, aliases as often as they are used."""

    def __init__(self, file: str) -> None:
        self._file, self._count = file, 0
        self._scalars = yaml.SafeLoader("")

    def build(self, node: yaml.Node, path: KeyPath, lines: Lines, depth: int) -> Any:
        """Return the value of ``node`` and note its line under ``path``."""
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > limits.YAML_NODES_MAX:
            raise PolicyError(f"holds more than {limits.YAML_NODES_MAX} values", file=self._file, line=line)
        if depth > limits.YAML_DEPTH_MAX:
            raise PolicyError(f"is nested deeper than {limits.YAML_DEPTH_MAX}", file=self._file, line=line)
        lines.setdefault(path, line)
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise PolicyError(f"tag {node.tag} is not read", file=self._file, line=line, key=dotted(path))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, lines, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), lines, depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, lines: Lines, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key == "<<":
                problem = "keys must be plain text; merge keys are not read"
                raise PolicyError(problem, file=self._file, line=line, key=dotted(path))
            if key in found:
                raise PolicyError("stands here twice", file=self._file, line=line, key=dotted((*path, key)))
            lines[(*path, key)] = line
            found[key] = self.build(value_node, (*path, key), lines, depth + 1)
        return found

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        constructor = yaml.SafeLoader.yaml_constructors.get(node.tag)
        if constructor is None or not node.tag.startswith("tag:yaml.org,2002:"):
            raise PolicyError(f"tag {node.tag} is not read", file=self._file, line=node.start_mark.line + 1, key=dotted(path))
        if node.tag.endswith(":timestamp"):
            return node.value  # a date is text here
        try:
            return constructor(self._scalars, node)
        except ValueError as err:
            raise PolicyError(f"is no value: {err}", file=self._file, line=node.start_mark.line + 1, key=dotted(path)) from err


def _take(value: Any, lines: Lines, file: str, documents: list[Document], errors: list[PolicyError]) -> None:
    line = lines[()]
    if not isinstance(value, dict):
        errors.append(PolicyError("is no mapping", file=file, line=line))
        return
    group, kind = value.get("apiVersion"), value.get("kind")
    if not isinstance(group, str) or not isinstance(kind, str):
        errors.append(PolicyError("needs apiVersion and kind", file=file, line=line))
    elif not group.startswith(_GROUP):
        metadata = value.get("metadata")
        name = metadata.get("name", "") if isinstance(metadata, dict) else ""
        documents.append(Foreign(kind=f"{group} {kind}", name=str(name), file=file, line=line))
    elif kind not in _KINDS:
        hint, at = f"use {', '.join(_KINDS)}", lines.get(("kind",), line)
        errors.append(PolicyError(f"{kind!r} is no kind of {group}", file=file, line=at, key="kind", hint=hint))
    else:
        try:
            documents.append(Policy(model=_KINDS[kind].validate_python(value), file=file, line=line, lines=lines))
        except ValidationError as err:
            found = (_policy_error(problem, lines, file) for problem in err.errors(include_url=False))
            errors.extend(sorted(found, key=lambda error: (error.line, error.key)))


def _policy_error(problem: Any, lines: Lines, file: str) -> PolicyError:
    path: KeyPath = tuple(problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    hint = ""
    if problem["type"] == "extra_forbidden":
        text = "is no key here"
        hint = "check the spelling and the indentation"
    elif problem["type"] == "missing":
        text = "is missing"
    return PolicyError(text[:1].lower() + text[1:], file=file, line=_line_of(lines, path), key=dotted(path), hint=hint)


def _line_of(lines: Lines, path: KeyPath) -> int:
    known = path
    while known and known not in lines:
        known = known[:-1]
    return lines.get(known, 0)


def dotted(path: KeyPath) -> str:
    """Return a key path as people write it: ``spec.process.matchPaths[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
