"""Which content a node may read at its relay: what it may read at the master. From signed documents, so offline too.

Rules of this file:
- A node may read the metadata of its assigned bundle and the files of its own share, nothing else.
- The assignment and the bundle are verified from the roots in the relay's join file, like on a node: a relay serves nothing that
  no author signed.
- Fail-closed: what cannot be verified or looked up may not be read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Final

from garrison.common.errors import GarrisonError
from garrison.common.frames import Assignment, decode_down
from garrison.common.names import Digest, NodeName
from garrison.common.relay_frames import RelayAssignment
from garrison.common.trust.assignment import SignedAssignment, read_assignment
from garrison.common.trust.bundle import BundleContent, read_targets
from garrison.common.trust.join import JoinFile
from garrison.common.trust.metadata import RootChain, verify_targets
from garrison.relay.blobs import Blobs
from garrison.relay.site import Site

__all__ = ["Shares"]

_PARSED_KEPT: Final = 4  # bundles: staged changes leave a site's nodes on a few at a time

_log = logging.getLogger(__name__)


class Shares:
    """Answers who may read what.

    Args:
        join: The relay's join file: the roots.
        site: Holds assignments.
        blobs: Holds bundles.
    """

    def __init__(self, join: JoinFile, site: Site, blobs: Blobs) -> None:
        self._join, self._site, self._blobs = join, site, blobs
        self._parsed: OrderedDict[Digest, BundleContent] = OrderedDict()
        self._assigned: dict[NodeName, tuple[int, SignedAssignment, RootChain]] = {}

    async def may_read(self, node: NodeName, digest: Digest) -> bool:
        """Tell whether a node may have content; fetches the bundle's metadata from the master if the site lacks it.

        Raises:
            LinkError: The metadata is not at the site and cannot be had.
        """
        held = self._site.assignment(node)
        if held is None:
            return False
        try:
            assignment, authors = await asyncio.to_thread(self._read, node, held)
        except GarrisonError as err:
            _log.error("node=%s assignment=unverified error=%s", node, err)
            return False
        if assignment.bundle == digest:
            return True
        metadata = None if assignment.bundle in self._parsed else await self._blobs.get(assignment.bundle)
        try:
            content = await asyncio.to_thread(self._parse, assignment.bundle, metadata, authors)
        except GarrisonError as err:
            _log.error("node=%s bundle=unverified error=%s", node, err)
            return False
        share = content.nodes.get(node)
        return share is not None and any(content.files[path].digest == digest for path in share.files)

    def _read(self, node: NodeName, held: RelayAssignment) -> tuple[SignedAssignment, RootChain]:
        known = self._assigned.get(node)
        if known is not None and known[0] == held.generation:
            return known[1], known[2]
        message = decode_down(held.frame)
        if not isinstance(message, Assignment):
            raise GarrisonError("the master sent something else than an assignment")
        masters = RootChain.start(self._join.assignment_root.encode()).extend(message.assignment_roots)
        authors = RootChain.start(self._join.bundle_root.encode()).extend(message.bundle_roots)
        assignment = read_assignment(verify_targets(masters.newest, message.assignment, "assignment"))
        if (assignment.tenant, assignment.node) != (self._join.tenant, node):
            raise GarrisonError(f"the assignment is for {assignment.node[:63]!r}")
        self._assigned[node] = (held.generation, assignment, authors)
        return assignment, authors

    def _parse(self, digest: Digest, metadata: bytes | None, authors: RootChain) -> BundleContent:
        content = self._parsed.get(digest)
        if content is None:
            if metadata is None:
                raise GarrisonError("the bundle was forgotten meanwhile")
            content = read_targets(verify_targets(authors.newest, metadata, "bundle"), tenant=self._join.tenant)
            self._parsed[digest] = content
            while len(self._parsed) > _PARSED_KEPT:
                self._parsed.popitem(last=False)
        return content
