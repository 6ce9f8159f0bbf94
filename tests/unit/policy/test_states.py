"""The shipped policies are right, and mean what the demo and their comments say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from garrison.common.policy.lint import lint
from garrison.common.policy.load import load_files
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.protocols import socket_names
from garrison.common.policy.rules import Entity, Mode

STATES = Path(__file__).parents[3] / "states"
EDGE = NodeFacts("edge-1", {"group/edge": "true", "group/all": "true"})
TCP, RAW = socket_names(2, 1, 0), socket_names(2, 3, 0)


def held(*folders: str):
    documents = load_files([STATES / "policies" / folder for folder in folders])
    return normalise([(document, Mode.ENFORCE) for document in documents], EDGE)


def runs(path: str, source: str = "/usr/bin/bash") -> Operation:
    return Operation(entity=Entity.PROCESS, path=path, source=source, args=("x",))


def opens(path: str, source: str, *, write: bool = False) -> Operation:
    return Operation(entity=Entity.FILE, path=path, source=source, write=write)


def connects(source: str, names: frozenset[str] = TCP) -> Operation:
    return Operation(entity=Entity.NETWORK, protocols=names, source=source)


def test_every_shipped_policy_lints_clean():
    assert lint(load_files([STATES / "policies"])) == ()


def test_every_shipped_policy_has_message_severity_and_tags():
    for document in load_files([STATES / "policies"]):
        spec = document.model.spec
        assert spec.message, document.name
        assert spec.severity, document.name
        assert spec.tags, document.name


def test_policies_have_names_of_their_own():
    names = [document.name for document in load_files([STATES / "policies"])]

    assert len(names) == len(set(names))


def test_every_glob_of_top_names_policies():
    entries = yaml.safe_load((STATES / "top.yml").read_text())["policies"]

    assert {key for entry in entries for key in entry} <= {"files", "hosts", "mode"}
    assert all(list(STATES.glob(pattern)) for entry in entries for pattern in entry["files"])


@pytest.mark.parametrize(
    ("operation", "verdict", "policy"),
    [
        (runs("/usr/bin/base64"), "block", "demo-no-base64"),
        (runs("/usr/bin/md5sum"), "allow", ""),
        (opens("/etc/secret/api.key", "/usr/bin/cat"), "block", "demo-api-key"),
        (opens("/etc/secret/api.key", ""), "block", "demo-api-key"),
        (opens("/etc/secret/api.key", "/usr/bin/sha256sum"), "allow", "demo-api-key"),
        (opens("/etc/ld.so.cache", "/usr/bin/sha256sum"), "allow", ""),
        (opens("/etc/hostname", "/usr/bin/cat"), "allow", ""),
        (connects("/usr/bin/perl"), "block", "demo-scripts-offline"),
        (connects("/usr/bin/bash"), "allow", ""),
    ],
)
def test_demo_refuses_what_it_shows_and_nothing_beside_it(operation, verdict, policy):
    decision = decide(held("demo").rules, operation)

    assert decision.verdict == verdict
    assert (decision.rule.policy if decision.rule else "") == policy


def test_demo_shows_a_rule_for_kernel_modules_only_and_a_policy_of_another_group():
    found = held("demo")

    assert [rule.policy for rule in found.rules.rules if rule.entity is Entity.CAPABILITY] == ["demo-scripts-load-no-modules"]
    assert [line.rule for line in found.inert] == ["demo-warehouse-only/-"]


GCC = "/usr/lib/gcc/x86_64-linux-gnu/12/cc1"
LIBRARY = [
    ("shadow", opens("/etc/shadow", "/usr/bin/cat"), "block"),
    ("shadow", opens("/etc/gshadow-", "/usr/bin/python3.11"), "block"),
    ("shadow", opens("/etc/shadow", "/usr/sbin/unix_chkpwd"), "allow"),
    ("shadow", opens("/etc/shadow", "/usr/bin/passwd", write=True), "allow"),
    ("shadow", opens("/etc/shadow.txt", "/usr/bin/cat"), "allow"),
    ("ssh-host-keys", opens("/etc/ssh/ssh_host_ed25519_key", "/usr/bin/cat"), "block"),
    ("ssh-host-keys", opens("/etc/ssh/ssh_host_ed25519_key", "/usr/sbin/sshd"), "allow"),
    ("ssh-host-keys", opens("/etc/ssh/ssh_host_ed25519_key.pub", "/usr/bin/cat"), "allow"),
    ("ssh-user-keys", opens("/home/a/.ssh/id_ed25519", "/usr/bin/tar"), "block"),
    ("ssh-user-keys", opens("/root/.ssh/id_rsa", "/usr/bin/tar"), "block"),
    ("ssh-user-keys", opens("/root/.ssh/id_rsa", "/usr/bin/ssh"), "allow"),
    ("ssh-user-keys", opens("/home/a/.ssh/id_rsa.pub", "/usr/bin/tar"), "allow"),
    ("kernel-memory", opens("/dev/mem", "/usr/bin/dd"), "block"),
    ("kernel-memory", opens("/dev/null", "/usr/bin/dd"), "allow"),
    ("kernel-modules", runs("/usr/bin/kmod"), "audit"),
    ("kernel-modules", runs("/usr/bin/kmod", "/usr/bin/udevadm"), "allow"),
    ("compilers", runs("/usr/bin/x86_64-linux-gnu-gcc-12"), "block"),
    ("compilers", runs("/usr/bin/aarch64-linux-gnu-ld.bfd"), "block"),
    ("compilers", runs("/usr/lib/llvm-14/bin/clang"), "block"),
    ("compilers", runs(GCC), "block"),
    ("compilers", runs("/usr/bin/x86_64-linux-gnu-objdump"), "allow"),
    ("scratch-exec", runs("/dev/shm/a/b"), "block"),
    ("scratch-exec", runs("/tmp/installer"), "audit"),
    ("scratch-exec", runs("/usr/bin/ls"), "allow"),
    ("scratch-network", connects("/tmp/x/implant"), "block"),
    ("scratch-network", connects("/usr/bin/curl"), "allow"),
    ("raw-sockets", connects("/usr/local/bin/sniff", RAW), "block"),
    ("raw-sockets", connects("/usr/bin/ping", RAW), "allow"),
    ("raw-sockets", connects("/usr/local/bin/sniff"), "allow"),
    ("relay-tools", runs("/usr/bin/nc.openbsd"), "block"),
    ("relay-tools", runs("/opt/a/chisel"), "block"),
    ("services-no-shell", runs("/usr/bin/dash", "/usr/sbin/nginx"), "block"),
    ("services-no-shell", runs("/usr/bin/python3.11", "/usr/sbin/apache2"), "block"),
    ("services-no-shell", runs("/usr/bin/dash", "/usr/sbin/sshd"), "allow"),
    ("persistence", opens("/etc/cron.d/x", "/usr/bin/bash", write=True), "audit"),
    ("persistence", opens("/etc/systemd/system/multi-user.target.wants/x.service", "/usr/bin/bash", write=True), "audit"),
    ("persistence", opens("/etc/sudoers", "/usr/bin/sudo"), "allow"),
]


@pytest.mark.parametrize(("policy", "operation", "verdict"), LIBRARY)
def test_hardening_policy_decides_as_its_comment_says(policy, operation, verdict):
    assert decide(held(f"hardening/{policy}.yaml").rules, operation).verdict == verdict


def test_hardening_policies_together_say_the_same_as_each_alone():
    rules = held("hardening").rules

    for policy, operation, verdict in LIBRARY:
        assert decide(rules, operation).verdict == verdict, (policy, operation)


def test_every_hardening_policy_has_a_case_here():
    assert {policy for policy, _, _ in LIBRARY} == {path.stem for path in (STATES / "policies" / "hardening").iterdir()}
