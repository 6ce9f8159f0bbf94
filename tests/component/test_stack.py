"""The stack over the real fanotify backend: links, changes of links, and going back."""

from __future__ import annotations

import pytest

from component.fanotify_node import Node, directory, exact, wait_for
from garrison.common.errors import KernelError
from garrison.common.policy.normalise import Normalised
from garrison.common.policy.rules import Entity, Protocol, Rule, RuleSet, Verdict
from garrison.minion.config import MinionSettings
from garrison.minion.enforcers.stack import EnforcerStack, default_backends
from unit.enforcers.backends import ListBackend

pytestmark = pytest.mark.root


@pytest.fixture
def node():
    node = Node()
    yield node
    node.close()


@pytest.fixture
def network():
    return ListBackend("network", {Entity.NETWORK: "enforced"})


@pytest.fixture
def stack(node, network):
    stack = EnforcerStack([node.enforcer, network])
    yield stack
    stack.close()


def normalised(*rules: Rule) -> Normalised:
    return Normalised(rules=RuleSet(rules=tuple(sorted(rules, key=lambda r: r.id))))


TCP = Rule(id="test/tcp", policy="test", entity=Entity.NETWORK, verdict=Verdict.BLOCK, target=Protocol("tcp"))


def test_rule_on_a_link_holds_for_what_it_leads_to(node, stack):
    file = node.write("real/secret")
    (node.root / "link").symlink_to("real")

    stack.apply(normalised(node.file_rule(exact(node.root / "link/secret"))))

    assert not node.reads(file)
    assert node.reads(node.write("real/public"))


def test_rule_follows_its_link_when_that_leads_elsewhere(node, stack, monkeypatch):
    first, second = node.write("one/secret"), node.write("two/secret")
    link = node.root / "current"
    link.symlink_to("one")
    stack._reresolver._every_s = 0.05
    stack.apply(normalised(node.file_rule(directory(link))))
    assert not node.reads(first)
    assert node.reads(second)

    (node.root / "next").symlink_to("two")
    (node.root / "next").rename(link)

    wait_for(lambda: not node.reads(second), "the rule follows")
    assert node.reads(first)
    assert all(s.healthy for s in stack.status())


def test_failure_of_another_backend_leaves_the_previous_rules_in_the_kernel(node, stack, network):
    secret, other = node.write("data/secret"), node.write("data/other")
    stack.apply(normalised(node.file_rule(exact(secret)), TCP))
    network.fails = 1

    with pytest.raises(KernelError, match="apply by network"):
        stack.apply(normalised(node.file_rule(exact(other)), TCP))

    assert not node.reads(secret)
    assert node.reads(other)


def test_change_that_cannot_be_applied_again_keeps_the_rules_and_is_seen_in_the_status(node, stack, network):
    secret = node.write("data/secret")
    stack._reresolver._every_s = 0.05
    stack.apply(normalised(node.file_rule(exact(secret)), TCP))
    network.fails = 1_000_000

    secret.rename(node.root / "data/moved")
    node.write("data/secret")

    wait_for(lambda: not any(s.healthy for s in stack.status()), "it is told")
    assert not node.reads(secret)
    network.fails = 0
    wait_for(lambda: all(s.healthy for s in stack.status()), "it is tried again")


def test_default_backends_are_built_by_name_in_order(node):
    built = default_backends(node.events.append, runtime_dir=node.root / "run", cgroup=None, names=("fanotify",))

    assert [backend.name for backend in built] == ["fanotify"]
    every = MinionSettings().backends
    assert len(default_backends(node.events.append, runtime_dir=node.root / "run", cgroup=None, names=every)) == len(every)
