"""What people on the node and readers of events learn about workloads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from garrison.cli.main import cli
from garrison.common import limits
from garrison.common.events import Actor, Event, Kind, Lane, encode_event
from garrison.common.policy.load import load_text
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.rules import Mode
from garrison.minion.workloads.annotate import annotated
from garrison.minion.workloads.model import Workload, WorkloadKind
from garrison.minion.workloads.report import WorkloadReport, scopes_of, write_report

BOX = "0123456789abcdef" * 4
WEB = Workload(
    kind=WorkloadKind.CONTAINER,
    name="web",
    namespace="default",
    labels=frozenset({"app=web", "garrison/kind=container", "garrison/container=web", "kubearmor.io/container.name=web"}),
    cgroup=f"/machine.slice/libpod-{BOX}.scope",
    cgroup_id=77,
    image="localhost/lab:1",
)
NGINX = Workload(
    kind=WorkloadKind.UNIT,
    name="nginx.service",
    namespace="default",
    labels=frozenset({"app=web", "garrison/kind=unit", "garrison/unit=nginx.service"}),
    cgroup="/system.slice/nginx.service",
)
POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: %s, namespace: default}
spec:
  selector: {matchLabels: {%s}}
  file: {matchPaths: [{path: /etc/shadow}]}
"""


@pytest.fixture
def reported(tmp_path: Path) -> list[str]:
    """Options of a node whose agent has seen ``WEB`` and ``NGINX``."""
    texts = [POLICY % ("all-web", "app: web"), POLICY % ("one-unit", "garrison/unit: nginx.service"), POLICY % ("nobody", "a: b")]
    documents = [document for text in texts for document in load_text(text)]
    rules = normalise([(document, Mode.ENFORCE) for document in documents], NodeFacts("edge-1")).rules
    write_report(tmp_path, WorkloadReport(workloads=(WEB, NGINX), scopes=scopes_of(rules)))
    return ["minion", "--runtime-dir", str(tmp_path), "workloads"]


def test_json_has_every_workload_with_the_policies_that_select_it(reported: list[str]) -> None:
    done = CliRunner().invoke(cli, [*reported, "--json"])

    found = json.loads(done.stdout)
    assert {each["name"]: each["policies"] for each in found["workloads"]} == {
        "web": ["all-web"],
        "nginx.service": ["all-web", "one-unit"],
    }
    assert found["workloads"][0]["labels"] == sorted(WEB.labels)
    assert found["policies_without"] == ["nobody"]


def test_people_see_what_runs_and_all_when_they_ask(reported: list[str]) -> None:
    shown, everything = (CliRunner().invoke(cli, [*reported, *more], env={"COLUMNS": "300"}) for more in ([], ["--all"]))

    assert ("web" in shown.stdout, "nginx.service" in shown.stdout) == (True, False)
    assert "nginx.service" in everything.stdout
    assert "policy nobody selects nothing here now" in shown.stderr


def test_report_is_roots_alone(tmp_path: Path, reported: list[str]) -> None:
    assert (tmp_path / "workloads.json").stat().st_mode & 0o777 == 0o600


def test_node_without_an_agent_says_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["minion", "--runtime-dir", str(tmp_path), "workloads"])

    assert "no minion has run" in str(done.exception)


# ---- events ----------------------------------------------------------------------------------------------------------
def containers(container_id: str) -> Workload | None:
    return WEB if container_id == BOX else None


def test_event_of_a_container_says_its_name_and_image() -> None:
    event = Event(lane=Lane.SHELL, kind=Kind.EXEC, actor=Actor(container=BOX), data={"x": 1})

    assert annotated(event, containers).data == {
        "x": 1, "container.name": "web", "container.namespace": "default", "container.image": "localhost/lab:1",
    }  # fmt: skip


def test_alert_of_a_container_says_its_labels_too() -> None:
    event = Event(lane=Lane.ALERT, kind=Kind.ALERT, actor=Actor(container=BOX))

    assert annotated(event, containers).data["container.labels"] == ["app=web"]


@pytest.mark.parametrize("actor", [None, Actor(), Actor(container="f" * 64)])
def test_other_events_stay_as_they_are(actor: Actor | None) -> None:
    event = Event(lane=Lane.ALERT, kind=Kind.ALERT, actor=actor)

    assert annotated(event, containers) is event


def test_what_an_events_maker_said_stands() -> None:
    event = Event(actor=Actor(container=BOX), data={"container.name": "seen"})

    assert annotated(event, containers).data["container.name"] == "seen"


def test_alert_with_the_longest_paths_and_labels_can_still_be_sent() -> None:
    many = frozenset(f"label-{n:03}={'é' * 300}" for n in range(limits.WORKLOAD_LABELS_MAX))
    heavy = Workload(kind=WorkloadKind.CONTAINER, name="n" * 255, labels=many, cgroup="/x", image="i" * 255)
    path = "/" + "p" * (limits.PATH_MAX_BYTES - 1)
    event = Event(
        lane=Lane.ALERT,
        object=path,
        actor=Actor(container=BOX, exe=path, args=("a" * 512,) * 4, cwd=path[:1024]),
        policy="p" * 253,
    )

    assert len(encode_event(annotated(event, lambda _: heavy))) <= limits.EVENT_MAX_BYTES
