"""Connections of nodes, as rules without I/O: who is on, who is silent, who is a clone.

Rules of this file:
- A session begins with a hello on a connection and ends with it; a new connection begins with a hello again. Batches that come
  before it are not counted on: libzmq may have lost what was sent before them.
- One key, one session. The same agent coming back takes its place over at once; another agent under the same key only when the
  first is gone: two live holders of a key are clones, and both are shown.
- Time is the caller's monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from garrison.common.events import Lane
from garrison.common.frames import Hello
from garrison.common.names import NodeName
from garrison.master.store import Inflow

__all__ = ["Admission", "Session", "Sessions", "acked_by", "node_state"]


@dataclass(kw_only=True, slots=True, eq=False)
class Session:
    """One connection of a node after its hello.

    Attributes:
        node: Whose key it came under.
        routing_id: The socket's name of the connection.
        hello: What the node said.
        address: Where it came from.
        fd: Descriptor of the connection, -1 when unknown.
        heard: When the last message came.
        pinged: When it was last pinged.
        welcomed: The welcome was sent: batches count from now on.
        inflow: Batches of this connection; none is stored after one that was not.
        unacked: Batches that are not durable yet.
        requests: Requests in work.
        generation: What the node applied, by its last word.
        over: The session has ended.
        offered: The highest generation that was sent on this connection.
    """

    node: NodeName
    routing_id: bytes
    hello: Hello
    address: str
    fd: int = -1
    heard: float = 0.0
    pinged: float = 0.0
    welcomed: bool = False
    inflow: Inflow = field(default_factory=Inflow)
    unacked: int = 0
    requests: int = 0
    generation: int = 0
    offered: int = 0
    over: bool = False


def acked_by(hello: Hello) -> dict[Lane, tuple[int, int]]:
    """Return what a node says it was acked of its epoch, by lane: the highest number, and how many events, -1 for unknown."""
    lanes = {str(int(lane)): lane for lane in Lane}
    counts = hello.acked_events
    known = {lanes[text]: (seq, counts.get(text, -1)) for text, seq in hello.acked.items() if text in lanes and seq}
    return known if hello.epoch else {}


class Admission(Enum):
    """What to do with a hello."""

    ADMIT = auto()  # nobody else holds the key
    REPLACE = auto()  # the same agent on a new connection, or the same connection again
    PROBE = auto()  # another agent holds it: find out whether it lives


@dataclass(slots=True)
class Sessions:
    """All sessions, by node and by connection."""

    _by_node: dict[NodeName, Session] = field(default_factory=dict)
    _by_routing_id: dict[bytes, Session] = field(default_factory=dict)

    def of_node(self, node: str) -> Session | None:
        """Return the session of a node, if it is connected."""
        return self._by_node.get(NodeName(node))

    def of_connection(self, routing_id: bytes) -> Session | None:
        """Return the session on a connection, if there is one."""
        return self._by_routing_id.get(routing_id)

    def all(self) -> list[Session]:
        """Return all sessions."""
        return list(self._by_node.values())

    def judge(self, node: NodeName, routing_id: bytes, instance: str) -> Admission:
        """Return what to do with a hello of ``node``."""
        first = self._by_node.get(node)
        if first is None:
            return Admission.ADMIT
        # An agent that names no instance cannot be told from a clone.
        same = first.routing_id == routing_id or (bool(instance) and first.hello.instance == instance)
        return Admission.REPLACE if same else Admission.PROBE

    def begin(self, session: Session) -> Session | None:
        """Take a session in; return the one whose place it takes."""
        before = self._by_node.get(session.node)
        if before is not None:
            self.end(before)
        self._by_node[session.node] = session
        self._by_routing_id[session.routing_id] = session
        return before

    def end(self, session: Session) -> bool:
        """Forget a session; return whether it was one."""
        if self._by_routing_id.get(session.routing_id) is not session:
            return False
        session.over = True
        del self._by_routing_id[session.routing_id]
        if self._by_node.get(session.node) is session:
            del self._by_node[session.node]
        return True


def node_state(*, accepted: bool, connected: bool, silent_s: float, late_after_s: float, offline_after_s: float) -> str:
    """Return the state of a node: ``online`` ``late`` ``offline`` ``retired``.

    Args:
        accepted: Its key is accepted.
        connected: It has a session.
        silent_s: Seconds since it was heard; infinite for never.
        late_after_s: Silence that makes it late; so does a closed connection.
        offline_after_s: Silence that makes it offline.
    """
    if not accepted:
        return "retired"
    if connected and silent_s < late_after_s:
        return "online"
    return "late" if silent_s < offline_after_s else "offline"
