"""Documents of KubeArmor's four kinds, as people write them. Every field of ``security.kubearmor.com/v1``, and nothing else.

Rules of this file:
- Frozen; unknown keys refused. Field names are KubeArmor's; meaning is given by ``normalise``, never here.
- What KubeArmor reads leniently is read so (action in any case, comma lists of protocols, a directory without its last slash);
  what it silently ignores is an error.
- garrison's additions stand in annotations that begin with ``garrison/``.
Source: shared field list of KubeArmor's CRD types, release 1.7.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from garrison.common import limits
from garrison.common.policy.devices import class_of, code_of, level_of
from garrison.common.policy.flows import PORTED, interface_of, network_of, port_of, protocol_of
from garrison.common.policy.glob import GlobError, check_glob

__all__ = [
    "API_VERSION",
    "CAPABILITIES",
    "HOSTNAME",
    "HOSTNAME_PATTERN",
    "I_MEAN_IT",
    "PRESETS",
    "PROTOCOLS",
    "AnySelector",
    "ClusterPolicy",
    "ContainerPolicy",
    "Flow",
    "Graded",
    "HostPolicy",
    "NetworkPolicy",
    "PolicyDocument",
]

API_VERSION: Final = "security.kubearmor.com/v1"
HOSTNAME: Final = "kubearmor.io/hostname"  # nodeSelector label: exact name, "*", or a comma list of names
HOSTNAME_PATTERN: Final = "kubearmor.io/hostnamereg"  # nodeSelector label: regular expression found anywhere in the name
I_MEAN_IT: Final = "garrison/i-mean-it"  # annotation that lets a policy past the never-deny check of lint

# capability.h of Linux 6.12, in order; KubeArmor itself names the first 34.
_CAPABILITY_NAMES: Final = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast "
    "net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice "
    "sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm "
    "block_suspend audit_read perfmon bpf checkpoint_restore"
)
CAPABILITIES: Final = tuple(_CAPABILITY_NAMES.split())
PROTOCOLS: Final = ("tcp", "udp", "raw", "icmp", "icmpv6", "sctp", "stream", "dgram", "rdm", "seqpacket", "dccp", "packet", "all")
PRESETS: Final = ("filelessExec", "anonymousMapExec", "protectEnv", "protectProc", "exec")
_SYSCALL: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}", re.ASCII)
_DOMAIN: Final = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_-]{1,63}){0,9}\.?", re.ASCII | re.IGNORECASE)


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError("must be an absolute path")
    if len(value.encode()) > limits.PATH_MAX_BYTES:
        raise ValueError(f"is longer than {limits.PATH_MAX_BYTES} bytes")
    if any(part in {".", ".."} for part in value.split("/")):
        raise ValueError("must not hold . or .. components")
    return re.sub("/{2,}", "/", value)


def _file_path(value: str) -> str:
    if value.endswith("/"):
        raise ValueError("must not end in '/'; name a directory with matchDirectories")
    return _absolute(value)


def _directory(value: str) -> str:
    return _absolute(value if value.endswith("/") else value + "/")


def _pattern(value: str) -> str:
    try:
        check_glob(value)
    except GlobError as err:
        raise ValueError(str(err)) from err
    return value


def _exec_name(value: str) -> str:
    if not value or "/" in value or "\0" in value:
        raise ValueError("must be a file name without '/'")
    return value


def _action(value: object) -> object:
    return value.capitalize() if isinstance(value, str) else value


def _capability(value: str) -> str:
    name = value.lower().removeprefix("cap_")
    if name not in CAPABILITIES:
        raise ValueError(f"{value!r} is no capability of Linux")
    return name


def _protocols(value: str) -> str:
    names = [part.strip().lower() for part in value.split(",")]
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"{name!r} is no protocol; use {', '.join(PROTOCOLS)}")
    return ",".join(dict.fromkeys(names))


def _syscall(value: str) -> str:
    if not _SYSCALL.fullmatch(value):
        raise ValueError(f"{value!r} is no name of a system call")
    return value


def _domain(value: str) -> str:
    if not _DOMAIN.fullmatch(value):
        raise ValueError(f"{value!r} is no domain name of at most 10 labels")
    return value.rstrip(".").lower()


def _label_values(value: list[str]) -> list[str]:
    if not all("=" in item for item in value):
        raise ValueError("holds a value that is not written key=value")
    return value


def _node_labels(value: dict[str, str]) -> dict[str, str]:
    try:
        re.compile(value.get(HOSTNAME_PATTERN, ""))
    except re.error as err:
        raise ValueError(f"{HOSTNAME_PATTERN} is no regular expression: {err}") from err
    return value


def _annotations(value: dict[str, str]) -> dict[str, str]:
    # An annotation of ours that is not known would be a condition silently dropped.
    for key in value:
        if key.startswith("garrison/") and key != I_MEAN_IT:
            raise ValueError(f"{key!r} is no annotation that garrison knows; it knows {I_MEAN_IT}")
    if value.get(I_MEAN_IT, "true") not in {"true", "false"}:
        raise ValueError(f'{I_MEAN_IT} must be "true" or "false"')
    return value


_FilePath: TypeAlias = Annotated[str, AfterValidator(_file_path)]
_Directory: TypeAlias = Annotated[str, AfterValidator(_directory)]
_Pattern: TypeAlias = Annotated[str, AfterValidator(_pattern)]
_Action: TypeAlias = Annotated[Literal["Allow", "Audit", "Block"], BeforeValidator(_action)]
_Severity: TypeAlias = Annotated[int, Field(ge=1, le=10)]
_Labels: TypeAlias = dict[str, str]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=False)


class Graded(_Model):
    """What a rule, a section and the spec may say, the innermost winning."""

    severity: _Severity | None = None
    tags: list[str] | None = None
    message: str | None = None
    action: _Action | None = None


class FromSource(_Model):
    """A program (``path``) or the programs of a directory (``dir``)."""

    path: _FilePath | None = None
    dir: _Directory | None = None
    recursive: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> FromSource:
        if (self.path is None) == (self.dir is None):
            raise ValueError("needs either path or dir")
        return self


class _Match(Graded):
    fromSource: list[FromSource] = []
    ownerOnly: bool = False


class ProcessPath(_Match):
    """``path`` or ``execname``."""

    path: _FilePath | None = None
    execname: Annotated[str, AfterValidator(_exec_name)] | None = None
    allowedArgs: Annotated[list[str], Field(max_length=limits.ALLOWED_ARGS_MAX)] | None = None
    pts: bool | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ProcessPath:
        if (self.path is None) == (self.execname is None):
            raise ValueError("needs either path or execname")
        return self


class ProcessDirectory(_Match):
    """Programs in a directory."""

    dir: _Directory
    recursive: bool = False
    pts: bool | None = None


class ProcessPattern(_Match):
    """Programs by glob."""

    pattern: _Pattern
    pts: bool | None = None


class FilePath(_Match):
    """One file."""

    path: _FilePath
    readOnly: bool = False
    pts: bool | None = None


class FileDirectory(_Match):
    """Files in a directory."""

    dir: _Directory
    recursive: bool = False
    readOnly: bool = False
    pts: bool | None = None


class FilePattern(_Match):
    """Files by glob."""

    pattern: _Pattern
    readOnly: bool = False
    pts: bool | None = None


class Process(Graded):
    """Section ``process``."""

    matchPaths: list[ProcessPath] = []
    matchDirectories: list[ProcessDirectory] = []
    matchPatterns: list[ProcessPattern] = []


class File(Graded):
    """Section ``file``."""

    matchPaths: list[FilePath] = []
    matchDirectories: list[FileDirectory] = []
    matchPatterns: list[FilePattern] = []


class MatchProtocol(Graded):
    """A protocol, or several in a comma list."""

    protocol: Annotated[str, AfterValidator(_protocols)]
    fromSource: list[FromSource] = []
    pts: bool | None = None


class MatchDns(Graded):
    """A domain and everything below it."""

    domain: Annotated[str, AfterValidator(_domain)]
    fromSource: list[FromSource] = []


class Network(Graded):
    """Section ``network``."""

    matchProtocols: list[MatchProtocol] = []
    matchDNSQueries: list[MatchDns] = []


class MatchCapability(Graded):
    """One capability."""

    capability: Annotated[str, AfterValidator(_capability)]
    fromSource: list[FromSource] = []


class Capabilities(Graded):
    """Section ``capabilities``."""

    matchCapabilities: list[MatchCapability] = []


_SyscallNames: TypeAlias = Annotated[list[Annotated[str, AfterValidator(_syscall)]], Field(min_length=1)]


class MatchSyscall(Graded):
    """System calls by name."""

    syscall: _SyscallNames
    fromSource: list[FromSource] = []


class MatchSyscallPath(Graded):
    """System calls on a path."""

    path: Annotated[str, AfterValidator(_absolute)]
    recursive: bool = False
    syscall: _SyscallNames
    fromSource: list[FromSource] = []


class Syscalls(Graded):
    """Section ``syscalls``."""

    matchSyscalls: list[MatchSyscall] = []
    matchPaths: list[MatchSyscallPath] = []


_UsbCode = Annotated[str | int | None, AfterValidator(lambda value: None if value is None else code_of(value))]


class MatchDevice(Graded):
    """USB devices by class, given by number or name; ``level`` narrows to a place on the bus."""

    class_: Annotated[str | int, AfterValidator(class_of), Field(alias="class")]
    subClass: _UsbCode = None
    protocol: _UsbCode = None
    level: Annotated[str | int | None, AfterValidator(lambda value: None if value is None else level_of(value))] = None


class Device(Graded):
    """Section ``device``."""

    matchDevice: list[MatchDevice] = []


class Preset(Graded):
    """One of KubeArmor's ready-made protections."""

    name: Literal["filelessExec", "anonymousMapExec", "protectEnv", "protectProc", "exec"]


class LabelExpression(_Model):
    """``In`` or ``NotIn`` over labels, each written ``key=value``."""

    key: Literal["label"]
    operator: Literal["In", "NotIn"]
    values: Annotated[list[str], Field(min_length=1), AfterValidator(_label_values)]


class NamespaceExpression(_Model):
    """``In`` or ``NotIn`` over namespaces."""

    key: Literal["namespace"]
    operator: Literal["In", "NotIn"]
    values: Annotated[list[str], Field(min_length=1)]


class Selector(_Model):
    """Workloads of a ``KubeArmorPolicy`` or ``KubeArmorNetworkPolicy``; everything said must hold."""

    matchLabels: _Labels = {}
    matchExpressions: list[LabelExpression] = []


class ClusterSelector(_Model):
    """Workloads of a ``KubeArmorClusterPolicy``; everything said must hold."""

    matchLabels: _Labels = {}
    matchExpressions: list[Annotated[LabelExpression | NamespaceExpression, Field(discriminator="key")]] = []


class NodeSelector(_Model):
    """Nodes of a host policy. Without labels it selects no node, as in KubeArmor."""

    matchLabels: Annotated[_Labels, AfterValidator(_node_labels)] = {}


class Metadata(_Model):
    """Kubernetes object metadata; only name, namespace and annotations mean something here."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    namespace: str = ""
    labels: _Labels = {}
    annotations: Annotated[_Labels, AfterValidator(_annotations)] = {}
    uid: Any = None
    resourceVersion: Any = None
    generation: Any = None
    creationTimestamp: Any = None
    ownerReferences: Any = None
    finalizers: Any = None
    managedFields: Any = None


class _Spec(Graded):
    process: Process | None = None
    file: File | None = None
    network: Network | None = None
    capabilities: Capabilities | None = None
    syscalls: Syscalls | None = None
    apparmor: str | None = None


class ContainerSpec(_Spec):
    """Spec of a ``KubeArmorPolicy``."""

    selector: Selector = Selector()
    presets: list[Preset] = []


class ClusterSpec(_Spec):
    """Spec of a ``KubeArmorClusterPolicy``."""

    selector: ClusterSelector = ClusterSelector()
    presets: list[Preset] = []


class HostSpec(_Spec):
    """Spec of a ``KubeArmorHostPolicy``."""

    nodeSelector: NodeSelector = NodeSelector()
    device: Device | None = None


def _cidr(value: str) -> str:
    return str(network_of(value))


_Cidr: TypeAlias = Annotated[str, AfterValidator(_cidr)]


class IpBlock(_Model):
    """A network in CIDR notation, without some that lie in it."""

    cidr: _Cidr
    except_: Annotated[list[_Cidr], Field(alias="except")] = []

    @model_validator(mode="after")
    def _within(self) -> IpBlock:
        whole = network_of(self.cidr)
        for part in map(network_of, self.except_):
            if part.version != whole.version or not part.subnet_of(whole):  # type: ignore[arg-type]
                raise ValueError(f"except {part} does not lie in {whole}")
        return self


class Peer(_Model):
    """The other side of a flow."""

    ipBlock: IpBlock


class Port(_Model):
    """A port or range, a protocol, or both."""

    port: Annotated[str | int, AfterValidator(port_of)] | None = None
    endPort: Annotated[int, Field(ge=1, le=65_535)] | None = None
    protocol: Annotated[str, AfterValidator(protocol_of)] | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Port:
        if self.port is None and self.protocol is None:
            raise ValueError("needs a port, a protocol, or both")
        if self.port is not None and self.protocol is not None and self.protocol not in PORTED:
            raise ValueError(f"{self.protocol} has no ports")
        if self.endPort is not None and (self.port is None or self.endPort < int(self.port)):
            raise ValueError("endPort needs a port that is not above it")
        return self


class Flow(Graded):
    """What ingress and egress share."""

    iface: list[Annotated[str, AfterValidator(interface_of)]] = []
    ports: list[Port] = []
    limit: str | int | None = None
    duration: str | int | None = None


class Ingress(Flow):
    """Flows to the node."""

    from_: Annotated[list[Peer], Field(alias="from")] = []


class Egress(Flow):
    """Flows from the node."""

    to: list[Peer] = []


class NetworkSpec(Graded):
    """Spec of a ``KubeArmorNetworkPolicy``."""

    nodeSelector: NodeSelector = NodeSelector()
    selector: Selector = Selector()
    ingress: list[Ingress] = []
    egress: list[Egress] = []
    level: Literal["Pod", "Policy", "pod", "policy"] | None = None


class _Document(_Model):
    apiVersion: Literal["security.kubearmor.com/v1"]
    metadata: Metadata
    status: Any = None


class ContainerPolicy(_Document):
    """``KubeArmorPolicy``."""

    kind: Literal["KubeArmorPolicy"]
    spec: ContainerSpec


class ClusterPolicy(_Document):
    """``KubeArmorClusterPolicy``."""

    kind: Literal["KubeArmorClusterPolicy"]
    spec: ClusterSpec


class HostPolicy(_Document):
    """``KubeArmorHostPolicy``."""

    kind: Literal["KubeArmorHostPolicy"]
    spec: HostSpec


class NetworkPolicy(_Document):
    """``KubeArmorNetworkPolicy``."""

    kind: Literal["KubeArmorNetworkPolicy"]
    spec: NetworkSpec


AnySelector: TypeAlias = Selector | ClusterSelector
PolicyDocument: TypeAlias = ContainerPolicy | ClusterPolicy | HostPolicy | NetworkPolicy
