"""What comes down through a relay: policy, confirmation, commands; with and without the uplink."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from component.relay_site import Site

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

NODES = ("edge-1", "edge-2")


@pytest.fixture
def work():
    path = Path(tempfile.mkdtemp(prefix="gr-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def site(work):
    """A site whose master tells every piece that it is asked for."""
    made = Site(work, "--log-level", "debug")
    for node in NODES:
        made.accept(node)
    made.start_relay()
    yield made
    made.close()


POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: {name}}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  process: {{matchPaths: [{{path: {path}}}]}}
  action: Block
"""


class Policies:
    """States and inventory of a site."""

    def __init__(self, site: Site) -> None:
        self.site, self.states = site, site.work / "states"
        (self.states / "policies").mkdir(parents=True)
        inventory = site.work / "inventory"
        inventory.mkdir()
        (inventory / "hosts.yml").write_text(json.dumps({"all": {"hosts": dict.fromkeys(NODES)}}))
        site.master.env["GARRISON_INVENTORY"] = str(inventory)

    def apply(self, *names: str, confirm: str = "timeout: 20s", wait: bool = True):
        for name in names:
            (self.states / f"policies/{name}.yaml").write_text(POLICY.format(name=name, path=f"/usr/bin/{name}"))
        top = "policies:\n- {files: [policies/*.yaml], hosts: all, mode: enforce}\n" + f"confirm:\n- {{hosts: all, {confirm}}}\n"
        (self.states / "top.yml").write_text(top)
        keys = self.site.master.work / "keys"
        flags = ["--wait", "60"] if wait else []
        return self.site.cli("apply", "--states", str(self.states), "--keys", str(keys), *flags, ok=(0,) if wait else (6,))


def test_policy_and_commands_pass_through_a_relay_and_a_bundle_is_fetched_once(site):
    policies = Policies(site)
    for node in NODES:
        site.start_minion(node)
    site.until(lambda: all(site.master.nodes()[n]["state"] == "online" for n in NODES), "both are there", 60)

    policies.apply("base64", "base32", "basenc")

    shown = site.master.nodes()
    assert {(shown[n]["apply_state"], shown[n]["generation"]) for n in NODES} == {("applied", 1)}
    log = site.master.log()
    assert log.count("confirm=yes") == len(NODES), "the master itself confirmed both"
    asked = [line for line in log.splitlines() if " chunk=" in line]
    assert len(asked) == 4, "metadata and three files, one piece each, once for the whole site"
    assert all("node=site-1 " in line for line in asked)
    site.until(lambda: site.relay_status()["served_chunks"] == 8, "the relay served each node each piece")
    assert site.relay_status()["fetched_blobs"] == 4
    assert "edge-2" in site.cli("run", "edge-1,edge-2", "--", "/bin/sh", "-c", "echo $0; exit 0").stdout


def test_node_gets_its_policy_from_a_relay_that_is_cut_off_and_confirms_it_by_itself_if_it_may(site):
    policies = Policies(site)
    site.start_minion("edge-1")
    site.until(lambda: site.master.nodes()["edge-1"]["state"] == "online", "it is there", 60)
    policies.apply("base64", confirm="timeout: 60s, offline: true", wait=False)
    site.until(lambda: site.master.nodes()["edge-1"]["generation"] == 1, "one node has it", 60)

    site.master.end(signal.SIGKILL)
    site.until(lambda: site.relay_status()["uplink"] != "connected", "the site is cut off")
    site.start_minion("edge-2")

    site.until(lambda: site.minion_status("edge-2").get("generation") == 1, "the other has it, too", 90)
    site.start_master()
    site.until(lambda: site.master.nodes()["edge-2"]["apply_state"] == "applied", "the master hears of it", 60)


def test_node_does_not_confirm_at_a_relay_that_cannot_ask_its_master(site):
    policies = Policies(site)
    site.start_minion("edge-1")
    site.until(lambda: site.master.nodes()["edge-1"]["state"] == "online", "it is there", 60)
    policies.apply("base64", confirm="timeout: 8s", wait=False)
    site.until(lambda: site.master.nodes()["edge-1"]["generation"] == 1, "one node has it", 60)

    site.master.end(signal.SIGKILL)
    site.until(lambda: site.relay_status()["uplink"] != "connected", "the site is cut off")
    site.start_minion("edge-2")
    site.until(lambda: site.minion_status("edge-2").get("trial"), "it is on trial", 90)

    site.until(lambda: not site.minion_status("edge-2").get("trial"), "it is taken back", 90)
    assert site.minion_status("edge-2")["generation"] == 0
    site.start_master()
    site.until(lambda: site.master.nodes()["edge-2"]["apply_state"] in {"reverted", "quarantined"}, "the master hears of it", 60)


def test_command_for_a_node_whose_relay_is_away_fails_with_the_cause(site):
    site.start_source("edge-1", 1)
    site.all_there("edge-1", 1)
    site.end("relay", signal.SIGKILL)
    site.until(lambda: site.master.nodes()["site-1"]["state"] != "online", "the master notices")

    done = site.cli("run", "edge-1", "--", "/usr/bin/id", ok=(4,))

    assert "relay site-1" in done.stdout + done.stderr
    assert site.master.nodes()["edge-1"]["state"] in {"late", "offline"}
