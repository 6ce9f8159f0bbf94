"""Rules on domains in the kernel: real queries by real programs, over UDP and TCP, IPv4 and IPv6, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Entity, Mode, Other, Posture, Rule, Source, Verdict
from vm.dns_acts import QUERIES, SERVER
from vm.guard import ALLOWED, DENIED, Guard
from vm.lab import K61, K612, Background, Lab

ACTS = "/run/dns/acts.py"
_numbers = iter(range(10**6))
UDP = ("udp", "connected", "udp6", "mapped", "extended", "corked", "spliced", "raw", "noedns", "second", "response")
TCP = ("tcp", "tcp6", "fastopen", "mptcp", "pipelined")
PIECES = ("segmented", "fragment", "split length", "split name")
_CLOSING = {"04", "09", "0B"}  # FIN_WAIT1, LAST_ACK, CLOSING of include/net/tcp_states.h
UNREADABLE = ("empty", "garbage", "none", "many", "pointer", "cut", "promised", "long")


class Dns:
    """The enforcer, a server on port 53, and programs that ask it."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        vm = guard.vm
        vm.put(ACTS, QUERIES)
        vm.put("/run/dns/server.py", SERVER)
        vm.check("sysctl", "-qw", "net.ipv4.tcp_fastopen=3", "net.ipv4.tcp_orphan_retries=1")
        vm.put("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self.server = vm.start(ALLOWED, "-S", "/run/dns/server.py", log="/run/dns/server.log")
        vm.until(lambda: "ready" in self.server.output(), "the server")

    def asks(self, name: str, *acts: str, by: str = DENIED) -> dict[str, str]:
        """Ask for a name in several ways; returns ``ok`` or the error's name for each."""
        done = self.guard.vm.run(by, "-S", ACTS, ",".join(acts), name, env={"PYTHONHOME": "/usr"}, timeout_s=120)
        assert done.returncode == 0, done.stderr
        said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        return {act: said[act.replace(" ", "-")] for act in acts}

    def ask(self, name: str, by: str = DENIED) -> str:
        """Ask for a name over UDP."""
        return self.asks(name, "udp", by=by)["udp"]

    def begin(self, act: str, name: str) -> Background:
        """Start to ask."""
        self.guard.vm.run("rm", "-f", "/run/dns/go")
        log = f"/run/dns/begun-{next(_numbers)}.log"
        return self.guard.vm.start(DENIED, "-S", ACTS, act, name, log=log, env={"PYTHONHOME": "/usr"})

    def quiet(self) -> bool:
        """Tell whether no closed connection to the server has anything left to send: the kernel sends what was refused again."""
        lines = self.guard.vm.check("cat", "/proc/net/tcp", "/proc/net/tcp6").splitlines()
        return not any(line.split()[2].endswith(":0035") and line.split()[3] in _CLOSING for line in lines)

    def received(self, name: str) -> int:
        """Return how often a name has reached the server."""
        return [line.partition(" ")[2] for line in self.server.output().splitlines()].count(name)


@pytest.fixture(scope="module", params=[pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")])
def dns(request: pytest.FixtureRequest) -> Iterator[Dns]:
    with Lab() as lab:
        yield Dns(Guard(lab.boot("dns", request.param)))


@pytest.fixture(autouse=True)
def _quiet(dns: Dns) -> Iterator[None]:
    """Have nothing of one test sent under the rules of the next."""
    yield
    dns.guard.vm.until(dns.quiet, "the end of what was refused")


def domain(name: str, verdict: Verdict = Verdict.BLOCK, *, by: str = DENIED, **more: object) -> Rule:
    """Return a rule on a domain, for one program unless ``by`` is empty."""
    said: dict[str, object] = {"sources": (Source(by),) if by else (), "severity": 7, "policy": "test"} | more
    return Rule(id=f"{said['policy']}/{next(_numbers)}", entity=Entity.DNS, verdict=verdict, target=Other(name), **said)  # type: ignore[arg-type]


def all_of(said: dict[str, str], *answers: str) -> bool:
    assert {act: answer for act, answer in said.items() if answer not in answers} == {}
    return True


def test_without_rules_every_query_goes_out(dns: Dns) -> None:
    dns.guard.apply()

    assert all_of(dns.asks("www.evil.test", *UDP, *TCP, *PIECES, *UNREADABLE[1:]), "ok")


def test_query_is_refused_on_every_way_and_nothing_of_it_arrives(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test"))
    before = dns.received("www.evil.test")

    assert all_of(dns.asks("www.evil.test", *UDP), "EPERM")
    assert all_of(dns.asks("www.evil.test", *TCP), "ETIMEDOUT")
    assert dns.received("www.evil.test") == before

    events = dns.guard.told(2)
    assert [e.data["server"] for e in events] == ["udp://127.0.0.1:53", "tcp://127.0.0.1:53"], "one name, twice one protocol"
    first = events[0]
    assert first.actor is not None
    assert (first.operation, first.object, first.verdict, first.result, first.severity, first.actor.exe) == (
        "query",
        "www.evil.test",
        "block",
        "EPERM",
        7,
        DENIED,
    )


def test_other_programs_and_other_names_go_out_and_nothing_is_told(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test"))

    assert all_of(dns.asks("www.evil.test", *UDP, *TCP, *PIECES, by=ALLOWED), "ok")
    assert all_of(dns.asks("www.good.test", *UDP, *TCP), "ok")
    assert dns.asks("www.evil.test", "other port", "at the end") == {"other port": "ok", "at the end": "ok"}

    assert dns.ask("www.evil.test") == "EPERM"
    assert [e.object for e in dns.guard.told(1)] == ["www.evil.test"]


@pytest.mark.parametrize(
    ("rule", "name", "answer"),
    [
        ("evil.test", "evil.test", "EPERM"),
        ("evil.test", "EviL.tESt", "EPERM"),
        ("evil.test", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.evil.test", "EPERM"),
        ("evil.test", f"{'.'.join(['a'] * 110)}.evil.test", "EPERM"),
        ("evil.test", f"{'x' * 63}.{'Y' * 63}.evil.test", "EPERM"),
        ("evil.test", "notevil.test", "ok"),
        ("evil.test", "evil.test.org", "ok"),
        ("evil.test", "test", "ok"),
        ("evil.test", ".", "ok"),
        ("test", "evil.test", "EPERM"),
        ("*.evil.test", "evil.test", "ok"),
        ("*.evil.test", "www.evil.test", "EPERM"),
        (f"{'x' * 63}.test", f"{'X' * 63}.test", "EPERM"),
        (f"{'x' * 33}.test", f"{'x' * 32}.test", "ok"),
        ("_dmarc.evil.test", "_DMARC.evil.test", "EPERM"),
    ],
)
def test_domain_covers_itself_and_what_is_below_and_a_star_only_what_is_below(
    dns: Dns, rule: str, name: str, answer: str
) -> None:
    dns.guard.apply(domain(rule))

    assert dns.ask(name) == answer


def test_longest_domain_does_not_hide_the_rules_above_it(dns: Dns) -> None:
    dns.guard.apply(
        domain("evil.test"),
        domain("www.evil.test", Verdict.AUDIT),
        domain("*.lists.test"),
        domain("free.lists.test", Verdict.AUDIT, by=""),
    )

    assert [dns.ask(name) for name in ("www.evil.test", "a.www.evil.test", "evil.test", "lists.test", "a.lists.test")] == [
        "EPERM",
        "EPERM",
        "EPERM",
        "ok",
        "EPERM",
    ]
    assert (dns.ask("free.lists.test"), dns.ask("free.lists.test", by=ALLOWED)) == ("EPERM", "ok")


def test_query_in_pieces_is_refused_where_a_block_rule_speaks(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test"))
    before = dns.received("www.good.test"), dns.received("www.evil.test")

    assert dns.asks("www.good.test", "segmented", "fragment") == {"segmented": "EPERM", "fragment": "EPERM"}
    assert dns.received("www.good.test") == before[0]
    assert {e.object for e in dns.guard.told(1)} == {"[...]"}

    # The kernel keeps what TCP may not send, and sends it with what follows: whole.
    assert all_of(dns.asks("www.good.test", "split length", "split name"), "ok")
    assert all_of(dns.asks("www.evil.test", "split length", "split name"), "ETIMEDOUT")
    assert (dns.received("www.good.test"), dns.received("www.evil.test")) == (before[0] + 2, before[1])


def test_query_that_cannot_be_read_is_refused_where_a_block_rule_speaks(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test"))
    assert all_of(dns.asks("www.good.test", *UNREADABLE), "EPERM")
    assert all_of(dns.asks("www.good.test", *UNREADABLE[1:], by=ALLOWED), "ok")
    assert [e.object for e in dns.guard.told(1)] == ["[...]"], "one process, one rule, one event"

    dns.guard.apply(domain("evil.test", Verdict.AUDIT))
    assert all_of(dns.asks("www.good.test", *UNREADABLE[1:]), "ok")


def test_connection_that_was_open_before_the_rules_asks_no_more(dns: Dns) -> None:
    for rules, answer in ((), "ok"), ((domain("evil.test"),), "ETIMEDOUT"):
        dns.guard.apply()
        begun = dns.begin("old", "www.good.test")
        dns.guard.vm.until(lambda begun=begun: "connected" in begun.output(), "the connection")
        dns.guard.apply(*rules)

        dns.guard.vm.put("/run/dns/go", "")

        assert begun.wait() == 0
        assert begun.output().split() == ["connected", "old", answer]


def test_name_that_changes_while_it_is_sent_does_not_get_out(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test"))
    evil, good = "www.evil.test", f"{'x' * 9}.org"
    before = dns.received(evil), dns.received(good)

    assert dns.asks(evil, "race") == {"race": "ok"}

    dns.guard.vm.until(lambda: dns.received(good) > before[1], "harmless queries")
    assert dns.received(evil) == before[0]


def test_socket_that_another_program_made_does_not_help(dns: Dns) -> None:
    hand_over = (
        "import os, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 53));"
        "s.send(b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4free\\0\\0\\1\\0\\1'); os.set_inheritable(s.fileno(), True);"
        f"os.environ['HANDED'] = str(s.fileno()); os.execv('{DENIED}', ['python3', '-S', '{ACTS}', 'handed', 'www.evil.test'])"
    )
    said = []
    for rules in ((), (domain("evil.test"),)):
        dns.guard.apply(*rules)
        said.append(dns.guard.vm.run(ALLOWED, "-S", "-c", hand_over, env={"PYTHONHOME": "/usr"}).stdout.strip())

    assert said == ["handed ok", "handed EPERM"]


def test_allow_list_refuses_the_rest_by_posture_to_that_program(dns: Dns) -> None:
    dns.guard.apply(domain("good.test", Verdict.ALLOW), network=Posture.BLOCK)

    assert all_of(dns.asks("www.good.test", *UDP[:-2], "tcp", "mptcp"), "ok")
    assert (dns.ask("evil.test"), dns.ask("test"), dns.ask(".")) == ("EPERM",) * 3
    assert all_of(dns.asks("www.good.test", *UNREADABLE, "segmented"), "EPERM")
    assert dns.ask("evil.test", by=ALLOWED) == "ok"
    assert all_of(dns.guard.acts(DENIED, "tcp4", "udp4"), "ok"), "names are listed, not sockets"

    assert {(e.object, e.data.get("by_posture")) for e in dns.guard.events()} == {
        ("evil.test", True),
        ("test", True),
        (".", True),
        ("free.test", True),
        ("[...]", True),
    }


def test_allow_list_with_audit_posture_tells_and_lets_pass(dns: Dns) -> None:
    dns.guard.apply(domain("good.test", Verdict.ALLOW), network=Posture.AUDIT)

    assert (dns.ask("good.test"), dns.ask("evil.test")) == ("ok", "ok")

    assert [(e.object, e.verdict, e.result) for e in dns.guard.told(1)] == [("evil.test", "audit", "passed")]


def test_audit_and_block_in_audit_mode_tell_once_and_let_pass(dns: Dns) -> None:
    dns.guard.apply(domain("a.test", Verdict.AUDIT), domain("b.test", mode=Mode.AUDIT))

    assert (dns.ask("www.a.test"), dns.ask("b.test"), dns.ask("c.test")) == ("ok",) * 3

    assert [(e.object, e.verdict) for e in dns.guard.told(2)] == [("www.a.test", "audit"), ("b.test", "audit")]


def test_queries_in_a_loop_are_refused_each_time_and_told_once(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test"))
    before, arrived = dns.guard.counters(), dns.received("www.evil.test")

    assert dns.asks("www.evil.test", "flood") == {"flood": "ok"}

    dns.guard.told(1)
    after = dns.guard.counters()
    assert after["blocks"] - before["blocks"] == 500
    assert after["repeats"] - before["repeats"] == 499
    assert dns.received("www.evil.test") == arrived


def test_resolver_of_the_c_library_is_refused_by_name(dns: Dns) -> None:
    getent = dns.guard.vm.check("readlink", "-f", "/usr/bin/getent").strip()
    dns.guard.apply(domain("evil.test", by=getent))
    before = dns.received("www.evil.test")

    dns.guard.vm.run("getent", "hosts", "www.evil.test")

    assert dns.received("www.evil.test") == before
    assert {e.object for e in dns.guard.told(1)} == {"www.evil.test"}
    dns.guard.vm.run("getent", "hosts", "www.good.test")
    assert dns.received("www.good.test")


def test_rule_without_a_source_holds_for_everybody_but_the_agent(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test", by=""))

    assert (dns.ask("evil.test"), dns.ask("evil.test", by=ALLOWED)) == ("EPERM", "EPERM")
    assert dns.guard.ask("query", b"www.evil.test") == "ok", "the agent must find its master"


def test_rules_hold_without_an_agent_and_are_taken_over_by_the_next(dns: Dns) -> None:
    dns.guard.apply(domain("evil.test"))

    dns.guard.close()
    assert (dns.ask("evil.test"), dns.ask("good.test"), dns.ask("evil.test", by=ALLOWED)) == ("EPERM", "ok", "ok")

    dns.guard.restart()
    dns.guard.apply(domain("good.test"))
    assert (dns.ask("evil.test"), dns.ask("good.test")) == ("ok", "EPERM")
    assert dns.guard.ask("release") == "released"
    dns.guard.vm.until(lambda: dns.ask("good.test") == "ok", "the kernel to let go")
