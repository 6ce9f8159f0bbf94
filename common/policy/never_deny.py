"""What a node needs to be recovered, and which block rules would take it away.

Rules of this file:
- The list is of operations, not of paths: "sshd runs a shell", "the agent writes its spool". A policy that blocks a path for
  everybody but lets these programs through is fine, and ``match.decide`` says so, the same as everywhere.
- Everything is judged as a node would hold it: each policy's rules by themselves, enforced, as root, with a terminal, and in the
  workloads that the programs run in (``seats``).
- Paths are compared as on a machine with merged /usr, however they are written, and globs as on one without, too.
- It is a net for mistakes, not a proof: a node may keep its programs elsewhere.
Owns: the list. Does not own: who may override it (``models.I_MEAN_IT``, read by ``lint``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from garrison.common.policy.firewall import Packet, decide_packet
from garrison.common.policy.flows import IP_PROTOCOLS, Direction
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.rules import Entity, HostScope, Other, PathKind, PathTarget, Rule, RuleSet, Source, Verdict
from garrison.common.policy.seats import USUAL, Seat, Seats, selected

__all__ = ["NEVER_DENY", "RISKY", "Need", "blocked_needs"]


class Need(msgspec.Struct, frozen=True):
    """What must go on, and what it is in words.

    Attributes:
        what: In words.
        operation: What a process does, or the packet that begins a flow.
        seats: In which workloads it may be done.
    """

    what: str
    operation: Operation | Packet
    seats: tuple[Seat, ...] = ()

    @property
    def entity(self) -> Entity:
        """What kind of rule could take it away."""
        return Entity.FIREWALL if isinstance(self.operation, Packet) else self.operation.entity


_PID1: Final = ("/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-executor")  # from systemd 254 on it starts services
_SSHD: Final = ("/usr/sbin/sshd", "/usr/lib/openssh/sshd-session")  # OpenSSH 9.8 split the session off
_SHELLS: Final = ("/usr/bin/bash", "/usr/bin/dash", "/usr/bin/sh")
_AGENT: Final = ("/usr/bin/python3.11", "/usr/bin/python3.12", "/usr/bin/python3.13")  # what the agent runs in, by distribution
_AGENT_FILES: Final = ("/opt/garrison/bin/garrison", "/opt/garrison/bin/python3")
_AGENT_DATA: Final = ("/var/lib/garrison/minion/bundles/x", "/var/lib/garrison/minion/spool/x", "/run/garrison/x")
_LOADERS: Final = (
    "/usr/lib64/ld-linux-x86-64.so.2",
    "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/aarch64-linux-gnu/libc.so.6",
    "/usr/lib64/libc.so.6",
)
_ACCOUNTS: Final = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/shadow", "/etc/ssh/sshd_config", "/etc/pam.d/sshd")
_SEATS: Final[Mapping[str, tuple[Seat, ...]]] = {
    **dict.fromkeys(_PID1, (Seat.SSHD, Seat.CONSOLE, Seat.AGENT)),
    **dict.fromkeys(_SSHD, (Seat.SSHD, Seat.LOGIN)),  # it goes into the session with whoever logs in
    "/usr/bin/login": (Seat.CONSOLE, Seat.LOGIN),
    **dict.fromkeys(_SHELLS, (Seat.LOGIN, Seat.SSHD, Seat.CONSOLE, Seat.AGENT)),
    **dict.fromkeys(_AGENT, (Seat.AGENT,)),
}
_SSH_PORT: Final = 22
_MASTER_PORT: Final = 4515
_TCP: Final = frozenset({"tcp", "stream", "all"})


def _execs() -> Iterator[Need]:
    chains = (
        (_PID1, ("/usr/lib/systemd/systemd", "/usr/sbin/init"), (), "pid 1 re-executes itself"),
        (_PID1, ("/usr/sbin/sshd",), (Seat.SSHD,), "systemd starts sshd"),
        (_PID1, ("/usr/sbin/agetty",), (Seat.CONSOLE,), "systemd starts the console"),
        (_PID1, (*_AGENT_FILES, *_AGENT), (Seat.AGENT,), "systemd starts the agent"),
        (_SSHD, (*_SSHD, *_SHELLS), (Seat.SSHD, Seat.LOGIN), "sshd starts sessions and shells"),
        (("/usr/sbin/agetty",), ("/usr/bin/login",), (Seat.CONSOLE,), "the console asks for a login"),
        (("/usr/bin/login",), _SHELLS, (Seat.CONSOLE, Seat.LOGIN), "login starts a shell"),
        (_AGENT, _SHELLS, (Seat.AGENT,), "the agent runs commands of the master"),
        (_SHELLS, ("/usr/bin/systemctl", *_AGENT_FILES), _SEATS[_SHELLS[0]], "a shell mends services"),
    )
    for sources, paths, seats, what in chains:
        for source, path in itertools.product(sources, paths):
            operation = Operation(entity=Entity.PROCESS, path=path, source=source, is_owner=True, tty=True)
            yield Need(f"{what}: {source} runs {path}", operation, seats)


def _opens() -> Iterator[Need]:
    programs = (*_PID1, *_SSHD, "/usr/bin/login", *_SHELLS, *_AGENT)
    for source, path in itertools.product(programs, _LOADERS):
        yield _open("the dynamic loader", source, path)
    started = (
        ((Seat.SSHD,), _SSHD),
        ((Seat.CONSOLE,), ("/usr/sbin/agetty",)),
        ((Seat.AGENT,), (*_AGENT_FILES, *_AGENT)),
        ((), ("/usr/lib/systemd/systemd",)),
    )
    for seats, paths in started:
        for path in paths:
            yield msgspec.structs.replace(_open("systemd starts it", _PID1[0], path), seats=seats)
    for source, path in itertools.product(_SSHD, _SHELLS):
        yield _open("sshd starts shells", source, path)
    for source in _AGENT:
        yield _open("the agent", source, "/etc/garrison/minion.toml")
        for path in _AGENT_DATA:
            yield _open("the agent", source, path, write=True)


def _open(what: str, source: str, path: str, *, write: bool = False) -> Need:
    operation = Operation(entity=Entity.FILE, path=path, source=source, write=write, is_owner=True, tty=True)
    return Need(f"{what}: {source} {'writes' if write else 'opens'} {path}", operation, _SEATS[source])


def _others() -> Iterator[Need]:
    for source in (*_SSHD, *_AGENT):
        operation = Operation(entity=Entity.NETWORK, protocols=_TCP, source=source, is_owner=True, tty=True)
        what = "the link to the master" if source in _AGENT else "remote login"
        yield Need(f"{what}: {source} uses tcp", operation, _SEATS[source])
    for sources, names in ((_SSHD, ("setuid", "setgid", "sys_chroot")), (_PID1, ("sys_admin", "kill")), (_AGENT, ("sys_admin",))):
        for source, name in itertools.product(sources, names):
            operation = Operation(entity=Entity.CAPABILITY, name=name, source=source, is_owner=True, tty=True)
            yield Need(f"{source} uses {name}", operation, () if source in _PID1 else _SEATS[source])


def _flows() -> Iterator[Need]:
    tcp = IP_PROTOCOLS["tcp"]
    yield Need("remote login: tcp/22 from anywhere", Packet(direction=Direction.INGRESS, protocol=tcp, port=_SSH_PORT))
    # By the port that masters listen on unless told otherwise; the node knows its own masters, and asks again.
    link = Packet(direction=Direction.EGRESS, protocol=tcp, port=_MASTER_PORT)
    yield Need(f"the link to the master: tcp/{_MASTER_PORT} to anywhere", link)


NEVER_DENY: Final = (*_execs(), *_opens(), *_others(), *_flows())
# Not what a node dies of at once, but logins may end: named, not refused.
RISKY: Final = tuple(_open("logins", source, path) for source, path in itertools.product((*_SSHD, "/usr/bin/login"), _ACCOUNTS))


def blocked_needs(rules: Iterable[Rule], needs: Sequence[Need], seats: Seats = USUAL) -> dict[str, list[str]]:
    """Return for each rule that would block a need, by id, what it would block.

    Args:
        rules: All rules of one policy, exemptions included, with mode ``enforce``.
        needs: ``NEVER_DENY`` or ``RISKY``.
        seats: The workloads that programs run in.
    """
    seen = {rule.id: _merged_usr(rule) for rule in rules}
    blocking = [rule for rule in seen.values() if rule.verdict is Verdict.BLOCK]
    if not blocking:
        return {}
    # Each block rule by itself, so that of several that hit every one is named; the allow rules are asked only when one does.
    allows = tuple(rule for rule in seen.values() if rule.verdict is Verdict.ALLOW)
    found: dict[str, list[str]] = {}
    for rule in blocking:
        places = None if isinstance(rule.scope, HostScope) else selected(rule.scope, seats)
        if places == {}:
            continue
        alone = _everywhere(rule)
        exempted = RuleSet(rules=(alone, *(_everywhere(a) for a in allows if a.entity is rule.entity and a.scope == rule.scope)))
        hits = (n for n in needs if n.entity is rule.entity and _blocks(RuleSet(rules=(alone,)), n.operation))
        if named := [text for need in hits if (text := _place(need, places)) and _blocks(exempted, need.operation)]:
            found[rule.id] = named
    return found


def _everywhere(rule: Rule) -> Rule:
    return rule if isinstance(rule.scope, HostScope) else msgspec.structs.replace(rule, scope=HostScope())


def _place(need: Need, places: Mapping[Seat, str] | None) -> str:
    """Return the need, with where it is done if only some places matter; empty when it is done in none of them."""
    if places is None:
        return need.what
    return next((f"{need.what}, in {places[seat]}" for seat in need.seats if seat in places), "")


def _blocks(rules: RuleSet, operation: Operation | Packet) -> bool:
    if isinstance(operation, Packet):
        return decide_packet(rules, operation).verdict is Verdict.BLOCK
    # A glob such as /lib*/** names the old places only; there are machines where they are the real ones.
    old_place = msgspec.structs.replace(operation, path=re.sub(r"^/usr/(?=s?bin/|lib)", "/", operation.path))
    return any(decide(rules, one).verdict is Verdict.BLOCK for one in (operation, old_place))


def _merged_usr(rule: Rule) -> Rule:
    target = rule.target
    if isinstance(target, PathTarget) and target.how is not PathKind.NAME:
        target = PathTarget(target.how, _usr(target.value), target.recursive)
    elif isinstance(target, Other) and rule.entity is not Entity.FIREWALL:
        target = Other(target.value)
    sources = tuple(Source(_usr(source.value), source.recursive) for source in rule.sources)
    return msgspec.structs.replace(rule, target=target, sources=sources)


def _usr(path: str) -> str:
    return re.sub(r"^/(s?bin|lib\w*)/", r"/usr/\1/", path)
