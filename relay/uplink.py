"""The way up: a relay is to its master what a node is, with a spool of others' signed batches.

Rules of this file:
- Up: items by lane like a node's events; presence, the whole of it on each new connection and then what changed; nodes' words as
  they come, never kept, but for the last report of each.
- Down, in the order in which it came: lists and assignments are durable before anybody is served by them.
- A relay enforces nothing and runs nothing: an assignment or a command for itself is refused.
Owns: what is told when. Does not own: connecting (``minion.link``), nodes (``collector``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Final, Protocol

from garrison.common import limits
from garrison.common.errors import FrameError, GarrisonError, LinkError
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import (
    ApplyReport,
    Assignment,
    Batch,
    Down,
    Hello,
    Job,
    JobResult,
    Up,
    Welcome,
)
from garrison.common.names import Digest, NodeName
from garrison.common.relay_frames import Forward, Knock, NodePresence, Passed, Presence, RelayAssignment, RelayNodes, Sealed
from garrison.minion.grains import boot_id, grains
from garrison.minion.link.client import Link
from garrison.minion.link.peer import Fetch, LinkState, SendOutput
from garrison.minion.link.session import RelayDown
from garrison.minion.spool import Spool
from garrison.relay.site import Site

__all__ = ["RelayVoice", "Uplink", "pieces"]

_PIECE_NODES: Final = 256  # in one presence, and
_PIECE_BYTES: Final = limits.FRAME_MAX_BYTES // 4  # of what they said: with all that is around it, it fits a frame

_log = logging.getLogger(__name__)


class RelayVoice:
    """How a relay speaks: batches of its spool are items to be forwarded."""

    def said(self, message: Up) -> Up:
        """Return ``message``, a batch as a ``Forward``."""
        if isinstance(message, Batch):
            return Forward(epoch=message.epoch, lane=message.lane, seqs=message.seqs, items=message.events)
        return message

    def heard(self, message: Down, instance: str) -> Down:  # noqa: ARG002 - part of the protocol
        """Return ``message``."""
        if isinstance(message, Sealed):
            raise FrameError("a sealed message for the relay itself")
        return message

    def refuses_for_itself(self, message: Down) -> bool:  # noqa: ARG002
        """Return ``False``: the master itself answers."""
        return False

    def check_welcome(self, welcome: Welcome) -> None:
        """Check that the master knows relays: another would file their items as events that it cannot read.

        Raises:
            FrameError: It does not.
        """
        if not welcome.relays:
            raise FrameError("a welcome without relays: this master is too old for them")


def pieces(nodes: Sequence[NodePresence], knocks: Sequence[Knock]) -> Iterator[Presence]:
    """Yield what is to be told in messages that fit a frame, the keys that knocked with the first."""
    piece: list[NodePresence] = []
    left, size = list(knocks), 0
    for one in nodes:
        if piece and (len(piece) >= _PIECE_NODES or size + len(one.hello) > _PIECE_BYTES):
            yield Presence(nodes=piece, knocks=left)
            piece, left, size = [], [], 0
        piece.append(one)
        size += len(one.hello)
    yield Presence(nodes=piece, knocks=left)


class Nodes(Protocol):
    """What the way up needs of the collector."""

    def presence(self, node: NodeName) -> NodePresence:
        """Return what is known of a node."""

    def reports(self) -> dict[NodeName, bytes]:
        """Return the last signed report of each node."""

    def connected(self) -> list[NodeName]:
        """Return the nodes that are connected."""

    def cut_off(self, nodes: list[NodeName]) -> None:
        """Close connections of nodes that may not be served any more."""

    def offer(self, node: NodeName) -> None:
        """Send a node its newest assignment, if it is connected."""

    def hand_down(self, node: NodeName, frame: bytes) -> None:
        """Give a node what the master sealed for it."""


class Uplink:
    """What the link to the master talks to.

    Args:
        name: The relay's name.
        spool: Opened.
        site: What the master told.
    """

    def __init__(self, name: str, spool: Spool, site: Site) -> None:
        self._name, self._spool, self._site = name, spool, site
        self._instance, self._boot = secrets.token_hex(16), boot_id()
        self._link: Link | None = None
        self._nodes: Nodes | None = None
        self._state = LinkState(connected=False, cause="not connected yet")
        self._changed: set[NodeName] = set()
        self._all = False
        self._down: asyncio.Queue[RelayDown] = asyncio.Queue()

    def bind(self, link: Link, nodes: Nodes) -> None:
        """Say what the two sides are; before ``run``."""
        self._link, self._nodes = link, nodes

    async def run(self, stop: asyncio.Event) -> None:
        """Tell and take until ``stop`` is set."""
        parts = [asyncio.create_task(self._take()), asyncio.create_task(self._tell())]
        try:
            await asyncio.wait([*parts, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done():
                    part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    # ---- for the collector -----------------------------------------------------------------------------------------------
    @property
    def cause(self) -> str:
        """Why the master cannot be asked; empty when it can."""
        return "" if self._state.connected else self._state.cause

    def pass_up(self, node: NodeName, frame: bytes) -> bool:
        """Send a node's signed message to the master; return whether it left."""
        self._tell_changes()  # the master must know the node before it hears it
        return self._link is not None and self._state.connected and self._link.try_send(Passed(node=node, frame=frame))

    def changed(self, node: NodeName) -> None:
        """Have a node's presence told."""
        self._changed.add(node)

    async def fetch(self, digest: Digest) -> bytes:
        """Return a blob of the master.

        Raises:
            LinkError: It cannot be had now.
        """
        if self._link is None or not self._state.connected:
            raise LinkError(f"{digest[:12]} is not at the site, and the master cannot be asked: {self.cause}")
        return await self._link.fetch(digest, None)

    # ---- for the link ----------------------------------------------------------------------------------------------------
    @property
    def spool(self) -> Spool:
        """The relay's spool."""
        return self._spool

    def hello(self) -> Hello:
        """Return what this relay is and has."""
        return Hello(
            node=self._name,
            instance=self._instance,
            boot=self._boot,
            version=version("garrison"),
            epoch=self._spool.epoch,
            next_seq=self._spool.next_seq,
            unacked={str(int(lane)): count for lane, count in self._spool.pending().items()},
            acked={str(int(lane)): seq for lane, (seq, _) in self._spool.acked().items()},  # of batches: no count of events
            grains=grains(),
            relay=True,
            waits=True,
        )

    async def on_assignment(self, assignment: Assignment, fetch: Fetch) -> ApplyReport:  # noqa: ARG002
        """Refuse: a relay enforces nothing."""
        return ApplyReport(generation=0, bundle="", state="refused", error="this is a relay: it enforces nothing")

    async def on_job(self, job: Job, output: SendOutput) -> JobResult:  # noqa: ARG002
        """Refuse: a relay runs nothing."""
        return JobResult(job=job.job, exit_code=-1, error="not run: this is a relay, it runs no commands")

    def on_job_cancel(self, job_id: str) -> None:
        """Nothing runs here."""

    def on_link_state(self, state: LinkState) -> None:
        """Take note of the uplink going up or down; both are events that tell how long the site was dark."""
        before, self._state = self._state, state
        if state.connected:
            self._all = True
            self._changed.clear()
        if before.connected != state.connected:
            _log.info("uplink=%s cause=%s", "up" if state.connected else "down", state.cause)
            self.emit("link-up" if state.connected else "link-down", detail=state.cause)

    def on_relayed(self, message: RelayDown) -> None:
        """Take what the master says to relays only."""
        self._down.put_nowait(message)

    def emit(self, state: str, **data: Scalar) -> None:
        """Record an event of the relay itself."""
        now, mono = time.time_ns(), time.monotonic_ns()
        flat: dict[str, Scalar | list[Scalar]] = {"state": state, "role": "relay", **data}
        self._spool.put(Event(ts=now, mono=mono, boot=self._boot, lane=Lane.STATE, kind=Kind.AGENT, severity=3, data=flat))

    # ---- inside ----------------------------------------------------------------------------------------------------------
    async def _take(self) -> None:
        while True:
            message = await self._down.get()
            try:
                await self._obey(message)
            except GarrisonError as err:
                _log.error("master-said=%s done=no error=%s", type(message).__name__, err)

    async def _obey(self, message: RelayDown) -> None:
        if self._nodes is None:
            raise RuntimeError("the uplink runs before it is bound")
        match message:
            case RelayNodes():
                before = set(self._site.names)
                gone = await asyncio.to_thread(self._site.set_nodes, message)
                self._nodes.cut_off(gone)
                self._changed |= set(self._site.names) - before
            case RelayAssignment():
                if await asyncio.to_thread(self._site.keep_assignment, message):
                    self._nodes.offer(NodeName(message.node))
                    self.changed(NodeName(message.node))
            case Passed():
                self._nodes.hand_down(NodeName(message.node), message.frame)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(limits.PRESENCE_S)
            self._tell_changes()

    def _tell_changes(self) -> None:
        if self._link is None or self._nodes is None or not self._state.connected:
            return
        wanted: Sequence[NodeName] = self._site.names if self._all else sorted(self._changed)
        reports = self._nodes.reports() if self._all else {}
        knocks = self._site.take_knocks()
        if not wanted and not knocks and not self._all:
            return
        self._all, self._changed = False, set()
        for told in pieces([self._nodes.presence(node) for node in wanted], knocks):
            if not self._link.try_send(told):
                self._all = True  # on the next connection, from the beginning
                return
        for node, frame in reports.items():
            self._link.try_send(Passed(node=node, frame=frame))
