"""Rules for workloads that would lock a node out: of sshd's unit, the console's, root's login, and what surrounds the agent."""

from pathlib import Path

import pytest

from garrison.common.policy.lint import lint
from garrison.common.policy.load import load_text
from garrison.common.policy.match import Operation
from garrison.common.policy.never_deny import Need
from garrison.common.policy.normalise import NodeFacts
from garrison.common.policy.rules import Entity, Mode, Posture, Postures
from garrison.common.policy.seats import Seat
from garrison.minion.lockout import local_needs, local_seats, lockouts
from garrison.minion.workloads import describe
from garrison.minion.workloads.accounts import Account
from garrison.minion.workloads.places import Place
from garrison.minion.workloads.units import UnitFacts

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: p{annotations}}}
spec:
  selector: {selector}
  action: {action}
  {what}
"""
NO_SHELLS = "process: {matchPaths: [{path: /bin/bash}]}"
NO_TCP = "network: {matchProtocols: [{protocol: tcp}]}"
AGENT_CGROUP = "/system.slice/garrison-minion.service"


def unit(name: str, where: str = "system.slice", **labels: str):
    facts = UnitFacts(labels=tuple(labels.items()))
    return describe.unit(Place(slice=where, unit=name), facts, None, cgroup=f"/{where}/{name}", cgroup_id=1)[0]


def user(name: str, uid: int, *groups: str):
    account = Account(name=name, uid=uid, home="/", groups=groups, logs_in=True)
    return describe.user(uid, account, cgroup=f"/user.slice/user-{uid}.slice", cgroup_id=1)


NODE = (
    unit("ssh.service", app="remote"),
    unit("nginx.service", app="web"),
    unit("getty@tty1.service", "system-getty.slice"),
    user("root", 0, "root"),
    user("alice", 1000, "alice", "sudo"),
    user("bob", 1001, "bob", "sudo"),
    user("guest", 1002, "guest"),
)


def taken(
    selector: str,
    what: str,
    *,
    action: str = "Block",
    annotations: str = "",
    workloads=NODE,
    mode: Mode = Mode.ENFORCE,
    posture: Posture = Posture.AUDIT,
    own: str = AGENT_CGROUP,
    needs: tuple[Need, ...] = (),
) -> set[str]:
    """Where ``what`` would take something that the node needs."""
    text = POLICY.format(selector=selector, what=what, action=action, annotations=annotations)
    documents = [(document, mode) for document in load_text(text)]
    seats = local_seats(workloads, own)
    found = lockouts(documents, NodeFacts("edge-1"), Postures(file=posture, network=posture), needs, seats)
    return {hit.rpartition(", in ")[2] for hits in found.values() for hit in hits}


@pytest.mark.parametrize(
    ("selector", "what", "where"),
    [
        ("{matchLabels: {garrison/unit: ssh.service}}", NO_SHELLS, {"ssh.service"}),
        ("{matchLabels: {garrison/unit: ssh.service}}", NO_TCP, {"ssh.service"}),
        (
            "{matchLabels: {garrison/unit: ssh.service}}",
            "capabilities: {matchCapabilities: [{capability: setuid}]}",
            {"ssh.service"},
        ),
        ("{matchLabels: {garrison/unit: ssh.service}}", "file: {matchPaths: [{path: /usr/sbin/sshd}]}", {"ssh.service"}),
        ("{matchLabels: {app: remote}}", NO_SHELLS, {"ssh.service"}),
        ("{matchLabels: {garrison/unit: ssh.service}}", "process: {matchPaths: [{path: /usr/bin/base64}]}", set()),
        ("{matchLabels: {garrison/unit: ssh.service}}", "process: {matchPaths: [{path: /usr/sbin/agetty}]}", set()),
        ("{matchLabels: {garrison/unit: nginx.service}}", NO_SHELLS, set()),
        ("{matchLabels: {app: web}}", NO_TCP, set()),
        ("{}", NO_SHELLS, set()),
        ("{matchLabels: {garrison/kind: container}}", NO_SHELLS, set()),
        ("{matchLabels: {garrison/kind: unit}}", NO_SHELLS, {"ssh.service", "getty@tty1.service"}),
        (
            "{matchLabels: {garrison/template: getty@.service}}",
            "process: {matchPaths: [{path: /bin/login}]}",
            {"getty@tty1.service"},
        ),
        ("{matchLabels: {garrison/template: getty@.service}}", "process: {matchPaths: [{path: /usr/sbin/sshd}]}", set()),
        ("{matchLabels: {garrison/user: root}}", NO_SHELLS, {"the session of root"}),
        ("{matchLabels: {garrison/user: root}}", "process: {matchPaths: [{path: /usr/bin/systemctl}]}", {"the session of root"}),
        ("{matchLabels: {garrison/user: alice}}", NO_SHELLS, set()),
        ("{matchLabels: {garrison/user: guest}}", NO_SHELLS, set()),
        ("{matchLabels: {garrison/group: sudo}}", NO_SHELLS, {"the sessions of all who may become root"}),
        ("{matchLabels: {garrison/kind: user}}", NO_SHELLS, {"the session of root"}),
        ("{matchLabels: {garrison/unit: garrison-minion.service}}", NO_SHELLS, set()),
    ],
)
def test_block_in_a_workload_is_a_lockout_where_what_the_node_needs_runs_in_it(selector, what, where):
    found = taken(selector, what)
    assert found >= where
    assert bool(found) == bool(where)
    assert taken(selector, what, mode=Mode.AUDIT) == set()
    assert taken(selector, what, annotations=', annotations: {garrison/i-mean-it: "true"}') == set()


def test_block_that_lets_the_programs_through_that_the_node_needs_is_none():
    sources = "fromSource: [{path: /usr/sbin/nginx}]"

    assert taken("{matchLabels: {garrison/kind: unit}}", f"process: {{matchPaths: [{{path: /bin/bash, {sources}}}]}}") == set()


@pytest.mark.parametrize(
    ("selector", "where"),
    [
        ("{matchLabels: {garrison/unit: ssh.service}}", {"ssh.service"}),
        ("{matchLabels: {garrison/unit: nginx.service}}", set()),
        ("{matchLabels: {garrison/user: alice}}", set()),
    ],
)
def test_allow_list_of_a_workload_is_a_lockout_where_its_posture_blocks_what_runs_there(selector, where, tmp_path):
    # Of what is on this machine; no sshd need be.
    shell = next(Path(path).resolve() for path in ("/bin/sh", "/usr/bin/sh"))
    operation = Operation(entity=Entity.PROCESS, path=str(shell), source=str(shell), is_owner=True, tty=True)
    needs = (Need("a shell starts a shell", operation, (Seat.SSHD, Seat.LOGIN)),)
    only = "process: {matchPaths: [{path: /usr/bin/base64}]}"

    assert taken(selector, only, action="Allow", posture=Posture.BLOCK, needs=needs) >= where
    assert bool(taken(selector, only, action="Allow", posture=Posture.BLOCK, needs=needs)) == bool(where)
    assert taken(selector, only, action="Allow", needs=needs) == set()
    everything = "process: {matchDirectories: [{dir: /, recursive: true}]}"
    assert taken(selector, everything, action="Allow", posture=Posture.BLOCK, needs=needs) == set()


def test_agent_that_somebody_started_in_a_workload_is_seen_there():
    needs = local_needs(Path("/var/lib/garrison"), Path("/run/garrison"))
    guest = "{matchLabels: {garrison/user: guest}}"

    assert taken(guest, NO_TCP, needs=needs) == set()
    assert taken(guest, NO_TCP, needs=needs, own="/user.slice/user-1002.slice/session-1.scope") == {"guest"}


def test_node_that_knows_no_workloads_yet_and_lint_go_by_the_usual_names():
    for label in ("garrison/unit: sshd.service", "garrison/template: sshd@.service", "garrison/user: root"):
        selector = f"{{matchLabels: {{{label}}}}}"
        assert taken(selector, NO_SHELLS, workloads=()), label
        (error,) = lint(load_text(POLICY.format(selector=selector, what=NO_SHELLS, action="Block", annotations="")))
        assert (error.level, "recovered" in error.text) == ("error", True)
    bob = POLICY.format(selector="{matchLabels: {garrison/user: bob}}", what=NO_SHELLS, action="Block", annotations="")
    assert lint(load_text(bob)) == ()
