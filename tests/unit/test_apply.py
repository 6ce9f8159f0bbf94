"""`garrison apply` from the states folder to nodes that enforce it: real keys, real desk, real node stores, no sockets."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

import httpx
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.responses import JSONResponse

from garrison.cli.apply import command
from garrison.common import errors
from garrison.common.errors import GarrisonError, InventoryError
from garrison.common.names import NodeName
from garrison.common.trust.join import load_join
from garrison.common.trust.keyset import MasterTrust, make_keyset
from garrison.master.api.bundles import bundle_routes
from garrison.master.desk import Desk
from garrison.minion.bundles import BundleStore
from unit.trust.memory_store import MemoryStore
from unit.trust.world import EDGE, OTHER, OTHER_PRINT, POLICY, PRINT, policy

THIRD = NodeName("edge-3")
LABELS = {EDGE: {"role": "edge"}, OTHER: {"role": "edge"}, THIRD: {"role": "edge"}}


class Inventory:
    """Three hosts; patterns are host names, `all`, `edge`."""

    def select(self, pattern, limit=None):
        def hosts(text):
            if text in {"all", "edge"}:
                return list(LABELS)
            if text not in LABELS:
                raise InventoryError(f"pattern {text!r} matches no host")
            return [NodeName(text)]

        return tuple(h for h in hosts(pattern) if limit is None or h in hosts(limit))

    def labels(self, host):
        return LABELS[host]


class Fleet:
    """A desk behind its real routes, and nodes that take what they are assigned whenever the master is asked about them."""

    def __init__(self, tmp_path):
        self.tmp_path, self.keys = tmp_path, tmp_path / "keys"
        make_keyset(tmp_path / "master", self.keys, tenant="plant", masters=["tcp://192.0.2.1:4515"])
        self.store = MemoryStore()
        self.desk = Desk(self.store, MasterTrust.load(tmp_path / "master"))
        self.app = Starlette(routes=bundle_routes(self.desk), exception_handlers={GarrisonError: self._error})
        join = load_join(tmp_path / "master" / "join.json")
        self.nodes = {n: BundleStore(tmp_path / n, join, n, p) for n, p in ((EDGE, PRINT), (OTHER, OTHER_PRINT))}
        self.offline, self.broken, self.rows = set(), {}, {n: {"name": n} for n in self.nodes}
        self.states = tmp_path / "states"
        (self.states / "policies").mkdir(parents=True)
        (self.states / "policies" / "a.yaml").write_bytes(POLICY)
        self.top("policies:\n- files: [policies/a.yaml]\n  hosts: all\n")

    def top(self, text):
        (self.states / "top.yml").write_text(text)

    @staticmethod
    async def _error(_, err):
        return JSONResponse({"error": str(err), "kind": type(err).__name__}, 400)

    # ---- the API's client ------------------------------------------------------------------------------------------------
    def get(self, path):
        return {"nodes": self._views()} if path == "/v1/nodes" else self._ask("GET", path)

    def post(self, path, body):
        return self._ask("POST", path, body)

    def _ask(self, method, path, body=None):
        async def ask():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://master") as client:
                return await client.request(method, path, content=body)

        response = asyncio.run(ask())
        if response.status_code != 200:
            raise getattr(errors, response.json()["kind"])(response.json()["error"])
        return response.json()

    # ---- nodes -----------------------------------------------------------------------------------------------------------
    def _views(self):
        for name, store in self.nodes.items():
            row = self.rows[name]
            row["state"] = "offline" if name in self.offline else "online"
            frame, held = self.desk.frame_for(name), self.store.held.get(name)
            row["assigned_generation"] = held.generation if held else 0
            row.setdefault("generation", 0)
            if frame is None or name in self.offline or row["generation"] == row["assigned_generation"]:
                continue
            if row.get("apply_state") == "failed" and row.get("apply_generation") == row["assigned_generation"]:
                continue
            staged = asyncio.run(store.stage(frame, self._fetch))
            row["apply_generation"] = staged.generation.number
            if name in self.broken:
                row |= {"apply_state": "failed", "apply_error": self.broken[name]}
                store.reject(staged, self.broken[name])
            else:
                row |= {"apply_state": "applied", "apply_error": "", "generation": store.commit(staged).number}
                self.store.reported(name, row["generation"])
        return [dict(row) for row in self.rows.values()]

    async def _fetch(self, digest, length):
        return self.store.blob(digest)

    def apply(self, *args, keys=None):
        argv = ["--states", str(self.states), "--keys", str(keys or self.keys), *args]
        return CliRunner().invoke(command, argv)

    def generations(self):
        return {name: row.get("generation", 0) for name, row in self.rows.items()}


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    made = Fleet(tmp_path)
    monkeypatch.setitem(sys.modules, "garrison.cli.client", SimpleNamespace(open_api=lambda _: made))
    monkeypatch.setitem(sys.modules, "garrison.master.inventory", SimpleNamespace(read_inventory=lambda _: Inventory()))
    return made


def test_apply_is_enforced_by_every_accepted_node_and_a_second_one_is_nothing(fleet):
    first = fleet.apply("--wait", "5")
    again = fleet.apply("--wait", "5")

    assert first.exit_code == 0, first.output
    assert "+ policies/a.yaml (enforce)" in first.output
    assert "not accepted yet, so left out: edge-3" in first.output
    assert again.exit_code == 0, again.output
    assert "to change: 0, to stay as they are: 2" in again.output
    assert fleet.generations() == {EDGE: 1, OTHER: 1}
    assert {rule.policy for rule in fleet.nodes[EDGE].current().normalised().rules.rules} == {"no-base64"}


def test_check_shows_the_change_and_the_text_and_makes_none(fleet):
    fleet.apply("--wait", "5")
    (fleet.states / "policies" / "a.yaml").write_bytes(policy("second"))

    done = fleet.apply("--check", "--diff", keys=fleet.tmp_path / "no-keys-needed")

    assert done.exit_code == 0, done.output
    assert "~ policies/a.yaml" in done.output
    assert "+# second" in done.output
    assert fleet.generations() == {EDGE: 1, OTHER: 1}


def test_limit_reaches_one_node_only(fleet):
    done = fleet.apply("--wait", "5", "--limit", "edge-1")

    assert done.exit_code == 0, done.output
    assert fleet.generations() == {EDGE: 1, OTHER: 0}


def test_host_that_is_named_but_not_accepted_is_an_error_of_its_own(fleet):
    assert fleet.apply("--wait", "5", "--limit", "edge-3").exit_code == 4


def test_change_of_mode_is_shown_as_such(fleet):
    fleet.apply("--wait", "5")
    fleet.top("policies:\n- files: [policies/a.yaml]\n  hosts: all\n  mode: audit\n")

    done = fleet.apply("--wait", "5")

    assert "~ policies/a.yaml (enforce → audit)" in done.output
    assert fleet.generations() == {EDGE: 2, OTHER: 2}


def test_policy_taken_out_of_the_top_file_leaves_the_node(fleet):
    fleet.apply("--wait", "5")
    fleet.top("policies:\n- files: [policies/a.yaml]\n  hosts: edge-2\n")

    done = fleet.apply("--wait", "5")

    assert "- policies/a.yaml" in done.output
    assert fleet.nodes[EDGE].current().normalised().rules.rules == ()
    assert fleet.generations() == {EDGE: 2, OTHER: 1}


def test_node_that_is_off_line_is_queued_and_gets_it_later(fleet):
    fleet.offline.add(OTHER)

    done = fleet.apply("--wait", "5")

    assert done.exit_code == 6, done.output
    assert "edge-2 off line" in done.output
    fleet.offline.clear()
    assert fleet.apply("--wait", "5").exit_code == 0
    assert fleet.generations() == {EDGE: 1, OTHER: 1}


def test_node_that_fails_is_told_with_its_reason_and_the_next_apply_tries_again(fleet):
    fleet.broken[OTHER] = "the kernel has no such map"

    done = fleet.apply("--wait", "5")
    fleet.broken.clear()
    again = fleet.apply("--wait", "5")

    assert done.exit_code == 1
    assert "edge-2 failed: the kernel has no such map" in done.output
    assert again.exit_code == 0, again.output
    assert "try again: the kernel has no such map" in again.output
    assert fleet.generations() == {EDGE: 1, OTHER: 2}


@pytest.mark.parametrize("text", ["policies: [\n", "policies:\n- files: [nosuch.yaml]\n  hosts: nosuch\n"])
def test_wrong_states_end_with_2_before_the_master_is_asked(fleet, monkeypatch, text):
    monkeypatch.setattr(fleet, "get", lambda _: pytest.fail("asked"))
    fleet.top(text)

    done = fleet.apply()

    assert done.exit_code == 2
    assert "top.yml:" in done.output


def test_key_of_another_author_is_refused_with_3_and_changes_nothing(fleet, tmp_path):
    make_keyset(tmp_path / "other", tmp_path / "other-keys", tenant="plant", masters=["tcp://192.0.2.1:4515"])

    done = fleet.apply("--wait", "5", keys=tmp_path / "other-keys")

    assert done.exit_code == 3
    assert "not one that the master knows" in done.output.replace("\n", " ")
    assert fleet.store.bundles == []


def test_json_is_one_object_with_the_exit_code(fleet):
    done = fleet.apply("--wait", "5", "--json")

    document = json.loads(done.stdout)
    assert document["changed"] == {EDGE: ["+ policies/a.yaml (enforce)"], OTHER: ["+ policies/a.yaml (enforce)"]}
    assert (document["applied"], document["failed"], document["not_accepted"]) == ([EDGE, OTHER], {}, [THIRD])
    assert document["exit_code"] == done.exit_code == 0
