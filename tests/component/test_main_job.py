"""The main job through the real command line: a master, two minions on hosts of their own, the shipped states."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_operator_gets_from_nothing_to_enforced_policy_with_alerts_commands_and_answers(make_fleet):
    fleet = make_fleet(2)
    one = fleet.fabric.hosts["edge-1"]
    base64 = ("/usr/bin/base64", "/etc/hostname")
    assert one.run(*base64).returncode == 0, "positive control: without policy it runs"

    checked = fleet.apply("--check", "--diff")
    assert "edge-1" in checked.stdout
    assert all(node["generation"] == 0 for node in fleet.nodes().values()), "--check changes nothing"

    fleet.apply("--wait", "30")
    nodes = fleet.nodes()
    assert {name: (n["generation"], n["apply_state"]) for name, n in nodes.items()} == {
        "edge-1": (1, "applied"),
        "edge-2": (1, "applied"),
    }
    refused = one.run(*base64)
    assert refused.returncode != 0
    assert "Operation not permitted" in refused.stderr

    alert = fleet.until(
        lambda: [e for e in fleet.events("--kind", "alert", "--node", "edge-1") if e.get("operation") == "exec"],
        "the alert arrives",
    )[0]
    assert (alert["verdict"], alert["result"], alert["object"]) == ("block", "EPERM", "/usr/bin/base64")
    assert alert["rule"].startswith(f"{alert['policy']}/")

    again = fleet.apply("--wait", "30", "--json")
    assert {n["generation"] for n in fleet.nodes().values()} == {1}, f"a second apply changes nothing: {again.stdout}"


def test_compile_report_says_what_a_node_cannot_do_and_what_selects_nothing(make_fleet):
    fleet = make_fleet(1)
    fleet.apply("--wait", "30", "--limit", "edge-1", ok=(0, 6))

    shown = json.loads(fleet.cli("nodes", "show", "edge-1", "--json").stdout)
    text = fleet.cli("nodes", "show", "edge-1").stdout

    statuses = {rule["status"] for rule in shown["report"]["rules"]}
    assert {"enforced", "impossible", "inert"} <= statuses
    assert all(rule["rule"] in text for rule in shown["report"]["rules"])
    assert all(rule["reason"] for rule in shown["report"]["rules"] if rule["status"] in {"impossible", "inert", "degraded"})


def test_run_answers_with_the_commands_output_and_exit_codes(make_fleet):
    fleet = make_fleet(2)

    both = fleet.cli("run", "edge", "--", "hostname")
    failed = fleet.cli("run", "edge-1", "--", "sh", "-c", "exit 3", ok=(1,))
    nobody = fleet.cli("run", "nosuch", "--", "true", ok=(2,))
    fleet.end_minion(fleet.fabric.hosts["edge-2"])
    fleet.until(lambda: fleet.nodes()["edge-2"]["state"] != "online", "edge-2 is known to be gone", timeout_s=90)
    unreachable = fleet.cli("run", "edge", "--", "true", ok=(4,))

    assert "edge-1" in both.stdout
    assert "edge-2" in both.stdout
    assert "3" in failed.stdout + failed.stderr
    assert "nosuch" in nobody.stderr
    assert "edge-2" in unreachable.stdout + unreachable.stderr


def test_observers_deliver_commands_resources_and_error_lines(make_fleet):
    fleet = make_fleet(1)
    host = fleet.fabric.hosts["edge-1"]
    host.write("/var/log/app.log", "")

    with host.path("/var/log/app.log").open("a") as log:
        log.write("2026-01-01 ERROR payment: the database went away\n")
    host.run("/usr/bin/id", "-u", "root")

    fleet.until(
        lambda: [e for e in fleet.events("--kind", "exec") if e["actor"].get("args") == ["/usr/bin/id", "-u", "root"]],
        "the command",
    )
    fleet.until(lambda: [e for e in fleet.events("--kind", "error") if "database went away" in str(e["data"])], "the error line")
    sample = fleet.until(lambda: fleet.events("--kind", "metric"), "a resource sample")[-1]
    assert sample["data"]["mem_total_bytes"] > 0
    assert "edge-1" in fleet.cli("top", "--once").stdout
