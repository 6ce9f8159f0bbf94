"""Lint tells what is dangerous or useless before anybody signs it."""

from __future__ import annotations

import pytest

from garrison.common.policy.lint import lint
from garrison.common.policy.load import load_text

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata:
  name: p
  annotations: {%s}
spec:
  nodeSelector: {matchLabels: {kubearmor.io/hostname: "*"}}
  %s
"""
SSHD = "[{path: /usr/sbin/sshd}, {path: /usr/lib/openssh/sshd-session}]"


def found(section: str, annotations: str = "") -> list[tuple[str, int, str]]:
    return [(f.level, f.line, f.text) for f in lint(load_text(POLICY % (annotations, section), "p.yaml"))]


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ("process: {matchPaths: [{path: /usr/sbin/sshd}]}", "sshd"),
        ("process: {matchPaths: [{path: /sbin/init}]}", "pid 1"),
        ("process: {matchPaths: [{path: /bin/bash}]}", "bash"),
        ("process: {matchPaths: [{execname: sh}]}", "/usr/bin/sh"),
        ("process: {matchPaths: [{path: /usr/bin/bash, pts: false}]}", "bash"),
        ("process: {matchDirectories: [{dir: /usr/bin/}]}", "/usr/bin/"),
        ("process: {matchDirectories: [{dir: /, recursive: true}]}", "pid 1"),
        ("process: {matchPatterns: [{pattern: '/usr/bin/python3*'}]}", "agent"),
        ("process: {matchDirectories: [{dir: /opt/, recursive: true}]}", "agent"),
        ("process: {matchPaths: [{path: /bin/dash, fromSource: [{path: /usr/sbin/sshd}]}]}", "sshd"),
        ("file: {matchPatterns: [{pattern: '/lib*/**'}]}", "loader"),
        ("file: {matchDirectories: [{dir: /var/lib/garrison/, recursive: true}]}", "agent"),
        ("file: {matchDirectories: [{dir: /run/, recursive: true, readOnly: true}]}", "agent"),
        ("network: {matchProtocols: [{protocol: all}]}", "tcp"),
        ("network: {matchProtocols: [{protocol: tcp, fromSource: [{dir: /usr/bin/}]}]}", "link"),
        ("capabilities: {matchCapabilities: [{capability: setuid}]}", "setuid"),
    ],
)
def test_block_of_what_a_node_needs_to_be_recovered_is_an_error(section, what):
    ((level, line, text),) = found(section)

    assert (level, line) == ("error", 8)
    assert "needs to be recovered" in text
    assert what in text


@pytest.mark.parametrize(
    "section",
    [
        "process: {matchPaths: [{path: /usr/bin/base64}]}",
        "process: {matchPaths: [{path: /bin/bash}], action: Audit}",
        "process: {matchPaths: [{path: /bin/bash, fromSource: [{path: /usr/sbin/nginx}]}]}",
        "process: {matchPaths: [{path: /usr/bin/bash, ownerOnly: true}]}",
        "file: {matchDirectories: [{dir: /usr/, recursive: true, readOnly: true}]}",
        "network: {matchProtocols: [{protocol: udp}]}",
        "network: {matchProtocols: [{protocol: tcp, fromSource: [{path: /usr/bin/perl}]}]}",
    ],
)
def test_block_that_leaves_the_way_back_open_is_no_finding(section):
    assert found(section) == []


def test_annotation_turns_the_refusal_into_a_warning():
    section = "process: {matchPaths: [{path: /usr/sbin/sshd}]}"

    assert [level for level, _, _ in found(section, 'garrison/i-mean-it: "true"')] == ["warning"]
    assert [level for level, _, _ in found(section, 'garrison/i-mean-it: "false"')] == ["error"]


def test_exemption_in_the_same_policy_opens_the_way_back():
    block = "file: {matchPaths: [{path: /etc/shadow}, {path: /etc/shadow, action: Allow, fromSource: %s}]}"

    assert [level for level, _, _ in found(block % "[{path: /usr/bin/cat}]")] == ["warning"]
    assert found(block % (SSHD[:-1] + ", {path: /usr/bin/login}]")) == []


def test_exemption_in_another_policy_opens_nothing():
    block = POLICY % ("", "process: {matchPaths: [{path: /usr/bin/login}]}")
    allow = POLICY % (
        "",
        "process: {matchPaths: [{path: /usr/bin/login, action: Allow, fromSource: [{path: /usr/sbin/agetty}]}]}",
    )

    apart = lint(load_text(block + "---\n" + allow.replace("name: p", "name: q")))
    together = lint(load_text(block + "---\n" + allow))

    assert [f.level for f in apart] == ["error"]
    assert [f.level for f in together] == ["warning"], "only that both have one name"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("process: {matchPaths: [{path: /usr/bin/a, action: Allow}]}", "allow-list of the whole node"),
        ("file: {matchPaths: [{path: '/etc/*.conf'}]}", "taken literally"),
        ("process: {matchPatterns: [{pattern: '/usr/bin/curl * http'}]}", "hold no arguments"),
        ("process: {matchPatterns: [{pattern: '*.sh'}]}", "matches no absolute path"),
        ("action: Block", "holds no rules"),
    ],
)
def test_policy_that_hardly_means_what_it_says_is_a_warning(section, says):
    ((level, _, text),) = found(section)

    assert level == "warning"
    assert says in text


def test_allow_list_that_grants_everything_or_names_its_programs_is_no_finding():
    assert found("file: {matchPaths: [{path: /a, action: Allow, fromSource: [{path: /usr/bin/a}]}]}") == []
    assert found("file: {matchDirectories: [{dir: /, recursive: true, action: Allow}]}") == []


def test_host_policy_without_a_selector_is_a_warning_at_its_place():
    text = (POLICY % ("", "file: {matchPaths: [{path: /etc/x}]}")).replace('{matchLabels: {kubearmor.io/hostname: "*"}}', "{}")

    (finding,) = lint(load_text(text, "p.yaml"))

    assert (finding.level, finding.line, finding.key) == ("warning", 7, "spec.nodeSelector")


def test_documents_of_other_languages_are_noted():
    (finding,) = lint(load_text("apiVersion: kyverno.io/v1\nkind: ClusterPolicy\nmetadata: {name: k}\n", "k.yaml"))

    assert (finding.level, finding.file, finding.line) == ("note", "k.yaml", 1)
