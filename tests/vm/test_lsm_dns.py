"""Rules on domains in the kernel: real queries by real programs, over UDP and TCP, IPv4 and IPv6, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Entity, Mode, Other, Posture, Rule, Source, Verdict
from vm.guard import ALLOWED, DENIED, Guard
from vm.lab import K61, K612, Background, Lab

ACTS = "/run/dns/acts.py"
# Answers on port 53 and writes down which names reached it.
_SERVER = r"""
import selectors, socket
choose = selectors.DefaultSelector()
def serve(kind):
    s = socket.socket(socket.AF_INET6, kind)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("::", 53))
    return s
udp, tcp = serve(socket.SOCK_DGRAM), serve(socket.SOCK_STREAM)
tcp.setsockopt(socket.IPPROTO_TCP, 23, 16)
tcp.listen(64)
streams = {}
for s in (udp, tcp):
    choose.register(s, selectors.EVENT_READ)
def name(message):
    labels, at = [], 12
    while at < len(message) and message[at]:
        labels.append(message[at + 1:at + 1 + message[at]].decode("latin1"))
        at += 1 + message[at]
    return ".".join(labels) or "."
print("ready", flush=True)
while True:
    for key, _ in choose.select():
        s = key.fileobj
        if s is udp:
            message, sender = s.recvfrom(65535)
            print("udp", name(message) if len(message) > 12 else "short", flush=True)
            udp.sendto(message[:2] + b"\x81\x80" + message[4:], sender)
        elif s is tcp:
            connection, _ = s.accept()
            streams[connection] = b""
            choose.register(connection, selectors.EVENT_READ)
        else:
            try:
                got = s.recv(65535)
            except OSError:  # the other end has left with something unread
                got = b""
            streams[s] += got
            while got and len(streams[s]) >= 2 and len(streams[s]) >= 2 + int.from_bytes(streams[s][:2], "big"):
                n = 2 + int.from_bytes(streams[s][:2], "big")
                message, streams[s] = streams[s][2:n], streams[s][n:]
                print("tcp", name(message), flush=True)
                try:
                    s.sendall(len(message).to_bytes(2, "big") + message)
                except OSError:
                    got = b""
            if not got:
                choose.unregister(s)
                s.close()
"""
# Asks for the name in argv[2] in the ways of argv[1]; prints ok when the query went out and, if it is one that a server
# understands, its answer came back.
_ACTS = r"""
import errno, os, socket, struct, subprocess, sys, time
V4, V6, MAPPED = ("127.0.0.1", 53), ("::1", 53), ("::ffff:127.0.0.1", 53)

def wire(name):
    labels = [l.encode("latin1") for l in name.split(".") if l]
    return b"".join(bytes([len(l)]) + l for l in labels) + b"\0"

def message(*names, edns=True, count=None):
    head = struct.pack(">HHHHHH", 7, 0x100, len(names) if count is None else count, 0, 0, edns)
    return head + b"".join(wire(n) + b"\0\1\0\1" for n in names) + (b"\0\0\x29\x04\xd0\0\0\0\0\0\0" if edns else b"")

def udp(to=V4, family=socket.AF_INET, query=None, connect=False, how=None):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        if how:
            how(s)
        raw = message(NAME) if query is None else query
        if connect:
            s.connect(to)
            s.send(raw)
        else:
            s.sendto(raw, to)
        s.recv(65535)

def stream(to=V4, family=socket.AF_INET, pieces=None, protocol=0, fast=False, wait=True):
    raw = message(NAME)
    pieces = pieces or [len(raw).to_bytes(2, "big") + raw]
    with socket.socket(family, socket.SOCK_STREAM, protocol) as s:
        if fast:
            s.sendto(pieces.pop(0), 0x20000000, to)
        else:
            s.connect(to)
        s.settimeout(2)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            s.sendall(piece)
            time.sleep(0.05)
        try:
            s.recv(65535)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "")

def split(at):
    raw = message(NAME)
    raw = len(raw).to_bytes(2, "big") + raw
    return [raw[:at], raw[at:]]

def two_messages(first):
    return [b"".join(len(m).to_bytes(2, "big") + m for m in (message(first), message(NAME)))]

def raw_udp(query, head=b""):
    # A packet that the program makes itself, IP header and all.
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        body = struct.pack(">HHHH", 4000, 53, 8 + len(query), 0) + query
        here = socket.inet_aton("127.0.0.1")
        s.sendto(struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, FRAGMENT, 64, 17, 0, here, here) + body, V4)

def extended():
    # A destination option before the UDP header.
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        s.setsockopt(socket.IPPROTO_IPV6, 59, b"\0\0\1\4\0\0\0\0")
        s.sendto(message(NAME), V6)
        s.recv(65535)

def segmented():
    # One call, one packet for the hook, two datagrams on the wire.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        query, harmless = message(NAME, edns=False), message("x" * (len(NAME) - 4) + ".org", edns=False)
        assert len(query) == len(harmless)
        s.sendmsg([harmless + query], [(17, 103, struct.pack("=H", len(query)))], 0, V4)
        s.recv(65535)

def corked():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        raw = message(NAME)
        s.connect(V4)
        s.send(raw[:5], socket.MSG_MORE)
        s.send(raw[5:14], socket.MSG_MORE)
        s.send(raw[14:])
        s.recv(65535)

def spliced():
    # Through a pipe: no message that anybody could read beforehand.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        s.connect(V4)
        r, w = os.pipe()
        raw = message(NAME)
        os.write(w, raw)
        os.splice(r, s.fileno(), len(raw))
        s.recv(65535)

def race():
    # Another thread changes the name from harmless to NAME and back while the call reads it.
    import ctypes, threading
    good, bad = message("x" * (len(NAME) - 4) + ".org"), message(NAME)
    buffer = ctypes.create_string_buffer(good, len(good))
    going = True
    def change():
        while going:
            ctypes.memmove(buffer, bad, len(bad))
            ctypes.memmove(buffer, good, len(good))
    t = threading.Thread(target=change)
    t.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(V4)
        for _ in range(3000):
            try:
                s.send(buffer)
            except PermissionError:
                pass
    going = False
    t.join()

def flood():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _ in range(500):
            try:
                s.sendto(message(NAME), V4)
            except PermissionError:
                pass

def handed():
    # A socket that another program made, connected and used.
    s = socket.socket(fileno=int(os.environ["HANDED"]))
    s.send(message(NAME))

def old():
    # A connection that is there before the rules.
    with socket.socket(socket.AF_INET) as s:
        s.settimeout(2)
        s.connect(V4)
        print("connected", flush=True)
        while not os.path.exists("/run/dns/go"):
            time.sleep(0.02)
        raw = message(NAME)
        s.sendall(len(raw).to_bytes(2, "big") + raw)
        try:
            s.recv(65535)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "")

FRAGMENT = 0
def fragment():
    global FRAGMENT
    FRAGMENT = 0x2000
    raw_udp(message(NAME))

def other_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(message(NAME), ("127.0.0.1", 7777))

def at_the_end():
    # The name is in an additional record, which nobody is asked for.
    raw = message("free.test", edns=False)
    udp(query=raw[:10] + b"\0\1" + raw[12:] + wire(NAME) + b"\0\1\0\1" + b"\0" * 6)

ACTS = {
    "udp": lambda: udp(),
    "connected": lambda: udp(connect=True),
    "udp6": lambda: udp(V6, socket.AF_INET6),
    "mapped": lambda: udp(MAPPED, socket.AF_INET6),
    "extended": extended,
    "corked": corked,
    "spliced": spliced,
    "segmented": segmented,
    "raw": lambda: raw_udp(message(NAME)),
    "fragment": fragment,
    "noedns": lambda: udp(query=message(NAME, edns=False)),
    "second": lambda: udp(query=message("free.test", NAME)),
    "response": lambda: udp(query=message(NAME)[:2] + b"\x81\x80" + message(NAME)[4:]),
    "tcp": lambda: stream(),
    "tcp6": lambda: stream(V6, socket.AF_INET6),
    "fastopen": lambda: [stream(fast=True) for _ in range(2)],  # the first gets the cookie
    "mptcp": lambda: stream(protocol=262),
    "pipelined": lambda: stream(pieces=two_messages("free.test")),
    "split length": lambda: stream(pieces=split(2)),
    "split name": lambda: stream(pieces=split(17)),
    "old": old,
    "handed": handed,
    "race": race,
    "flood": flood,
    "other port": other_port,
    "at the end": at_the_end,
    "empty": lambda: udp(query=b""),
    "garbage": lambda: udp(query=b"\xff" * 40),
    "none": lambda: udp(query=message()),
    "many": lambda: udp(query=message(*["free.test"] * 5)),
    "pointer": lambda: udp(query=message("free.test")[:12] + b"\xc0\x0c\0\1\0\1"),
    "cut": lambda: udp(query=message("free.test", edns=False)[:-5]),
    "promised": lambda: udp(query=message("free.test", edns=False, count=2)),
    "long": lambda: udp(query=message(".".join(["a" * 63] * 4), edns=False)),
    "glibc": lambda: socket.getaddrinfo(NAME, 80),
}
NAME = sys.argv[2]
for act in sys.argv[1].split(","):
    try:
        ACTS[act]()
        print(act.replace(" ", "-"), "ok", flush=True)
    except OSError as err:
        print(act.replace(" ", "-"), errno.errorcode.get(err.errno, err), flush=True)
"""
_numbers = iter(range(10**6))
UDP = ("udp", "connected", "udp6", "mapped", "extended", "corked", "spliced", "raw", "noedns", "second", "response")
TCP = ("tcp", "tcp6", "fastopen", "mptcp", "pipelined")
PIECES = ("segmented", "fragment", "split length", "split name")
UNREADABLE = ("empty", "garbage", "none", "many", "pointer", "cut", "promised", "long")


class Dns:
    """The enforcer, a server on port 53, and programs that ask it."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        vm = guard.vm
        vm.put(ACTS, _ACTS)
        vm.put("/run/dns/server.py", _SERVER)
        vm.check("sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
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

    def received(self, name: str) -> int:
        """Return how often a name has reached the server."""
        return [line.partition(" ")[2] for line in self.server.output().splitlines()].count(name)


@pytest.fixture(scope="module", params=[pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")])
def dns(request: pytest.FixtureRequest) -> Iterator[Dns]:
    with Lab() as lab:
        yield Dns(Guard(lab.boot("dns", request.param)))


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
