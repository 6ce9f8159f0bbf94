"""A generation as the agent sees it: verified, on disk, ready to become rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from garrison.common import limits
from garrison.common.errors import BundleError
from garrison.common.names import Digest, NodeName
from garrison.common.policy.load import Document, load_text
from garrison.common.policy.normalise import NodeFacts, Normalised, normalise
from garrison.common.policy.rules import Mode
from garrison.common.trust.assignment import SignedAssignment
from garrison.common.trust.bundle import BundleContent, NodeShare
from garrison.common.trust.verify import NodeTrust
from garrison.minion.bundles.disk import BundleDisk

__all__ = ["Generation", "Staged"]


@dataclass(frozen=True)
class Generation:
    """A verified generation of this node.

    Attributes:
        assignment: What the master signed.
        content: What the authors signed.
        trust: What it was verified against.
        disk: Where its files are.
        clock: Wall clock, UTC.
    """

    assignment: SignedAssignment
    content: BundleContent
    trust: NodeTrust
    disk: BundleDisk
    clock: Callable[[], datetime]

    @property
    def number(self) -> int:
        """Its number."""
        return self.assignment.generation

    @property
    def bundle(self) -> Digest:
        """Digest of its bundle's metadata."""
        return self.assignment.bundle

    @property
    def version(self) -> int:
        """Version of its bundle."""
        return self.content.version

    @property
    def stale(self) -> bool:
        """Whether it has expired by now: enforced all the same."""
        return self.trust.is_stale(self.assignment, self.content, self.clock())

    @property
    def share(self) -> NodeShare:
        """What the bundle gives this node."""
        return self.trust.share(self.content)

    @property
    def confirm_s(self) -> int:
        """How long it may stay unconfirmed: what its author allows, or less if the master says so."""
        asked = self.assignment.confirm_s
        return max(limits.CONFIRM_MIN_S, min(asked or limits.CONFIRM_MAX_S, self.share.confirm.timeout_s))

    @property
    def node(self) -> NodeName:
        """This node."""
        return self.trust.node

    @property
    def facts(self) -> NodeFacts:
        """What its policies may select this node by."""
        return NodeFacts(name=self.node, labels=self.share.labels)

    def documents(self) -> list[tuple[Document, Mode]]:
        """Return this node's policies, each with its mode; reads its files from disk.

        Raises:
            BundleError: A file changed on disk or is no text.
            PolicyError: A file is no policy that this version understands.
        """
        share = self.share
        documents: list[tuple[Document, Mode]] = []
        for path, mode in sorted(share.files.items()):
            entry = self.content.files[path]
            documents += [
                (document, mode) for document in load_text(_text(path, self.disk.read_blob(entry.digest, entry.length)), path)
            ]
        return documents

    def normalised(self) -> Normalised:
        """Return the rules this generation means on this node; raises as ``documents`` does, and ``CompileError``."""
        return normalise(self.documents(), self.facts, self.share.postures)


@dataclass(frozen=True)
class Staged:
    """A generation that is verified and on disk but not current; ``commit`` or ``reject`` ends that.

    Attributes:
        generation: What it will be.
    """

    generation: Generation


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise BundleError(f"{path} is not UTF-8 text") from err
