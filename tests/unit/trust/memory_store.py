"""A store as the desk needs it, in memory."""

from __future__ import annotations

from garrison.master.records import NodeBrief, StoredBundle
from unit.trust.world import EDGE, OTHER, OTHER_PRINT, PRINT


class MemoryStore:
    """A store as the desk needs it, in memory."""

    def __init__(self) -> None:
        self.blobs, self.bundles, self.held = {}, [], {}
        self.nodes = {
            EDGE: NodeBrief(name=EDGE, fingerprint=PRINT),
            OTHER: NodeBrief(name=OTHER, fingerprint=OTHER_PRINT),
        }

    def newest_bundle(self):
        return max(self.bundles, key=lambda bundle: bundle.version, default=None)

    def bundle_metadata(self, digest):
        return self.blobs.get(digest)

    def put_bundle(self, digest, version, metadata, files, at_ns):
        self.blobs |= {digest: metadata, **files}
        self.bundles.append(StoredBundle(digest=digest, version=version, metadata=metadata))

    def blob(self, digest):
        return self.blobs.get(digest)

    def assignment(self, node):
        return self.held.get(node)

    def assignments(self):
        return dict(self.held)

    def put_assignments(self, new):
        self.held |= {assignment.node: assignment for assignment in new}

    def node_states(self):
        return self.nodes

    def reported(self, node, generation):
        brief = self.nodes[node]
        self.nodes[node] = NodeBrief(name=node, fingerprint=brief.fingerprint, reported_generation=generation)
