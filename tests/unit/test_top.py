"""From states/top.yml to what each node gets, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.common.confirm import ConfirmTerms
from garrison.common.errors import InventoryError
from garrison.common.names import NodeName
from garrison.common.policy.rules import Mode, Posture
from garrison.common.top import read_states
from garrison.common.trust.bundle import NodeShare
from garrison.common.trust.verify import verify_bundle
from unit.trust.world import EDGE, NOW, OTHER, World

PLAIN = "policies:\n- {files: [policies/a.yaml], hosts: all}\n"
HOSTS = {"edge-1": {"role": "edge"}, "edge-2": {"role": "edge"}, "vault": {"role": "vault"}}
GROUPS = {"all": ["edge-1", "edge-2", "vault"], "edge": ["edge-1", "edge-2"], "none": []}
POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: %s}
spec:
  nodeSelector: {matchLabels: {}}
  process: {matchPaths: [{path: /usr/bin/base64}]}
  action: Block
"""


def select(pattern):
    if pattern not in GROUPS and pattern not in HOSTS:
        raise InventoryError(f"pattern {pattern!r} matches no host", hint="see garrison inventory")
    return tuple(NodeName(name) for name in GROUPS.get(pattern, [pattern]))


@pytest.fixture
def states(tmp_path):
    """A states folder: ``states(top, **files)`` reads it."""

    def read(top, **files):
        (tmp_path / "policies").mkdir(exist_ok=True)
        for name, text in {"a": POLICY % "a", "b": POLICY % "b", **files}.items():
            (tmp_path / "policies" / f"{name}.yaml").write_text(text)
        (tmp_path / "top.yml").write_text(top)
        return read_states(tmp_path, select("all"), select=select, labels=lambda host: HOSTS[host])

    return read


def test_hosts_get_the_files_of_their_patterns_with_mode_and_labels(states):
    found, errors = states(
        """\
policies:
- files: [policies/a.yaml]
  hosts: all
  mode: audit
- files: [policies/b.yaml]
  hosts: edge
"""
    )

    assert errors == []
    assert found.nodes["vault"].files == {"policies/a.yaml": Mode.AUDIT}
    assert found.nodes["edge-1"].files == {"policies/a.yaml": Mode.AUDIT, "policies/b.yaml": Mode.ENFORCE}
    assert found.nodes["vault"].labels == {"role": "vault"}
    assert set(found.files) == {"policies/a.yaml", "policies/b.yaml"}


def test_host_that_no_entry_names_has_an_empty_share_so_that_what_it_had_goes_away(states):
    found, errors = states("policies:\n- files: [policies/a.yaml]\n  hosts: edge\n")

    assert errors == []
    assert found.nodes["vault"].files == {}


@pytest.mark.parametrize("order", [("audit", "enforce"), ("enforce", "audit")])
def test_enforce_wins_in_whatever_order_entries_stand(states, order):
    entries = "".join(f"- files: ['policies/*.yaml']\n  hosts: all\n  mode: {mode}\n" for mode in order)

    found, errors = states("policies:\n" + entries)

    assert errors == []
    assert set(found.nodes["edge-1"].files.values()) == {Mode.ENFORCE}


def test_postures_go_to_the_hosts_named_and_block_wins(states):
    found, errors = states(
        """\
policies:
- {files: [policies/a.yaml], hosts: all}
postures:
- {hosts: vault, file: block}
- {hosts: all, file: audit, network: block}
"""
    )

    assert errors == []
    assert (found.nodes["vault"].postures.file, found.nodes["vault"].postures.network) == (Posture.BLOCK, Posture.BLOCK)
    assert found.nodes["edge-1"].postures.file is Posture.AUDIT


def test_terms_of_confirmation_go_to_the_hosts_named(states):
    found, errors = states(
        """\
policies:
- {files: [policies/a.yaml], hosts: all}
confirm:
- {hosts: edge, timeout: 10m, offline: true}
- {hosts: vault, offline: auto}
"""
    )

    assert errors == []
    assert found.nodes["edge-2"].confirm == ConfirmTerms(timeout_s=600, offline=True)
    assert found.nodes["vault"].confirm == ConfirmTerms(timeout_s=120, offline=None)


def test_terms_are_signed_with_the_bundle_and_read_back():
    world = World()
    terms = ConfirmTerms(timeout_s=30, offline=False)

    bundle = world.bundle(1, {}, nodes={EDGE: NodeShare(confirm=terms), OTHER: NodeShare()})

    content = verify_bundle(world.trust().bundles, bundle.metadata, tenant=world.tenant, now=NOW)
    assert content.nodes[EDGE].confirm == terms
    assert content.nodes[OTHER].confirm == ConfirmTerms()


@pytest.mark.parametrize(
    ("top", "line", "key", "says"),
    [
        ("policies: [\n", 2, "", "is not YAML"),
        ("", 0, "", "must hold one document, holds 0"),
        ("policies: []\n", 1, "policies", "at least 1"),
        ("policies:\n- files: [policies/a.yaml]\n  hosts: edge\n  moed: audit\n", 4, "policies[0].moed", "is no key here"),
        ("policies:\n- files: [policies/a.yaml]\n", 2, "policies[0].hosts", "is missing"),
        ("policies:\n- files: [policies/a.yaml]\n  hosts: edge\n  mode: enforced\n", 4, "policies[0].mode", "'enforced'"),
        ("policies:\n- files: policies/a.yaml\n  hosts: edge\n", 2, "policies[0].files", "list"),
        ("policies:\n- files: [policies/no*.yaml]\n  hosts: edge\n", 2, "policies[0].files[0]", "matches no file"),
        ("policies:\n- files: [../secret.yaml]\n  hosts: edge\n", 2, "policies[0].files[0]", "below the states folder"),
        ("policies:\n- files: [/etc/passwd]\n  hosts: edge\n", 2, "policies[0].files[0]", "below the states folder"),
        ("policies:\n- files: [policies/a.yaml]\n  hosts: nosuch\n", 3, "policies[0].hosts", "matches no host"),
        ("policies:\n- files: [policies/a.yaml]\n  hosts: none\n", 3, "policies[0].hosts", "matches no host"),
        ("policies:\n- files: [policies/a.yaml]\n  hosts: edge\n  hosts: all\n", 4, "policies[0].hosts", "twice"),
        (
            "policies:\n- {files: [policies/a.yaml], hosts: all}\npostures:\n- {hosts: all, file: deny}\n",
            4,
            "postures[0].file",
            "'deny'",
        ),
        (f"{PLAIN}confirm:\n- {{hosts: all, timeout: soon}}\n", 4, "confirm[0].timeout", "a time such as"),
        (f"{PLAIN}confirm:\n- {{hosts: all, timeout: 1s}}\n", 4, "confirm[0].timeout", "from 5s"),
        (f"{PLAIN}confirm:\n- {{hosts: all, offline: perhaps}}\n", 4, "confirm[0].offline", "boolean"),
        (f"{PLAIN}confirm:\n- {{hosts: edge}}\n- {{hosts: edge-1}}\n", 5, "confirm[1].hosts", "entry before"),
    ],
)
def test_mistake_is_named_with_file_line_and_key(states, top, line, key, says):
    _, errors = states(top)

    assert [(e.line, e.key) for e in errors] == [(line, key)]
    assert errors[0].file.endswith("top.yml")
    assert says in str(errors[0])


def test_every_mistake_of_every_file_is_found_in_one_go(states):
    _, errors = states(
        "policies:\n- files: [policies/*.yaml, nosuch.yaml]\n  hosts: nosuch\n",
        a=(POLICY % "a").replace("process:", "proces:"),
        b="apiVersion: security.kubearmor.com/v1\nkind: Nonsense\n",
    )

    said = "\n".join(str(error) for error in errors)
    for what in ("nosuch.yaml", "'nosuch'", "a.yaml:6", "proces", "b.yaml:2", "Nonsense"):
        assert what in said, said


def test_policies_that_no_known_host_gets_are_checked_all_the_same(states):
    _, errors = states("policies:\n- files: [policies/a.yaml]\n  hosts: none\n", a="kind: [")

    assert any("a.yaml" in str(error) for error in errors)


def test_policy_that_would_lock_everybody_out_is_a_mistake_and_says_how_to_mean_it(states):
    shells = (POLICY % "a").replace("/usr/bin/base64", "/usr/sbin/sshd")

    _, errors = states("policies:\n- files: [policies/a.yaml]\n  hosts: edge\n", a=shells)

    assert [error.file.rpartition("/")[2] for error in errors] == ["a.yaml"]
    assert "garrison/i-mean-it" in f"{errors[0]}{errors[0].hint}"


def test_shipped_states_have_no_mistake():
    folder = Path(__file__).resolve().parents[2] / "states"

    found, errors = read_states(folder, select("all"), select=select, labels=lambda host: HOSTS[host])

    assert errors == []
    assert found.nodes["edge-1"].files
    assert set(found.nodes["edge-1"].files.values()) == {Mode.ENFORCE}


def test_absent_top_file_is_said_with_its_path(tmp_path):
    _, errors = read_states(tmp_path, (), select=select, labels=lambda _: {})

    assert "top.yml" in str(errors[0])
    assert "cannot be read" in str(errors[0])


def test_document_of_another_group_is_passed_over_with_a_note(states):
    found, errors = states(
        "policies:\n- files: [policies/a.yaml]\n  hosts: edge\n", a=POLICY % "a" + "---\napiVersion: v1\nkind: ConfigMap\n"
    )

    assert errors == []
    assert any("ConfigMap" in note for note in found.notes)
