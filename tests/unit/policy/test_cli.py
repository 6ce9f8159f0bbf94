"""``garrison policy`` through its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from garrison.cli import policy
from garrison.cli.policy import command
from garrison.common.frames import RuleReport
from garrison.common.policy.report import merge_reports

STATES = Path(__file__).parents[3] / "states" / "policies"
BAD = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: bad}
spec:
  nodeSelector: {matchLabels: {kubearmor.io/hostname: "*"}}
  process:
    matchPaths:
    - path: relative
    - pth: /x
"""
LOCKOUT = BAD.replace("    - path: relative\n    - pth: /x\n", "    - path: /usr/sbin/sshd\n")


@pytest.fixture
def garrison(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: CliRunner().invoke(command, [str(arg) for arg in args])


def test_lint_of_clean_policies_counts_them_and_exits_0(garrison):
    done = garrison("lint", STATES)

    assert done.exit_code == 0
    assert done.output == "files 17  policies 17  rules 46  errors 0  warnings 0\n"


def test_lint_tells_every_error_of_every_file_and_exits_2(garrison, tmp_path):
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "lockout.yaml").write_text(LOCKOUT)

    done = garrison("lint", tmp_path, tmp_path / "missing.yaml")

    assert done.exit_code == 2
    assert f"{tmp_path}/bad.yaml:8: error: spec.process.matchPaths[0].path: must be an absolute path" in done.output
    assert f"{tmp_path}/bad.yaml:9: error: spec.process.matchPaths[1].pth: is no key here" in done.output
    assert f"{tmp_path}/lockout.yaml:8: error: spec.process.matchPaths[0]: takes from the node" in done.output
    assert 'garrison/i-mean-it: "true"' in done.output
    assert f"{tmp_path}/missing.yaml: error: cannot be read: No such file" in done.output
    assert "files 3 " in done.output


def test_lint_as_json_is_one_object_with_every_finding(garrison, tmp_path):
    (tmp_path / "a.yaml").write_text(LOCKOUT.replace("/usr/sbin/sshd", "/usr/bin/a*"))

    done = garrison("lint", "--json", tmp_path)

    found = json.loads(done.output)
    assert done.exit_code == 0
    assert {key: found[key] for key in ("files", "policies", "rules", "errors", "warnings")} == {
        "files": 1,
        "policies": 1,
        "rules": 1,
        "errors": 0,
        "warnings": 1,
    }
    (finding,) = found["findings"]
    assert (finding["level"], finding["line"], finding["key"]) == ("warning", 8, "spec.process.matchPaths[0]")


def report_without_backends(normalised):
    first = normalised.rules.rules[0]
    return merge_reports(normalised.rules, [("one", [RuleReport(rule=first.id, status="enforced")])], normalised.inert)


def test_lint_of_a_states_folder_passes_over_its_top_file(garrison):
    done = garrison("lint", STATES.parent)

    assert done.exit_code == 0
    assert "errors 0" in done.output


def test_explain_shows_the_worst_first_with_its_reason(garrison, monkeypatch):
    monkeypatch.setattr(policy, "_compile", report_without_backends)
    monkeypatch.setattr(policy, "_inventory_labels", lambda _path, _node: {"group/edge": "true"})

    done = garrison("explain", STATES / "demo", "--node", "edge-1", "--inventory", "inventory")

    lines = done.output.splitlines()
    assert done.exit_code == 0
    assert lines[0] == "node edge-1   group/edge=true"
    assert [line.split()[1] for line in lines[2:]] == ["inert", *["impossible"] * 4, "enforced"]
    assert "demo-warehouse-only/-" in lines[2]
    assert "selects nodes with group/warehouse: true; this node has no such label" in lines[2]


def test_explain_as_json_names_node_labels_rules_and_skipped_documents(garrison, monkeypatch, tmp_path):
    monkeypatch.setattr(policy, "_compile", report_without_backends)
    good = LOCKOUT.replace("/usr/sbin/sshd", "/usr/bin/a")
    (tmp_path / "a.yaml").write_text(good + "---\napiVersion: kyverno.io/v1\nkind: ClusterPolicy\nmetadata: {name: k}\n")

    found = json.loads(garrison("explain", "--json", tmp_path).output)

    assert set(found) == {"node", "labels", "rules", "notes"}
    assert [rule["status"] for rule in found["rules"]] == ["enforced"]
    assert "kyverno.io/v1 ClusterPolicy 'k' is not enforced" in found["notes"][0]


def test_explain_for_a_node_without_an_inventory_is_a_usage_error(garrison, monkeypatch):
    monkeypatch.delenv("GARRISON_INVENTORY", raising=False)

    done = garrison("explain", STATES, "--node", "edge-1")

    assert done.exit_code == 2
    assert "--inventory" in done.output


@pytest.mark.parametrize("verb", [(), ("lint",), ("explain",)])
def test_every_command_shows_examples(garrison, verb):
    done = garrison(*verb, "--help")

    assert done.exit_code == 0
    assert "Examples:\n    garrison policy" in done.output
