"""Network rules in the kernel: what is refused, what is not, and what is told, for real sockets of every kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Mode, Posture, Verdict
from garrison.minion.enforcers.bpf_lsm.report import BACKEND
from vm.guard import ALLOWED, DENIED, LINKER, Guard, network
from vm.lab import K61, K612, Lab

TCP = ("tcp4", "tcp6", "mapped", "mptcp", "fastopen", "fastopen6")
UDP = ("udp4", "udp6", "udpmapped", "udpconnect", "udplite")
RAW = ("raw", "raw6", "rawip")
PACKET = ("packet", "packetdgram")
LOCAL = ("unix", "netlink", "pair")
OTHERS = ("alg", "vsock", "sctp", "sctpseq")
EVERYTHING = (*TCP, "bind", "listen", "unbound", *UDP, "bindudp", *RAW, "icmp", *PACKET, *OTHERS)


@pytest.fixture(scope="module", params=[pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    with Lab() as lab:
        guard = Guard(lab.boot("net", request.param))
        guard.vm.check("sysctl", "-qw", "net.ipv4.ping_group_range=0 0")
        yield guard


def all_of(said: dict[str, str], answer: str) -> bool:
    assert said == dict.fromkeys(said, answer)
    return True


def test_without_rules_every_action_works(guard: Guard) -> None:
    guard.apply()

    assert all_of(guard.acts(DENIED, *EVERYTHING, *LOCAL), "ok")


@pytest.mark.bypass(18, "refuses Fast Open, MPTCP and IPv4 in IPv6")
def test_tcp_is_refused_on_every_way_and_to_that_program_only(guard: Guard) -> None:
    guard.apply(network("tcp", by=DENIED))
    before = guard.received().count("tcp fast")

    assert all_of(guard.acts(DENIED, *TCP, "bind", "listen", "unbound"), "EPERM")
    assert all_of(guard.acts(DENIED, *UDP, "bindudp", "raw", "packet", "sctp", *LOCAL), "ok")
    assert guard.received().count("tcp fast") == before, "nothing of a refused Fast Open may arrive"
    assert all_of(guard.acts(ALLOWED, *TCP, "bind", "listen", "unbound"), "ok")

    events = guard.told(9)
    assert [(e.operation, e.object) for e in events] == [
        ("connect", "tcp://127.0.0.1:7000"),
        ("connect", "tcp://[::1]:7000"),
        ("connect", "tcp://127.0.0.1:7000"),
        ("connect", "mptcp://127.0.0.1:7000"),
        ("sendmsg", "tcp://127.0.0.1:7000"),
        ("sendmsg", "tcp://[::1]:7000"),
        ("bind", "tcp://127.0.0.1:0"),
        ("bind", "tcp://127.0.0.1:0"),
        ("listen", "tcp://0.0.0.0:0"),
    ]
    first = events[0]
    assert first.actor is not None
    assert (first.actor.exe, first.verdict, first.result, first.severity, first.backend) == (
        DENIED,
        "block",
        "EPERM",
        7,
        BACKEND,
    )


@pytest.mark.bypass(18, "refuses UDP with and without connect")
def test_udp_is_refused_with_and_without_connect_and_nothing_arrives(guard: Guard) -> None:
    guard.apply(network("udp", by=DENIED))
    before = guard.received().count("udp ")

    assert all_of(guard.acts(DENIED, *UDP, "bindudp"), "EPERM")
    assert guard.received().count("udp ") == before
    assert all_of(guard.acts(DENIED, "tcp4", "icmp", "disconnect"), "ok")
    assert all_of(guard.acts(ALLOWED, *UDP, "bindudp"), "ok")

    assert {(e.operation, e.object) for e in guard.told(6)} == {
        ("sendmsg", "udp://127.0.0.1:7000"),
        ("sendmsg", "udp://[::1]:7000"),
        ("connect", "udp://127.0.0.1:7000"),
        ("connect", "udplite://127.0.0.1:7000"),
        ("bind", "udp://127.0.0.1:0"),
    }


@pytest.mark.bypass(18, "refuses raw and packet sockets")
def test_raw_names_packet_sockets_too_and_packet_does_not_name_raw_ones(guard: Guard) -> None:
    guard.apply(network("raw", by=DENIED))
    assert all_of(guard.acts(DENIED, *RAW, *PACKET), "EPERM")
    assert all_of(guard.acts(DENIED, "icmp", "tcp4", "udp4", *LOCAL), "ok")
    assert all_of(guard.acts(ALLOWED, *RAW, *PACKET), "ok")
    assert [e.object for e in guard.told(5)] == ["raw://icmp", "raw://icmpv6", "raw://255", "packet://raw", "packet://dgram"]

    guard.apply(network("packet", by=DENIED))
    assert all_of(guard.acts(DENIED, *PACKET), "EPERM")
    assert all_of(guard.acts(DENIED, *RAW), "ok")


def test_ping_is_refused_by_icmp_and_passes_without(guard: Guard) -> None:
    ping = guard.vm.check("readlink", "-f", "/bin/ping").strip()
    guard.apply(network("icmp", by=ping))

    assert guard.vm.run("ping", "-4", "-c1", "-W5", "127.0.0.1").returncode == 2
    assert guard.vm.run("ping", "-6", "-c1", "-W20", "::1").returncode == 0
    assert guard.acts(ALLOWED, "icmp", "raw") == {"icmp": "ok", "raw": "ok"}

    guard.apply(network("icmpv6", by=ping))
    assert guard.vm.run("ping", "-4", "-c1", "-W20", "127.0.0.1").returncode == 0
    assert guard.vm.run("ping", "-6", "-c1", "-W5", "::1").returncode == 2


def test_perl_is_refused_tcp_while_the_rule_is_there(guard: Guard) -> None:
    perl = guard.vm.check("readlink", "-f", "/usr/bin/perl").strip()
    script = (
        "use Socket; socket(S, PF_INET, SOCK_STREAM, 0) or die;"
        "exit(connect(S, sockaddr_in(7000, inet_aton('127.0.0.1'))) ? 0 : $! + 0)"
    )
    guard.apply(network("tcp", by=perl))

    assert guard.vm.run("perl", "-e", script).returncode == 1

    guard.apply()
    assert guard.vm.run("perl", "-e", script).returncode == 0


@pytest.mark.bypass(18, "refuses vsock and every other family but local ones: limit, abstract Unix sockets are none of a rule")
@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("all", EVERYTHING),
        ("stream", (*TCP, "unbound", "vsock", "sctp")),
        ("dgram", (*UDP, "icmp", "packetdgram")),
        ("seqpacket", ("alg", "sctpseq")),
        ("sctp", ("sctp", "sctpseq")),
    ],
)
def test_name_covers_its_sockets_of_all_families_and_no_local_ones(guard: Guard, name: str, refused: tuple[str, ...]) -> None:
    guard.apply(network(name, by=DENIED))

    assert all_of(guard.acts(DENIED, *refused), "EPERM")
    assert all_of(guard.acts(DENIED, *LOCAL), "ok")


def test_rule_without_a_source_holds_for_everybody_but_the_agent(guard: Guard) -> None:
    guard.apply(network("tcp"))

    assert (guard.act(DENIED, "tcp4"), guard.act(ALLOWED, "tcp4")) == ("EPERM", "EPERM")
    assert guard.ask("own").split()[0] == "ok", "the agent must reach its master"


def test_allow_list_refuses_the_rest_by_posture_to_that_program(guard: Guard) -> None:
    guard.apply(network("udp", Verdict.ALLOW, by=DENIED), network=Posture.BLOCK)

    assert all_of(guard.acts(DENIED, *UDP, *LOCAL), "ok")
    assert all_of(guard.acts(DENIED, "tcp4", "raw", "packet", "vsock"), "EPERM")
    assert all_of(guard.acts(ALLOWED, "tcp4", "raw", "packet", "vsock"), "ok")

    assert [(e.object, e.data.get("by_posture")) for e in guard.told(4)] == [
        ("tcp://127.0.0.1:7000", True),
        ("raw://icmp", True),
        ("packet://raw", True),
        ("vsock://stream", True),
    ]


def test_allow_list_with_audit_posture_tells_and_lets_pass(guard: Guard) -> None:
    guard.apply(network("udp", Verdict.ALLOW, by=DENIED), network=Posture.AUDIT)

    assert all_of(guard.acts(DENIED, "udp4", "tcp4", "raw"), "ok")

    assert [(e.verdict, e.result, e.object) for e in guard.told(2)] == [
        ("audit", "passed", "tcp://127.0.0.1:7000"),
        ("audit", "passed", "raw://icmp"),
    ]


def test_audit_and_block_in_audit_mode_tell_once_and_let_pass(guard: Guard) -> None:
    guard.apply(network("tcp", Verdict.AUDIT, by=DENIED), network("raw", by=DENIED, mode=Mode.AUDIT))

    assert all_of(guard.acts(DENIED, "tcp4", "listen", "packet"), "ok")

    assert [(e.verdict, e.operation, e.object) for e in guard.told(3)] == [
        ("audit", "connect", "tcp://127.0.0.1:7000"),
        ("audit", "bind", "tcp://127.0.0.1:0"),
        ("audit", "socket", "packet://raw"),
    ]


def test_datagrams_in_a_loop_are_refused_each_time_or_passed_and_told_once(guard: Guard) -> None:
    guard.apply(network("udp", Verdict.AUDIT, by=DENIED))
    before = guard.counters()

    assert guard.act(DENIED, "udpflood") == "ok"

    guard.told(1)
    after = guard.counters()
    assert after["audits"] - before["audits"] == 2000
    assert after["repeats"] - before["repeats"] == 1999
    assert after["lost"] == before["lost"]


def test_running_server_accepts_no_more_once_the_rule_is_there(guard: Guard) -> None:
    for rules, answer in ((), "EAGAIN"), ((network("tcp", by=DENIED),), "EPERM"):
        guard.apply()
        guard.vm.run("rm", "-f", "/run/guard/go", "/run/serve.log")
        running = guard.vm.start(
            DENIED, "-S", "/run/guard/acts.py", "serve", log="/run/serve.log", env={"PYTHONHOME": "/usr"}
        )  # fmt: skip
        guard.vm.until(lambda running=running: "listening" in running.output(), "the server")
        guard.apply(*rules)

        guard.vm.put("/run/guard/go", "")

        assert running.wait() == 0
        assert running.output().split()[-1] == answer
    assert [(e.operation, e.object) for e in guard.told(1)] == [("accept", "tcp://127.0.0.1:7001")]


def test_raw_socket_that_another_program_made_does_not_help(guard: Guard) -> None:
    hand_over = (
        "import os, socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); os.set_inheritable(s.fileno(), True);"
        f"os.environ['HANDED'] = str(s.fileno()); os.execv('{DENIED}', ['python3', '-S', '/run/guard/acts.py', 'handed'])"
    )
    told = []
    for rules in ((), (network("raw", by=DENIED),)):
        guard.apply(*rules)
        told.append(guard.vm.run(ALLOWED, "-S", "-c", hand_over, env={"PYTHONHOME": "/usr"}).stdout.strip())

    assert told == ["handed ok", "handed EPERM"]


@pytest.mark.parametrize(("program", "through"), [(DENIED, LINKER), ("/srv/denied/linked", "")], ids=["linker", "hard link"])
def test_rule_about_a_program_holds_however_it_is_started(guard: Guard, program: str, through: str) -> None:
    guard.vm.check("sh", "-c", f"ln -f {DENIED} /srv/denied/linked")
    guard.apply(network("tcp", by=DENIED))

    assert all_of(guard.acts(program, "tcp4", "fastopen", "bind", through=through), "EPERM")
    assert all_of(guard.acts(program, "udp4", "raw", *LOCAL, through=through), "ok")
    assert guard.acts(ALLOWED, "tcp4", through=through) == {"tcp4": "ok"}


@pytest.mark.parametrize(("program", "through"), [(DENIED, LINKER), ("/srv/denied/linked", "")], ids=["linker", "hard link"])
def test_allow_list_of_a_program_holds_however_it_is_started(guard: Guard, program: str, through: str) -> None:
    guard.vm.check("sh", "-c", f"ln -f {DENIED} /srv/denied/linked")
    guard.apply(network("udp", Verdict.ALLOW, by=DENIED), network=Posture.BLOCK)

    assert all_of(guard.acts(program, "udp4", *LOCAL, through=through), "ok")
    assert all_of(guard.acts(program, "tcp4", "raw", "vsock", through=through), "EPERM")
    assert all_of(guard.acts(ALLOWED, "tcp4", "raw", "vsock", through=through), "ok")


def test_rules_hold_without_an_agent_and_are_taken_over_by_the_next(guard: Guard) -> None:
    guard.apply(network("tcp", by=DENIED))

    guard.close()
    assert all_of(guard.acts(DENIED, "tcp4", "fastopen"), "EPERM")
    assert guard.act(ALLOWED, "tcp4") == "ok"

    guard.restart()
    assert guard.act(DENIED, "tcp4") == "EPERM"
    guard.apply(network("udp", by=DENIED))
    assert guard.acts(DENIED, "tcp4", "udp4") == {"tcp4": "ok", "udp4": "EPERM"}
    assert guard.ask("release") == "released"
    guard.vm.until(lambda: guard.act(DENIED, "udp4") == "ok", "the kernel to let go")
