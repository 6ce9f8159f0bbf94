"""``/v1/nodes``, ``/v1/pending``, ``/v1/resources``: who is there, who may be, how they fare.

Rules of this file:
- What is shown is what is stored and what the link sees now; nothing is kept here.
- Decisions on keys are durable before they are answered; a retired node is cut off before that, and let in again if it failed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from garrison.common import limits
from garrison.common.errors import GarrisonError
from garrison.common.events import Lane
from garrison.common.names import KeyFingerprint, NodeName, node_name
from garrison.master.api.errors import NotFoundError
from garrison.master.api.wire import body, json_response, query
from garrison.master.collector.clones import Clone
from garrison.master.collector.collector import Collector
from garrison.master.collector.keys import KeyRing
from garrison.master.collector.sessions import Session, node_state
from garrison.master.config import MasterSettings
from garrison.master.store import NodeRow, Store

__all__ = ["AcceptBody", "KeyBody", "NodeView", "routes"]

_KEY_MAX_CHARS: Final = 128


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the API shows it. ``docs/master.md`` describes every field."""

    name: NodeName
    state: str
    fingerprint: KeyFingerprint
    address: str
    version: str
    generation: int
    assigned_generation: int
    bundle: str
    apply_state: str
    apply_error: str
    apply_generation: int
    last_seen: int
    unacked: dict[str, int]
    epoch: str
    instance: str
    backends: dict[str, str]
    grains: dict[str, str]
    clones: list[Clone]
    bad_frames: int
    quarantined: int
    relay: bool
    via: str
    relays: list[str]
    refused: int


class KeyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of reject: a fingerprint that was shown as pending, or a Z85 key."""

    key: str


class AcceptBody(KeyBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of accept: the key, and whether it is a relay's or of a node behind a relay."""

    relay: bool = False
    via: str = ""


class ManyKeysBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of accepting many: keys, as ``KeyBody`` has them, by node name."""

    nodes: Annotated[dict[str, str], msgspec.Meta(max_length=limits.NODES_AT_ONCE_MAX)]


class ManyNamesBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of retiring many."""

    nodes: Annotated[list[str], msgspec.Meta(max_length=limits.NODES_AT_ONCE_MAX)]


class NodesApi:
    """Endpoints about nodes."""

    def __init__(self, settings: MasterSettings, store: Store, keys: KeyRing, collector: Collector) -> None:
        self._settings, self._store, self._keys, self._collector = settings, store, keys, collector

    async def index(self, request: Request) -> Response:
        """Answer ``GET /v1/nodes``."""
        query(request)
        rows, assigned = await asyncio.to_thread(lambda: (self._store.nodes(), self._assigned()))
        return json_response({"nodes": [self._view(row, assigned) for row in rows]})

    async def show(self, request: Request) -> Response:
        """Answer ``GET /v1/nodes/NAME``."""
        name = request.path_params["name"]
        row, rules = await asyncio.to_thread(lambda: (self._store.node(name), self._store.node_rules(name)))
        if row is None:
            raise NotFoundError(f"there is no node {name[:64]}", hint="garrison nodes lists them")
        assigned = await asyncio.to_thread(self._store.assignment, row.name)
        view = self._view(row, {row.name: assigned.generation} if assigned else {})
        return json_response({**msgspec.structs.asdict(view), "report": {"rules": rules}})

    async def pending(self, request: Request) -> Response:
        """Answer ``GET /v1/pending``."""
        query(request)
        return json_response({"pending": self._keys.pending()})

    async def accept(self, request: Request) -> Response:
        """Answer ``POST /v1/nodes/NAME/accept``."""
        name = node_name(request.path_params["name"])
        wanted = await body(request, AcceptBody)
        key = wanted.key[:_KEY_MAX_CHARS]
        changed = await asyncio.to_thread(self._keys.accept, name, key, is_relay=wanted.relay, via=wanted.via)
        self._collector.relays.keys_changed()
        return json_response({"name": name, "changed": changed})

    async def accept_many(self, request: Request) -> Response:
        """Answer ``POST /v1/nodes/accept``: all or none."""
        wanted = (await body(request, ManyKeysBody)).nodes
        keys = {node_name(name): key[:_KEY_MAX_CHARS] for name, key in wanted.items()}
        return json_response({"changed": await asyncio.to_thread(self._keys.accept_all, keys)})

    async def retire_many(self, request: Request) -> Response:
        """Answer ``POST /v1/nodes/retire``: all or none."""
        names = (await body(request, ManyNamesBody)).nodes
        return json_response({"changed": await self._retire(names)})

    async def retire(self, request: Request) -> Response:
        """Answer ``POST /v1/nodes/NAME/retire``."""
        name = request.path_params["name"]
        if await asyncio.to_thread(self._store.node, name) is None:
            raise NotFoundError(f"there is no node {name[:64]}", hint="garrison nodes lists them")
        return json_response({"name": name, "changed": bool(await self._retire([name]))})

    async def _retire(self, names: Sequence[str]) -> int:
        # Cut off first: a store that is slow, or behind many events, must not keep a node in.
        self._keys.lock_out(names)
        for name in names:
            self._collector.cut_off(name)
        try:
            return await asyncio.to_thread(self._keys.retire_all, names)
        except GarrisonError:
            await asyncio.to_thread(self._keys.reload)
            raise
        finally:
            self._collector.relays.keys_changed()

    async def reject(self, request: Request) -> Response:
        """Answer ``POST /v1/pending/reject``."""
        key = (await body(request, KeyBody)).key[:_KEY_MAX_CHARS]
        return json_response({"fingerprint": await asyncio.to_thread(self._keys.reject, key), "changed": True})

    async def resources(self, request: Request) -> Response:
        """Answer ``GET /v1/resources``: the newest resource sample of every accepted node."""
        query(request)
        rows = await asyncio.to_thread(self._store.nodes)
        samples = await asyncio.to_thread(self._store.newest_metrics, [row.name for row in rows if row.state != "retired"])
        return json_response({"events": samples})

    def _assigned(self) -> Mapping[NodeName, int]:
        return {node: a.generation for node, a in self._store.assignments().items()}

    def _view(self, row: NodeRow, assigned: Mapping[NodeName, int]) -> NodeView:
        session, line = self._collector.session(row.name), self._collector.relays.line
        present = None if session else line.of_node(row.name)
        relay = self._collector.session(present.relay) if present else None
        hello = session.hello if session else row.hello
        # A relay that is heard has its nodes on the line as it said.
        online = present is not None and present.presence.online and present.hello is not None
        silent_s, last_seen = _silence(row, session or (relay if online else None))
        return NodeView(
            name=row.name,
            state=node_state(
                accepted=row.state == "accepted",
                connected=session is not None or online,
                silent_s=silent_s,
                late_after_s=self._settings.late_after_s,
                offline_after_s=self._settings.offline_after_s,
            ),
            fingerprint=row.fingerprint,
            address=session.address if session else row.address,
            version=hello.version if hello else "",
            generation=row.generation,
            assigned_generation=assigned.get(row.name, 0),
            bundle=row.bundle,
            apply_state=row.apply_state,
            apply_error=row.apply_error,
            apply_generation=row.apply_generation,
            last_seen=last_seen,
            unacked=_by_lane_name(hello.unacked if hello else {}),
            epoch=hello.epoch if hello else "",
            instance=hello.instance if hello else "",
            backends=dict(hello.backends) if hello else {},
            grains=dict(hello.grains) if hello else {},
            clones=self._collector.clones(row.name),
            bad_frames=self._collector.bad_frames[row.name],
            quarantined=self._collector.quarantined[row.name],
            relay=self._keys.is_relay(row.name),
            via=present.relay if present and online else "",
            relays=[str(one) for one in self._keys.relays_of(row.name)],
            refused=line.refused[row.name],
        )


def _silence(row: NodeRow, session: Session | None) -> tuple[float, int]:
    now = time.time_ns()
    if session is not None:
        silent_s = time.monotonic() - session.heard
        return silent_s, now - int(silent_s * 1e9)
    return ((now - row.last_seen) / 1e9 if row.last_seen else math.inf), row.last_seen


def _by_lane_name(counts: Mapping[str, int]) -> dict[str, int]:
    names = {str(int(lane)): lane.name.lower() for lane in Lane}
    return {names.get(lane, lane): count for lane, count in counts.items()}


def routes(settings: MasterSettings, store: Store, keys: KeyRing, collector: Collector) -> list[Route]:
    """Return the routes of this file."""
    api = NodesApi(settings, store, keys, collector)
    return [
        Route("/v1/nodes", api.index, methods=["GET"]),
        Route("/v1/nodes/accept", api.accept_many, methods=["POST"]),
        Route("/v1/nodes/retire", api.retire_many, methods=["POST"]),
        Route("/v1/nodes/{name}", api.show, methods=["GET"]),
        Route("/v1/nodes/{name}/accept", api.accept, methods=["POST"]),
        Route("/v1/nodes/{name}/retire", api.retire, methods=["POST"]),
        Route("/v1/pending", api.pending, methods=["GET"]),
        Route("/v1/pending/reject", api.reject, methods=["POST"]),
        Route("/v1/resources", api.resources, methods=["GET"]),
    ]
