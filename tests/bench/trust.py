"""What signing and verifying cost for a large fleet: 10,000 nodes, 20 policies."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from garrison.common.names import NodeName
from garrison.common.policy.rules import Mode
from garrison.common.trust.bundle import NodeShare
from garrison.common.trust.keyset import MasterTrust
from garrison.common.trust.metadata import RootChain
from garrison.master.desk import Desk
from garrison.master.records import NodeBrief
from garrison.minion.bundles import BundleStore
from unit.trust.memory_store import MemoryStore
from unit.trust.world import EDGE, NOW, PRINT, Depot, World, policy

NODES, FILES = 10_000, 20


def run() -> dict:
    """Sign a bundle, assign it to every node, take it over on one."""
    world, figures = World(), {"nodes": NODES, "files": FILES}
    files = {f"policies/p{number}.yaml": policy(str(number)) for number in range(FILES)}
    share = NodeShare(files=dict.fromkeys(files, Mode.ENFORCE), labels={"role": "edge", "site": "s1"})
    names = [EDGE, *(NodeName(f"node-{number}") for number in range(NODES - 1))]
    store = MemoryStore()
    store.nodes = {name: NodeBrief(name=name, fingerprint=PRINT) for name in names}
    chains = RootChain.start(world.bundle_roots[0]), RootChain.start(world.assignment_roots[0])
    desk = Desk(store, MasterTrust(world.tenant, *chains, world.online), clock=lambda: NOW)

    def timed(name, work):
        started = time.perf_counter()
        result = work()
        figures[f"{name}_s"] = round(time.perf_counter() - started, 3)
        return result

    bundle = timed("author_signs", lambda: world.bundle(1, files, nodes=dict.fromkeys(names, share)))
    figures["metadata_bytes"] = len(bundle.metadata)
    timed("master_accepts_and_assigns", lambda: desk.accept(bundle.metadata, bundle.files))
    timed("master_accepts_the_same_again", lambda: desk.accept(bundle.metadata, {}))
    with tempfile.TemporaryDirectory() as directory:
        node = BundleStore(Path(directory), world.join(), EDGE, PRINT, clock=lambda: NOW)
        staged = timed("node_stages", lambda: asyncio.run(node.stage(desk.frame_for(EDGE), Depot(bundle).fetch)))
        timed("node_commits", lambda: node.commit(staged))
        timed("node_verifies_at_start", node.current)
    return figures
