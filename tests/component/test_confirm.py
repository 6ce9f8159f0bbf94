"""A new policy is on trial until it is confirmed: a real master, a real minion, real deadmen; backends that end with the agent.

The kernel enforcer is tested in VMs (tests/vm/test_brick.py).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from lab.fleet import GARRISON, Fleet

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ENCODER = ("/usr/bin/base64", "/etc/hostname")
SECRET = ("cat", "/etc/secret/api.key")
POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata:
  name: {name}
  annotations: {{garrison/i-mean-it: "true"}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  {what}
  action: Block
"""
NO_ENCODER = POLICY.format(name="no-encoder", what="process: {matchPaths: [{path: /usr/bin/base64}]}")
NO_SECRET = POLICY.format(name="no-secret", what="file: {matchPaths: [{path: /etc/secret/api.key}]}")
NO_PROGRAMS = POLICY.format(name="no-programs", what="process: {matchDirectories: [{dir: /, recursive: true}]}")
NO_FILES = POLICY.format(name="no-files", what="file: {matchDirectories: [{dir: /, recursive: true}]}")
NO_LIBRARIES = POLICY.format(name="no-libraries", what="file: {matchDirectories: [{dir: /usr/lib/, recursive: true}]}")


class Site:
    """One node and its master; old policy: no encoder."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.host = fleet, fleet.fabric.hosts["edge-1"]

    def apply(self, *policies: str, confirm: str = "timeout: 8s", wait: bool = True, ok: tuple[int, ...] = (0,)) -> None:
        states = self.fleet.work / "states"
        (states / "policies").mkdir(parents=True, exist_ok=True)
        (states / "policies/all.yaml").write_text("---".join(policies))
        (states / "top.yml").write_text(
            "policies:\n- {files: [policies/*.yaml], hosts: all, mode: enforce}\n" + f"confirm:\n- {{hosts: all, {confirm}}}\n"
        )
        self.fleet.apply("--limit", "edge-1", *(("--wait", "60") if wait else ()), states=states, ok=ok)

    def refuses(self, what: tuple[str, ...]) -> bool:
        done = self.host.run(*what)
        return done.returncode != 0 and "not permitted" in done.stderr

    def node(self):
        return self.fleet.nodes()["edge-1"]

    def minion(self):
        return self.fleet.minion_status(self.host)

    def pid(self) -> int:
        """The agent's, as the host sees it."""
        return int(self.minion()["pid"])

    def trial(self):
        """What the deadman has on record, if it is armed for what is assigned."""
        record = json.loads(self.host.path("/run/garrison/deadman.json").read_text())
        wanted = (self.node()["assigned_generation"], "armed")
        return record if (record["generation"], record["state"]) == wanted else None

    def confirm(self, *argv: str):
        done = self.host.run(GARRISON, "confirm", "--json", *argv)
        return done.returncode, json.loads(done.stdout)

    def applies(self, state: str):
        return [e for e in self.fleet.events("--kind", "apply") if e["data"]["state"] == state]

    def assert_taken_back(self, generation: int) -> str:
        """The node can be reached, the old policy holds, and the master was told; returns why."""
        fleet = self.fleet
        fleet.until(lambda: self.node()["apply_state"] in {"reverted", "quarantined"}, "the master is told")
        fleet.until(lambda: self.node()["state"] == "online", "the node can be reached")
        fleet.until(lambda: self.refuses(ENCODER), "the old policy holds")
        assert "edge" in fleet.cli("run", "edge-1", "--", "/usr/bin/hostname").stdout
        assert self.node()["apply_generation"] == generation
        fleet.until(lambda: self.applies("reverted"), "the event")
        event = self.applies("reverted")[-1]
        assert event["data"]["generation"] == generation
        assert event["severity"] == 8
        assert f"generation {generation}: " in fleet.cli("nodes", "show", "edge-1").stdout
        return str(event["data"]["error"])


@pytest.fixture
def site(make_fleet) -> Site:
    made = Site(make_fleet(1))
    assert not made.refuses(ENCODER), "without policy it runs"
    made.apply(NO_ENCODER)
    assert made.refuses(ENCODER)
    return made


def test_policy_that_does_no_harm_is_confirmed_by_the_master_within_seconds(site):
    site.apply(NO_ENCODER, NO_SECRET)

    assert site.refuses(SECRET)
    assert site.node()["generation"] == site.node()["assigned_generation"] == 2
    assert not site.trial()
    assert "confirmed" in site.fleet.cli("nodes", "show", "edge-1").stdout
    log = (site.fleet.work / "master.log").read_text()
    assert log.count("confirm=yes generation=2") == 1, "over a connection of its own"
    assert log.count("edge-1 online") == 1, "the other connection went on"
    site.fleet.until(lambda: len(site.applies("pending")) >= 2, "the events")
    assert [e["data"]["generation"] for e in site.applies("pending")] == [1, 2]


@pytest.mark.parametrize("bad", [NO_PROGRAMS, NO_FILES, NO_LIBRARIES], ids=["programs", "files", "libraries"])
def test_policy_that_breaks_the_node_is_taken_back(site, bad):
    site.apply(NO_ENCODER, bad, wait=False)

    site.assert_taken_back(2)

    site.apply(NO_ENCODER, NO_SECRET)
    assert site.refuses(SECRET), "the next policy is taken"


@pytest.fixture
def lonely(site: Site) -> Iterator[Site]:
    """A site whose node can make no new connection to its master; the one that it has goes on."""
    rules = (
        "table inet cut { chain out { type filter hook output priority 0; tcp dport 4515 tcp flags & (syn|ack) == syn drop; }; }"
    )
    assert site.host.run("nft", rules).returncode == 0
    yield site
    site.host.run("nft", "delete table inet cut")


def on_trial(site: Site, confirm: str = "timeout: 8s") -> int:
    """Have a policy on trial that refuses ``SECRET``; returns its generation."""
    site.apply(NO_ENCODER, NO_SECRET, confirm=confirm, wait=False)
    site.fleet.until(lambda: site.refuses(SECRET), "it is enforced")
    return int(site.fleet.until(site.trial, "it is on trial")["generation"])


def test_new_connections_are_what_counts_not_the_one_that_goes_on(lonely):
    number = on_trial(lonely)
    lonely.fleet.until(lambda: lonely.node()["apply_state"] == "pending", "the master is told")
    assert "on trial" in lonely.fleet.cli("nodes", "show", "edge-1").stdout

    assert "not confirmed in time" in lonely.assert_taken_back(number)
    assert not lonely.refuses(SECRET)


def test_master_that_dies_during_the_trial_costs_the_new_policy(lonely):
    number = on_trial(lonely)
    lonely.fleet.end_master(signal.SIGKILL)
    assert lonely.host.run("nft", "delete table inet cut").returncode == 0

    lonely.fleet.until(lambda: not lonely.refuses(SECRET), "it is taken back")

    assert lonely.refuses(ENCODER)
    lonely.fleet.start_master()
    assert "not confirmed in time" in lonely.assert_taken_back(number)


def test_node_that_may_be_alone_confirms_by_its_own_probes(lonely):
    lonely.apply(NO_ENCODER, NO_SECRET, confirm="timeout: 60s, offline: true")

    assert lonely.refuses(SECRET)
    assert lonely.node()["generation"] == 2


def test_person_at_the_node_confirms_with_the_right_digest_only(lonely):
    on_trial(lonely, confirm="timeout: 60s")
    shown = lonely.host.run(GARRISON, "enforcer", "status", "--json")
    trial = json.loads(shown.stdout)["trial"]
    assert (trial["state"], json.loads(shown.stdout)["confirmed_generation"]) == ("armed", 1)
    assert 0 < trial["left_s"] <= 60

    assert lonely.confirm("--digest", "0" * 12)[0] == 3
    assert lonely.trial()
    code, said = lonely.confirm("--digest", trial["digest"][:12])

    assert (code, said["confirmed"], said["generation"]) == (0, True, 2), said
    lonely.fleet.until(lambda: lonely.node()["apply_state"] == "applied", "the master knows")
    assert lonely.refuses(SECRET)
    assert lonely.confirm()[0] == 0, "already so"


def test_newer_policy_ends_a_trial_without_a_verdict(lonely):
    first = on_trial(lonely, confirm="timeout: 300s")

    lonely.apply(NO_ENCODER, confirm="timeout: 60s, offline: true", wait=False)

    lonely.fleet.until(lambda: lonely.node()["generation"] == first + 1, "the newer one is confirmed")
    assert not lonely.refuses(SECRET)
    assert lonely.refuses(ENCODER)
    event = lonely.fleet.until(lambda: lonely.applies("interrupted"), "it is told")[0]
    assert event["data"]["generation"] == first
    assert not lonely.applies("reverted")


def test_agent_that_is_stopped_in_order_leaves_the_trial_to_be_repeated(lonely):
    number = on_trial(lonely, confirm="timeout: 300s")

    assert lonely.fleet.end_minion(lonely.host) == 0
    assert lonely.host.run("nft", "delete table inet cut").returncode == 0
    lonely.fleet.start_minion(lonely.host)

    lonely.fleet.until(lambda: lonely.node()["generation"] == number, "it is tried again, and confirmed")
    assert lonely.refuses(SECRET)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_agent_that_is_killed_or_stopped_during_a_trial_starts_with_the_confirmed_policy(lonely, how):
    number = on_trial(lonely)
    agent = lonely.fleet.minions.pop("edge-1")

    lonely.host.run("kill", f"-{how.value}", str(lonely.pid()))

    record = lonely.host.path("/run/garrison/deadman.json")
    lonely.fleet.until(lambda: json.loads(record.read_text())["state"] == "reverted", "the deadman acts")
    agent.send_signal(signal.SIGCONT)  # nsenter, which stops when its child does
    agent.wait(timeout=60)
    assert lonely.host.run("nft", "delete table inet cut").returncode == 0
    lonely.fleet.start_minion(lonely.host)
    why = lonely.assert_taken_back(number)
    assert ("ended before" if how is signal.SIGKILL else "nobody confirmed it within 8 s") in why
    assert not lonely.refuses(SECRET)
