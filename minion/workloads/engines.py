"""What container engines say of a container: Docker, Podman, containerd.

Pure: the content of their files in, ``ContainerFacts`` out.

Rules of this file:
- A file of a container is hostile until it is parsed: ``None`` for what is no such file, never an exception.
- Only what these files say; which labels follow is decided in ``describe``.

Sources: moby ``container.Container`` (config.v2.json); podman ``libpod.ContainerConfig``, as its database holds it; the OCI
runtime specification's config.json with containerd's ``io.kubernetes.cri.*`` annotations; containerd's metadata database
(``v1/NAMESPACE/containers/ID/labels``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from garrison.common import limits
from garrison.minion.workloads.bolt import Bucket

__all__ = [
    "ContainerFacts",
    "containerd_facts",
    "containerd_labels",
    "docker_facts",
    "pod_facts",
    "podman_config_in_bolt",
    "podman_facts",
]

_CRI: Final = "io.kubernetes.cri."
_NERDCTL_NAME: Final = "nerdctl/name"
_T = TypeVar("_T")


class ContainerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of a container.

    Attributes:
        engine: ``docker``, ``podman``, ``containerd``.
        name: The container's name; in Kubernetes that of the container in its pod.
        image: As the engine names it.
        labels: The container's own, and its pod's.
        namespace: Kubernetes namespace; empty outside Kubernetes.
        sandbox: Id of the container that holds the pod's labels; empty for none.
    """

    engine: str
    name: str = ""
    image: str = ""
    labels: Mapping[str, str] = {}
    namespace: str = ""
    sandbox: str = ""


class _DockerConfig(msgspec.Struct, frozen=True):
    Image: str = ""
    Labels: dict[str, str] | None = None


class _DockerContainer(msgspec.Struct):
    ID: str
    Name: str = ""
    Config: _DockerConfig = _DockerConfig()


class _PodmanContainer(msgspec.Struct):
    id: str
    name: str = ""
    rootfsImageName: str = ""  # noqa: N815 - podman's name
    labels: dict[str, str] | None = None


class _OciConfig(msgspec.Struct):
    annotations: dict[str, str] | None = None


def docker_facts(raw: bytes) -> ContainerFacts | None:
    """Return what Docker's ``containers/ID/config.v2.json`` says."""
    found = _decoded(raw, _DockerContainer)
    if found is None:
        return None
    return ContainerFacts(
        engine="docker", name=found.Name.removeprefix("/"), image=found.Config.Image, labels=found.Config.Labels or {}
    )


def podman_config_in_bolt(root: Bucket, container_id: str) -> bytes | None:
    """Return a container's configuration out of Podman's bolt database; ``None`` when it is not in there."""
    bucket = root.bucket(b"ctr", container_id.encode())
    return bucket.get(b"config") if bucket else None


def podman_facts(raw: bytes) -> ContainerFacts | None:
    """Return what a container's configuration in Podman's database says."""
    found = _decoded(raw, _PodmanContainer)
    if found is None:
        return None
    return ContainerFacts(engine="podman", name=found.name, image=found.rootfsImageName, labels=found.labels or {})


def containerd_facts(raw: bytes, container_id: str) -> ContainerFacts | None:
    """Return what the config.json of a containerd task says: in Kubernetes all but the labels, else hardly anything."""
    found = _decoded(raw, _OciConfig)
    if found is None:
        return None
    says = found.annotations or {}
    sandbox = says.get(f"{_CRI}sandbox-id", "")
    return ContainerFacts(
        engine="containerd",
        name=says.get(f"{_CRI}container-name", "" if sandbox else says.get(_NERDCTL_NAME, container_id)),
        image=says.get(f"{_CRI}image-name", ""),
        namespace=says.get(f"{_CRI}sandbox-namespace", ""),
        sandbox=sandbox,
    )


def containerd_labels(root: Bucket, namespace: str, container_id: str) -> tuple[dict[str, str], str] | None:
    """Return a container's labels and image out of containerd's database; ``None`` when it is not in there."""
    bucket = root.bucket(b"v1", namespace.encode(), b"containers", container_id.encode())
    if bucket is None:
        return None
    labels = bucket.bucket(b"labels")
    found = labels.items(2 * limits.WORKLOAD_LABELS_MAX) if labels else []
    image = bucket.get(b"image") or b""
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found}, image.decode(errors="replace")


def pod_facts(
    facts: ContainerFacts, own: tuple[dict[str, str], str] | None, pod: tuple[dict[str, str], str] | None
) -> ContainerFacts:
    """Return ``facts`` with what the database adds: the container's labels and image, and its pod's labels.

    The pod's labels are those of its sandbox, which holds them since the pod was made.
    """
    labels, image = own or ({}, "")
    pods = pod[0] if pod else {}
    return msgspec.structs.replace(
        facts,
        labels={**pods, **labels},
        image=facts.image or image,
        name=labels.get(_NERDCTL_NAME, facts.name) if not facts.sandbox else facts.name,
    )


def _decoded(raw: bytes, shape: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
