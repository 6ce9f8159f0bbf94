"""The RuleSet: backend-neutral rules that all enforcers compile from.

Rules of this file:
- Pure values. Building them from documents is ``normalise``; matching them against operations is ``match``.
- A rule's id is ``<policy name>/<12 hex digits of its content>``: equal content keeps its id across edits elsewhere,
  and the kernel event carries it. Content is what it matches and what it says, not how it is graded (severity, tags, message)
  nor in which mode it is held.
- Order means nothing. ``match`` states the precedence; ``docs/adr/0003-policy-language.md`` says why.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

__all__ = [
    "ANY_SOURCE",
    "Entity",
    "HostScope",
    "Mode",
    "Other",
    "PathKind",
    "PathTarget",
    "Posture",
    "Postures",
    "Protocol",
    "Rule",
    "RuleSet",
    "RuleStatus",
    "Scope",
    "Source",
    "SyscallPath",
    "Verdict",
    "WorkloadScope",
]


class Verdict(StrEnum):
    """What a rule says."""

    ALLOW = "allow"
    AUDIT = "audit"
    BLOCK = "block"


class Mode(StrEnum):
    """``audit`` turns every block into an audit; ``enforce`` means what it says."""

    AUDIT = "audit"
    ENFORCE = "enforce"


class Posture(StrEnum):
    """What unmatched operations get in allow-list mode."""

    AUDIT = "audit"
    BLOCK = "block"


class Entity(StrEnum):
    """What kind of operation a rule is about."""

    PROCESS = "process"
    FILE = "file"
    NETWORK = "network"
    DNS = "dns"
    CAPABILITY = "capability"
    SYSCALL = "syscall"
    DEVICE = "device"
    PRESET = "preset"
    NATIVE = "native"
    FIREWALL = "firewall"


class PathKind(StrEnum):
    """How a path target is matched. ``NAME`` is the basename of an executable (KubeArmor's ``execname``)."""

    EXACT = "exact"
    DIRECTORY = "directory"
    GLOB = "glob"
    NAME = "name"


class PathTarget(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="path"):
    """A path, directory, glob or executable name.

    Attributes:
        how: Kind of match.
        value: Absolute path; for ``DIRECTORY`` it ends in ``/``; for ``NAME`` a basename.
        recursive: For ``DIRECTORY``: everything below, not only direct children.
    """

    how: PathKind
    value: str
    recursive: bool = False


class Protocol(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="protocol"):
    """A network protocol by KubeArmor's name: tcp udp raw icmp icmpv6 sctp stream dgram rdm seqpacket dccp packet all."""

    name: str


class Other(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="other"):
    """A target of an entity that is not a path or a protocol.

    Attributes:
        value: Capability name, syscall names joined by commas, domain, preset name, or a short text for people.
        spec: The normalised source fields as canonical JSON, for the backend that understands them.
    """

    value: str
    spec: str = ""


class SyscallPath(msgspec.Struct, frozen=True, omit_defaults=True):
    """``Other.spec`` of a system call rule with a path; a path that ends in ``/`` is a directory."""

    path: str
    recursive: bool = False


Target = PathTarget | Protocol | Other


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """The program that acts: an executable's path, or any executable in a directory (value ends in ``/``)."""

    value: str
    recursive: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether any program in ``value`` counts."""
        return self.value.endswith("/")


ANY_SOURCE: Final[tuple[Source, ...]] = ()


class HostScope(msgspec.Struct, frozen=True, tag_field="scope", tag="host"):
    """Every process on the node."""


class WorkloadScope(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="scope", tag="workload"):
    """Workloads (containers, systemd units, users) on the node, by label.

    Attributes:
        namespace: Kubernetes namespace as written, empty when none.
        labels: All must be carried, ``key=value``.
        any_of: For each tuple at least one ``key=value`` must be carried (matchExpressions, In).
        none_of: None of these may be carried (matchExpressions, NotIn).
        namespaces: For cluster policies: namespaces that count, empty for all.
        not_namespaces: For cluster policies: namespaces that do not count.
    """

    namespace: str = ""
    labels: tuple[str, ...] = ()
    any_of: tuple[tuple[str, ...], ...] = ()
    none_of: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()


Scope = HostScope | WorkloadScope


class Rule(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One normalised rule.

    Attributes:
        id: ``policy/hash``.
        policy: Name of the policy it came from.
        entity: Kind of operation.
        verdict: What it says.
        target: On what.
        sources: By which programs; empty for any. More than one means any of them.
        scope: For whom.
        owner_only: Allow: grants only the file's owner. Audit and block: fires for everyone but the owner.
        read_only: Allow: grants only reads. Audit and block: fires for writes only (with ``owner_only``: for either breach).
        no_tty: KubeArmor's ``pts: false``: fires only when the process has a controlling terminal.
        allowed_args: Block: fires unless every argument is listed. ``None`` when not given.
        severity: 1 to 10.
        tags: Free strings for the alert.
        message: Text for the alert.
        mode: ``audit`` turns a block, and the block posture of an allow-list, into an audit. Not part of the id.
        exempts: Allow: it only lets its sources past what its policy refuses to everybody, and makes no allow-list for them: a
            source-less block or audit rule covers its target, or it names every path. Not part of the id.
    """

    id: str
    policy: str
    entity: Entity
    verdict: Verdict
    target: Target
    sources: tuple[Source, ...] = ANY_SOURCE
    scope: Scope = HostScope()
    owner_only: bool = False
    read_only: bool = False
    no_tty: bool = False
    allowed_args: tuple[str, ...] | None = None
    severity: int = 1
    tags: tuple[str, ...] = ()
    message: str = ""
    mode: Mode = Mode.ENFORCE
    exempts: bool = False


class Postures(msgspec.Struct, frozen=True, kw_only=True):
    """Default posture per entity, for what an allow-list does not name. Processes use the file posture."""

    file: Posture = Posture.AUDIT
    network: Posture = Posture.AUDIT
    capability: Posture = Posture.AUDIT
    device: Posture = Posture.AUDIT


class RuleSet(msgspec.Struct, frozen=True, kw_only=True):
    """All rules that one node must hold.

    Attributes:
        rules: Unique by id, sorted by id.
        postures: What allow-lists do with the rest.
    """

    rules: tuple[Rule, ...] = ()
    postures: Postures = Postures()


class RuleStatus(StrEnum):
    """What a node makes of a rule, best first."""

    ENFORCED = "enforced"
    AUDITED = "audited"
    DEGRADED = "degraded"
    IMPOSSIBLE = "impossible"
    INERT = "inert"
