"""A tenant in memory for tests of trust: real keys, real signatures, and a hand on every lever an attacker might hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from securesystemslib.signer import CryptoSigner

from garrison.common import frames
from garrison.common.names import Digest, KeyFingerprint, NodeName, digest_of, fingerprint
from garrison.common.policy.rules import Mode
from garrison.common.trust.assignment import build_assignment
from garrison.common.trust.bundle import Bundle, NodeShare, build_bundle
from garrison.common.trust.join import JoinFile
from garrison.common.trust.metadata import RootChain, make_root
from garrison.common.trust.verify import Floor, NodeTrust

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
EDGE, OTHER = NodeName("edge-1"), NodeName("edge-2")
PRINT = fingerprint(b"k" * 40)
OTHER_PRINT = fingerprint(b"o" * 40)
POLICY = b"""\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: no-base64}
spec:
  nodeSelector: {matchLabels: {role: edge}}
  process: {matchPaths: [{path: /usr/bin/base64}]}
  action: Block
"""


def policy(comment: str) -> bytes:
    """A valid policy whose bytes differ by ``comment``."""
    return POLICY + f"# {comment}\n".encode()


@dataclass
class World:
    """One tenant's keys and roots."""

    tenant: str = "plant"
    author: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    author_root: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    online: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    online_root: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)

    def __post_init__(self) -> None:
        self.bundle_roots = [self.root(self.author_root, self.author)]
        self.assignment_roots = [self.root(self.online_root, self.online)]

    def root(self, key: CryptoSigner, targets: CryptoSigner, *, version: int = 1, signers=None, expires=None) -> bytes:
        return make_root(
            version=version,
            expires=expires or NOW + timedelta(days=3650),
            root_keys=[key.public_key],
            targets_keys=[targets.public_key],
            signers=signers or [key],
        )

    def trust(self, node: NodeName = EDGE, print_: KeyFingerprint = PRINT, floor: Floor | None = None) -> NodeTrust:
        return NodeTrust(
            tenant=self.tenant,
            node=node,
            fingerprint=print_,
            bundles=RootChain.start(self.bundle_roots[0]),
            assignments=RootChain.start(self.assignment_roots[0]),
            floor=floor or Floor(),
        )

    def join(self) -> JoinFile:
        return JoinFile(
            v=1,
            tenant=self.tenant,
            masters=("tcp://127.0.0.1:4515",),
            server_key="k" * 40,
            bundle_root=self.bundle_roots[0].decode(),
            assignment_root=self.assignment_roots[0].decode(),
        )

    def bundle(
        self,
        version: int = 1,
        files: dict[str, bytes] | None = None,
        *,
        days: int = 365,
        signer=None,
        tenant: str = "",
        nodes=None,
    ) -> Bundle:
        files = files if files is not None else {"policies/a.yaml": policy(f"version {version}")}
        share = NodeShare(files=dict.fromkeys(files, Mode.ENFORCE), labels={"role": "edge"})
        return build_bundle(
            files,
            nodes if nodes is not None else {EDGE: share, OTHER: share},
            tenant=tenant or self.tenant,
            version=version,
            expires=NOW + timedelta(days=days),
            signers=[signer or self.author],
            issued=NOW - timedelta(days=1),
        )

    def assign(self, bundle: Bundle, generation: int = 1, /, **changes) -> bytes:
        values = {
            "tenant": self.tenant,
            "node": EDGE,
            "fingerprint": PRINT,
            "generation": generation,
            "bundle": bundle.digest,
            "bundle_bytes": len(bundle.metadata),
            "bundle_version": bundle.version,
            "expires": NOW + timedelta(days=365),
            "signer": self.online,
        }
        return build_assignment(**(values | changes))

    def frame(self, assignment: bytes) -> frames.Assignment:
        return frames.Assignment(
            assignment=assignment, assignment_roots=list(self.assignment_roots), bundle_roots=list(self.bundle_roots)
        )


class Depot:
    """Content by digest, as the master hands it out; counts what was asked for."""

    def __init__(self, *bundles: Bundle) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.asked: list[Digest] = []
        for bundle in bundles:
            self.add(bundle)

    def add(self, bundle: Bundle) -> None:
        self.blobs |= {bundle.digest: bundle.metadata, **bundle.files}

    async def fetch(self, digest: Digest, length: int) -> bytes:
        self.asked.append(digest)
        data = self.blobs[digest]
        assert digest_of(data) == digest or length >= 0
        return data
