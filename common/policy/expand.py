"""From one policy to its rules, wherever it applies: defaults inherited, lists split, every rule with its id.

Rules of this file:
- Pure, and blind to nodes: which policies a node holds is ``normalise``'s question.
- severity, tags, message and action come from the rule, else its section, else the spec; an action named nowhere is Block.
- Order and repetition in sources, arguments and tags mean nothing, so they are sorted before the id is made.
- Each rule comes with its key path, so that lint can point at it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from garrison.common.policy import models
from garrison.common.policy.devices import ANY, DeviceSpec, device_text
from garrison.common.policy.flows import Direction, FlowSpec, IpNetworks, PortRange
from garrison.common.policy.load import KeyPath, Policy
from garrison.common.policy.match import path_matches
from garrison.common.policy.rules import (
    Entity,
    HostScope,
    Mode,
    Other,
    PathKind,
    PathTarget,
    Protocol,
    Rule,
    Scope,
    Source,
    SyscallPath,
    Target,
    Verdict,
    WorkloadScope,
)

__all__ = ["CONTAINERS", "NO_NAMESPACE", "OUTSIDE_KUBERNETES", "Located", "expand", "rule_id"]

CONTAINERS: Final = "garrison/kind=container"  # carried by every container, and by nothing else
OUTSIDE_KUBERNETES: Final = "default"  # namespace of everything that Kubernetes does not run
_KUBEARMORS_OUTSIDE: Final = "container_namespace"  # KubeArmor's name for it
NO_NAMESPACE: Final = ("-",)  # what namespace lists without a common name leave: no names would mean all, and "-" names none
_EVERY_PATH: Final = PathTarget(PathKind.DIRECTORY, "/", recursive=True)
_PEERS_SHOWN: Final = 4  # networks of a firewall rule in its text for people
_ID_DIGITS: Final = 12  # 48 bits: two of a policy's 1,000 rules collide in one of 500 million policies


class Located(msgspec.Struct, frozen=True):
    """A rule and the key path where it stands in its document."""

    key: KeyPath
    rule: Rule


class _Draft(msgspec.Struct, frozen=True):
    """What a match says before it is graded: key path below ``spec``, levels from the inside out, and the rule's own fields."""

    key: KeyPath
    levels: tuple[models.Graded, ...]
    entity: Entity
    target: Target
    fields: dict[str, Any] = {}


def expand(policy: Policy) -> tuple[Located, ...]:
    """Return the rules of ``policy`` in the order of the document, each with mode ``enforce``.

    Two that mean the same have the same id; ``normalise`` makes one of them.
    """
    scope = _scope(policy.model)
    located = [Located(("spec", *draft.key), _finish(policy, scope, draft)) for draft in _drafts(policy.model)]
    refusals = [item.rule for item in located if item.rule.verdict is not Verdict.ALLOW and not item.rule.sources]
    return tuple(Located(item.key, _marked(item.rule, refusals)) for item in located)


def rule_id(rule: Rule) -> str:
    """Return ``policy/hash`` for a rule; how it is graded and its mode do not count."""
    bare = msgspec.structs.replace(rule, id="", severity=1, tags=(), message="", mode=Mode.ENFORCE, exempts=False)
    return f"{rule.policy}/{hashlib.sha256(msgspec.json.encode(bare)).hexdigest()[:_ID_DIGITS]}"


def _finish(policy: Policy, scope: Scope, draft: _Draft) -> Rule:
    levels = (*draft.levels, policy.model.spec)
    rule = Rule(
        id="",
        policy=policy.name,
        entity=draft.entity,
        verdict=Verdict((_inherit(levels, "action") or "Block").lower()),
        target=draft.target,
        scope=scope,
        severity=_inherit(levels, "severity") or 1,
        tags=_unique(_inherit(levels, "tags") or ()),
        message=_inherit(levels, "message") or "",
        **draft.fields,
    )
    return msgspec.structs.replace(rule, id=rule_id(rule))


def _marked(rule: Rule, refusals: Sequence[Rule]) -> Rule:
    """Return ``rule``, marked when it is an allow with sources that only lets them past one of ``refusals``."""
    if rule.verdict is not Verdict.ALLOW or not rule.sources:
        return rule
    exempts = rule.target == _EVERY_PATH or any(
        refusal.entity is rule.entity and _covers(refusal.target, rule.target) for refusal in refusals
    )
    return msgspec.structs.replace(rule, exempts=exempts)


def _covers(outer: Target, inner: Target) -> bool:
    """Whether everything that ``inner`` names is named by ``outer``, as far as that can be told from the two alone."""
    if outer == inner:
        return True
    if isinstance(outer, Protocol) and isinstance(inner, Protocol):
        return outer.name == "all"
    if not isinstance(outer, PathTarget) or not isinstance(inner, PathTarget):
        return False
    if inner.how is PathKind.EXACT:
        return path_matches(outer, inner.value)
    within = outer.how is inner.how is PathKind.DIRECTORY and inner.value.startswith(outer.value)
    return within and (outer.recursive or (inner.value == outer.value and not inner.recursive))


def _inherit(levels: Iterable[models.Graded], name: str) -> Any:
    return next((value for level in levels if (value := getattr(level, name))), None)


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


# ---- for whom --------------------------------------------------------------------------------------------------------
def _scope(model: models.PolicyDocument) -> Scope:
    match model:
        case models.HostPolicy():
            return HostScope()
        case models.NetworkPolicy():
            selector = model.spec.selector
            return _workloads(selector, model.metadata.namespace) if selector != models.Selector() else HostScope()
        case models.ContainerPolicy():
            return _workloads(model.spec.selector, model.metadata.namespace)
        case models.ClusterPolicy():
            return _workloads(model.spec.selector, "")


def _workloads(selector: models.AnySelector, namespace: str) -> WorkloadScope:
    wanted, unwanted, within, without = list[tuple[str, ...]](), set[str](), list[set[str]](), set[str]()
    for expression in selector.matchExpressions:
        if expression.key == "namespace":
            names = {_namespace(value) for value in expression.values}
            within.append(names) if expression.operator == "In" else without.update(names)
        elif expression.operator == "In":
            wanted.append(_unique(expression.values))
        else:
            unwanted.update(expression.values)
    namespaces = (set.intersection(*within) or set(NO_NAMESPACE)) if within else set[str]()
    labels = _unique(f"{key}={value}" for key, value in selector.matchLabels.items())
    return WorkloadScope(
        namespace=_namespace(namespace),
        # Who names no label means containers, as in Kubernetes: not each service and login of the node.
        labels=labels if labels or wanted else (CONTAINERS,),
        any_of=tuple(sorted(wanted)),
        none_of=_unique(unwanted),
        namespaces=_unique(namespaces),
        not_namespaces=_unique(without),
    )


def _namespace(name: str) -> str:
    return OUTSIDE_KUBERNETES if name == _KUBEARMORS_OUTSIDE else name


# ---- on what ---------------------------------------------------------------------------------------------------------
def _drafts(model: models.PolicyDocument) -> Iterator[_Draft]:
    if isinstance(model, models.NetworkPolicy):
        yield from _firewall(model.spec)
        return
    spec = model.spec
    yield from _paths(Entity.PROCESS, "process", spec.process)
    yield from _paths(Entity.FILE, "file", spec.file)
    yield from _network(spec.network or models.Network())
    yield from _capabilities(spec.capabilities or models.Capabilities())
    yield from _syscalls(spec.syscalls or models.Syscalls())
    if isinstance(spec, models.HostSpec):
        yield from _devices(spec.device or models.Device())
    else:
        for i, preset in enumerate(spec.presets):
            yield _Draft(("presets", i), (preset,), Entity.PRESET, Other(preset.name))
    if spec.apparmor:
        yield _Draft(("apparmor",), (), Entity.NATIVE, Other("apparmor", _canonical({"apparmor": spec.apparmor})))


def _paths(entity: Entity, name: str, section: models.Process | models.File | None) -> Iterator[_Draft]:
    if section is None:
        return
    for field in ("matchPaths", "matchDirectories", "matchPatterns"):
        for i, match in enumerate(getattr(section, field)):
            fields = {
                "sources": _sources(match.fromSource),
                "owner_only": match.ownerOnly,
                "read_only": getattr(match, "readOnly", False),
                "no_tty": match.pts is False,
                "allowed_args": _arguments(match),
            }
            yield _Draft((name, field, i), (match, section), entity, _path_target(match), fields)


def _path_target(match: Any) -> PathTarget:
    match match:
        case models.ProcessPath(execname=str(name)):
            return PathTarget(PathKind.NAME, name)
        case models.ProcessPath(path=str(path)) | models.FilePath(path=path):
            return PathTarget(PathKind.EXACT, path)
        case models.ProcessDirectory() | models.FileDirectory():
            return PathTarget(PathKind.DIRECTORY, match.dir, match.recursive)
        case _:
            return PathTarget(PathKind.GLOB, match.pattern)


def _arguments(match: Any) -> tuple[str, ...] | None:
    listed = getattr(match, "allowedArgs", None)
    return None if listed is None else _unique(listed)


def _sources(found: Iterable[models.FromSource]) -> tuple[Source, ...]:
    sources = {Source(s.path) if s.path is not None else Source(s.dir or "/", s.recursive) for s in found}
    return tuple(sorted(sources, key=lambda source: (source.value, source.recursive)))


def _network(section: models.Network) -> Iterator[_Draft]:
    for i, match in enumerate(section.matchProtocols):
        fields = {"sources": _sources(match.fromSource), "no_tty": match.pts is False}
        for name in match.protocol.split(","):
            yield _Draft(("network", "matchProtocols", i), (match, section), Entity.NETWORK, Protocol(name), fields)
    for i, query in enumerate(section.matchDNSQueries):
        fields = {"sources": _sources(query.fromSource)}
        yield _Draft(("network", "matchDNSQueries", i), (query, section), Entity.DNS, Other(query.domain), fields)


def _capabilities(section: models.Capabilities) -> Iterator[_Draft]:
    for i, match in enumerate(section.matchCapabilities):
        fields = {"sources": _sources(match.fromSource)}
        key = ("capabilities", "matchCapabilities", i)
        yield _Draft(key, (match, section), Entity.CAPABILITY, Other(match.capability), fields)


def _syscalls(section: models.Syscalls) -> Iterator[_Draft]:
    for i, match in enumerate(section.matchSyscalls):
        key, target = ("syscalls", "matchSyscalls", i), Other(",".join(_unique(match.syscall)))
        yield _Draft(key, (match, section), Entity.SYSCALL, target, {"sources": _sources(match.fromSource)})
    for i, on_path in enumerate(section.matchPaths):
        path = on_path.path.rstrip("/") + "/" if on_path.recursive else on_path.path
        spec = msgspec.json.encode(SyscallPath(path, on_path.recursive)).decode()
        key, target = ("syscalls", "matchPaths", i), Other(",".join(_unique(on_path.syscall)), spec)
        yield _Draft(key, (on_path, section), Entity.SYSCALL, target, {"sources": _sources(on_path.fromSource)})


def _devices(section: models.Device) -> Iterator[_Draft]:
    for i, match in enumerate(section.matchDevice):
        codes = (match.class_, match.subClass, match.protocol, match.level)
        spec = DeviceSpec(*(ANY if code is None else int(code) for code in codes))
        target = Other(device_text(spec), msgspec.json.encode(spec).decode())
        yield _Draft(("device", "matchDevice", i), (match, section), Entity.DEVICE, target)


def _firewall(spec: models.NetworkSpec) -> Iterator[_Draft]:
    directions: tuple[tuple[Direction, Sequence[models.Ingress | models.Egress]], ...] = (
        (Direction.INGRESS, spec.ingress),
        (Direction.EGRESS, spec.egress),
    )
    for direction, flows in directions:
        for i, flow in enumerate(flows):
            said = _flow(direction, flow, spec.level or "")
            target = Other(_flow_text(said), msgspec.json.encode(said).decode())
            yield _Draft((direction.value, i), (flow,), Entity.FIREWALL, target)


def _flow(direction: Direction, flow: models.Ingress | models.Egress, level: str) -> FlowSpec:
    blocks = [peer.ipBlock for peer in (flow.from_ if isinstance(flow, models.Ingress) else flow.to)]
    quota = [] if flow.limit is None and flow.duration is None else [flow.limit, "per", flow.duration, level.lower()]
    return FlowSpec(
        direction=direction,
        peers=tuple(sorted({IpNetworks(block.cidr, _unique(block.except_)) for block in blocks}, key=msgspec.structs.astuple)),
        ports=tuple(sorted({_port_range(port) for port in flow.ports}, key=msgspec.structs.astuple)),
        interfaces=_unique(flow.iface),
        quota=" ".join(str(part) for part in quota if part),
    )


def _port_range(port: models.Port) -> PortRange:
    if port.port is None:
        return PortRange(port.protocol or "")
    return PortRange(port.protocol or "", int(port.port), port.endPort or int(port.port))


def _flow_text(flow: FlowSpec) -> str:
    ports = " ".join(
        f"{port.protocol or 'any'}/"
        + ("*" if port.every_port else f"{port.first}" if port.first == port.last else f"{port.first}-{port.last}")
        for port in flow.ports
    )
    shown = [peer.cidr for peer in flow.peers[:_PEERS_SHOWN]]
    where = " ".join([*shown, f"and {len(flow.peers) - _PEERS_SHOWN} more"] if len(flow.peers) > _PEERS_SHOWN else shown)
    return " ".join(
        part for part in (flow.direction.value, where or "anywhere", ports, " ".join(flow.interfaces), flow.quota) if part
    )


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
