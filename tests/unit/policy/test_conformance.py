"""Policies that others wrote load, and mean what their authors say: the behaviour cases of KubeArmor's own tests, by decide()."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from garrison.common.policy.expand import CONTAINERS
from garrison.common.policy.load import Foreign, check_text, load_text
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.protocols import socket_names
from garrison.common.policy.rules import Entity, Mode, Posture, Postures, RuleSet

DATA = Path(__file__).parents[2] / "data" / "conformance"
FILES = sorted(DATA.rglob("*.yaml"))
STRICT = Postures(file=Posture.BLOCK, network=Posture.BLOCK, capability=Posture.BLOCK)
NODE = NodeFacts("kubearmor-dev-next")


def rules_of(text: str) -> RuleSet:
    found = normalise(((document, Mode.ENFORCE) for document in load_text(text)), NODE, STRICT)
    assert not found.inert
    return found.rules


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_policies_of_others_load_without_an_error(file):
    documents, errors = check_text(file.read_text(), file.name)

    assert not errors
    assert documents


def test_documents_of_other_api_groups_are_foreign_and_nothing_else_is():
    foreign = {file.name for file in FILES for document in load_text(file.read_text()) if isinstance(document, Foreign)}

    assert foreign == {file.name for file in FILES if file.name.startswith(("kyverno-", "netpol-"))}
    assert foreign


# ---- host scenarios, as their runner plays them ------------------------------------------------------------------------
def scenarios():
    for command in sorted((DATA / "host-scenarios").glob("*/cmd*")):
        yield pytest.param(command, id=f"{command.parent.name}-{command.name}")


def operation_of(cmd: str, entity: str) -> Operation:
    words = cmd.split()
    if words[:2] == ["bash", "-c"]:
        return Operation(entity=Entity.PROCESS, path=f"/usr/bin/{words[2]}", source="/usr/bin/bash")
    if entity == "Process":
        return Operation(entity=Entity.PROCESS, path=f"/usr/bin/{words[0]}", source="/usr/bin/bash", args=tuple(words[1:]))
    return Operation(entity=Entity.FILE, path=words[-1], source=f"/usr/bin/{words[0]}")


@pytest.mark.parametrize("command", list(scenarios()))
def test_host_scenario_ends_as_its_file_says(command):
    text = command.read_text().replace("---\n", "")
    told = yaml.safe_load(text)
    (policy,) = command.parent.glob("*.yaml")

    decision = decide(rules_of(policy.read_text()), operation_of(told["cmd"], told["operation"]))

    if told["result"] == "default":
        assert decision.by_posture
    else:
        assert (decision.verdict == "block") == (told["result"] == "failed")
        assert not decision.by_posture


# ---- behaviour cases -------------------------------------------------------------------------------------------------
ONE = frozenset({"container=ubuntu-1", "group=group-1", CONTAINERS})
TWO = frozenset({"container=ubuntu-2", "group=group-2", CONTAINERS})
THREE = frozenset({"container=ubuntu-3", "group=group-2", CONTAINERS})
FOUR = frozenset({"container=ubuntu-4", "group=group-2", CONTAINERS})
SECRET1 = "/home/user1/secret_data1.txt"
INET, STREAM, DGRAM, RAW, ICMP = 2, 1, 2, 3, 1


def runs(path, who, **more):
    return Operation(entity=Entity.PROCESS, path=path, labels=who, namespace="multiubuntu", **{"source": "/bin/bash", **more})


def opens(path, who, **more):
    return Operation(entity=Entity.FILE, path=path, labels=who, namespace="multiubuntu", **{"source": "/bin/cat", **more})


def sends(type_, protocol, who, **more):
    names = socket_names(INET, type_, protocol)
    return Operation(entity=Entity.NETWORK, protocols=names, labels=who, namespace="multiubuntu", **more)


W = {"write": True}
OWNER = {"is_owner": True}
# policy, stimulus, verdict; "posture" for a refusal by the default posture, set to block here
BEHAVIOUR = [
    ("ksp-group-1-block-proc-path", runs("/bin/sleep", ONE), "block"),
    ("ksp-group-1-block-proc-path", runs("/bin/sleep", TWO), "allow"),
    ("ksp-group-1-block-proc-path", runs("/bin/sleep", None), "allow"),
    ("ksp-group-2-audit-proc-path", runs("/bin/sleep", TWO), "audit"),
    ("ksp-ubuntu-1-block-proc-dir-recursive", runs("/usr/bin/whoami", ONE), "block"),
    ("ksp-ubuntu-1-block-proc-dir-recursive", runs("/bin/ls", ONE), "allow"),
    ("ksp-ubuntu-3-allow-proc-dir", opens("/credentials/password", THREE), "allow"),
    ("ksp-ubuntu-3-allow-proc-dir", opens("/etc/hostname", THREE), "posture"),
    ("ksp-ubuntu-3-allow-proc-dir", runs("/sbin/route", THREE), "posture"),
    ("ksp-ubuntu-3-block-proc-path-owner", runs("/home/user1/hello", THREE), "block"),
    ("ksp-ubuntu-3-block-proc-path-owner", runs("/home/user1/hello", THREE, **OWNER), "allow"),
    ("ksp-ubuntu-1-block-proc-execname", runs("/usr/bin/apt", ONE), "block"),
    ("ksp-ubuntu-1-block-proc-execname", runs("/opt/copy/apt", ONE), "block"),
    ("ksp-ubuntu-1-block-proc-execname", runs("/usr/bin/apt-get", ONE), "allow"),
    ("ksp-match-expression-notin-block-process", runs("/usr/bin/apt", ONE), "allow"),
    ("ksp-match-expression-notin-block-process", runs("/usr/bin/apt", FOUR), "block"),
    ("ksp-ubuntu-1-allow-proc-args", runs("/usr/bin/python3.6", ONE, args=("-m", "random")), "allow"),
    ("ksp-ubuntu-1-allow-proc-args", runs("/usr/bin/python3.6", ONE, args=("-m", "pydoc")), "block"),
    ("ksp-ubuntu-1-allow-proc-args", runs("/usr/bin/python3.6", ONE, args=()), "block"),
    ("ksp-ubuntu-1-allow-proc-args", runs("/usr/bin/python3.6", ONE, args=None), "block"),
    ("ksp-group-1-block-file-pts", opens("/etc/hostname", ONE, tty=True), "block"),
    ("ksp-group-1-block-file-pts", opens("/etc/hostname", ONE), "allow"),
    ("ksp-group-2-allow-file-path-from-source-path", opens("/secret.txt", TWO), "allow"),
    ("ksp-group-2-allow-file-path-from-source-path", opens("/etc/hostname", TWO), "posture"),
    ("ksp-group-2-allow-file-path-from-source-path", opens("/secret.txt", TWO, source="/bin/head"), "posture"),
    ("ksp-group-2-audit-file-path-from-source-path", opens("/secret.txt", TWO), "audit"),
    ("ksp-group-2-audit-file-path-from-source-path", opens("/etc/hostname", TWO), "allow"),
    ("ksp-ubuntu-4-block-file-dir-recursive", opens("/credentials/password", FOUR), "block"),
    ("ksp-ubuntu-1-audit-file-dir", opens("/credentials/keys/priv.key", ONE), "audit"),
    ("ksp-group-2-block-file-path-owner-from-source-path", opens(SECRET1, TWO), "block"),
    ("ksp-group-2-block-file-path-owner-from-source-path", opens(SECRET1, TWO, **OWNER), "allow"),
    ("ksp-group-2-block-file-path-owner-from-source-path", opens("/etc/hostname", TWO, **OWNER), "allow"),
    ("ksp-ubuntu-1-block-file-pattern-owner-readonly", opens(SECRET1, ONE), "block"),
    ("ksp-ubuntu-1-block-file-pattern-owner-readonly", opens(SECRET1, ONE, **OWNER), "allow"),
    ("ksp-ubuntu-1-block-file-pattern-owner-readonly", opens(SECRET1, ONE, **OWNER, **W), "block"),
    ("ksp-ubuntu-1-block-file-pattern-owner-readonly", opens("/home/user1/otherfile.txt", ONE), "allow"),
    ("ksp-ubuntu-3-block-file-dir-owner-readonly", opens(SECRET1, THREE), "block"),
    ("ksp-ubuntu-3-block-file-dir-owner-readonly", opens(SECRET1, THREE, **OWNER), "allow"),
    ("ksp-ubuntu-3-block-file-dir-owner-readonly", opens(SECRET1, THREE, **OWNER, **W), "block"),
    ("ksp-ubuntu-3-block-file-dir-owner-readonly", opens("/home/user1/dir1/key1.txt", THREE), "allow"),
    ("ksp-ubuntu-4-allow-file-path-owner-readonly", opens(SECRET1, FOUR, **OWNER), "allow"),
    ("ksp-ubuntu-4-allow-file-path-owner-readonly", opens(SECRET1, FOUR), "posture"),
    ("ksp-ubuntu-4-allow-file-path-owner-readonly", opens(SECRET1, FOUR, **OWNER, **W), "posture"),
    ("ksp-ubuntu-4-allow-file-path-owner-readonly", opens("/home/user1/otherfile.txt", FOUR, **OWNER), "posture"),
    ("ksp-ubuntu-4-block-file-path-owner-readonly", opens(SECRET1, FOUR, **OWNER), "allow"),
    ("ksp-ubuntu-4-block-file-path-owner-readonly", opens(SECRET1, FOUR, **OWNER, **W), "block"),
    ("ksp-ubuntu-4-block-file-path-owner-readonly", opens(SECRET1, FOUR), "block"),
    ("ksp-ubuntu-4-block-file-path-owner-readonly", opens(SECRET1, FOUR, **W), "block"),
    ("ksp-ubuntu-4-block-file-path-readonly", opens("/credentials/password", FOUR), "allow"),
    ("ksp-ubuntu-4-block-file-path-readonly", opens("/credentials/password", FOUR, **W), "block"),
    ("ksp-ubuntu-4-allow-file-path-readonly", opens("/credentials/password", FOUR), "allow"),
    ("ksp-ubuntu-4-allow-file-path-readonly", opens("/credentials/password", FOUR, **W), "posture"),
    ("ksp-ubuntu-1-audit-net-raw", sends(RAW, ICMP, ONE), "audit"),
    ("ksp-ubuntu-1-audit-net-raw", sends(STREAM, 0, ONE), "allow"),
    ("ksp-ubuntu-1-block-net-all", sends(DGRAM, ICMP, ONE), "block"),
    ("ksp-ubuntu-1-block-net-all", sends(STREAM, 0, ONE), "block"),
]


@pytest.mark.parametrize(("policy", "stimulus", "expected"), BEHAVIOUR)
def test_published_policy_decides_as_its_authors_say(policy, stimulus, expected):
    rules = rules_of((DATA / "container-policies" / f"{policy}.yaml").read_text())

    decision = decide(rules, stimulus)

    assert ("posture" if decision.by_posture else decision.verdict) == expected
    if expected not in {"allow", "posture"}:
        assert decision.rule is not None
        assert decision.rule.policy == policy
    if decision.by_posture:
        assert decision.verdict == "block"


def test_raw_sockets_capability_is_refused_by_name():
    rules = rules_of((DATA / "container-policies" / "ksp-ubuntu-1-block-net-raw-cap.yaml").read_text())
    wanted = Operation(entity=Entity.CAPABILITY, name="net_raw", labels=ONE, namespace="multiubuntu")

    assert decide(rules, wanted).verdict == "block"


# Cases whose files are not at hand, written anew.
HOST = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: p}
spec:
  nodeSelector: {matchLabels: {kubearmor.io/hostname: "*"}}
  {%s}
"""


def on_host(entity: Entity, **more) -> Operation:
    return Operation(entity=entity, **{"source": "/usr/bin/bash", **more})


WRITTEN = [
    (
        "process: {matchPaths: [{path: /bin/ls, fromSource: [{path: /bin/dash}]}]}",
        [("/bin/ls", "/bin/dash", "block"), ("/bin/pwd", "/bin/dash", "allow"), ("/bin/ls", "/bin/bash", "allow")],
    ),
    (
        "process: {matchDirectories: [{dir: /sbin/}]}",
        [("/sbin/route", "/bin/bash", "block"), ("/sbin/deeper/route", "/bin/bash", "allow"), ("/sbin", "/bin/bash", "allow")],
    ),
    (
        "process: {matchPaths: [{path: /bin/sleep}], action: Audit}",
        [("/bin/sleep", "", "audit"), ("/bin/sleep2", "", "allow")],
    ),
]


@pytest.mark.parametrize(("section", "stimuli"), WRITTEN, ids=["from-source", "direct-children", "audit"])
def test_programs_are_decided_by_path_directory_and_caller(section, stimuli):
    rules = rules_of(HOST.replace("{%s}", section))

    for path, source, expected in stimuli:
        assert decide(rules, on_host(Entity.PROCESS, path=path, source=source)).verdict == expected, (path, source)


def test_allowed_tcp_of_one_program_leaves_its_udp_to_the_posture_and_others_alone():
    section = "network: {matchProtocols: [{protocol: tcp, fromSource: [{path: /usr/bin/curl}]}]}\n  action: Allow"
    rules = rules_of(HOST.replace("{%s}", section))
    tcp, udp = (socket_names(INET, kind, 0) for kind in (STREAM, DGRAM))

    assert decide(rules, on_host(Entity.NETWORK, protocols=tcp, source="/usr/bin/curl")).verdict == "allow"
    assert decide(rules, on_host(Entity.NETWORK, protocols=udp, source="/usr/bin/curl")).by_posture
    assert not decide(rules, on_host(Entity.NETWORK, protocols=udp, source="/usr/bin/dig")).by_posture


@pytest.mark.parametrize(
    ("domain", "name", "verdict"),
    [
        ("example.com", "example.com", "block"),
        ("example.com", "a.b.Example.com.", "block"),
        ("example.com", "notexample.com", "allow"),
        ("example.com", "example.com.evil.org", "allow"),
        ("'*.example.com'", "a.example.com", "block"),
        ("'*.example.com'", "example.com", "allow"),
    ],
)
def test_domain_covers_what_is_below_it(domain, name, verdict):
    rules = rules_of(HOST.replace("{%s}", f"network: {{matchDNSQueries: [{{domain: {domain}}}]}}"))

    assert decide(rules, on_host(Entity.DNS, name=name)).verdict == verdict


@pytest.mark.parametrize(
    ("path", "verdict"),
    [("/home/a", "audit"), ("/home/a/b", "audit"), ("/homework", "allow"), ("/etc/x", "allow"), ("", "audit")],
)
def test_system_call_rule_with_a_path_is_about_that_path(path, verdict):
    rules = rules_of((DATA / "host-policies" / "hsp-audit-syscall.yaml").read_text())

    assert decide(rules, on_host(Entity.SYSCALL, name="unlink", path=path)).verdict == verdict
    assert decide(rules, on_host(Entity.SYSCALL, name="rmdir", path="/home/a")).verdict == "allow"
