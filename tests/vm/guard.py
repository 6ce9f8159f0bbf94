"""The kernel enforcer at work in a VM, and programs to try it with.

Rules of this file:
- The guest runs the real enforcer in a process of its own, which applies the rules that it is handed and writes down its events.
- ``ALLOWED`` and ``DENIED`` are one interpreter under two paths: what a rule on the second refuses is tried by the first as well.
- ``act`` runs one action of ``ACTS`` and returns ``ok`` or the name of the error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec

from garrison.common.events import Event, event_from_json
from garrison.common.policy.rules import Entity, Other, Posture, Postures, Protocol, Rule, RuleSet, Source, Verdict
from vm.lab import Background, Vm

__all__ = ["ALLOWED", "DENIED", "LINKER", "Guard", "capability", "network"]

ALLOWED = "/usr/bin/python3.11"
DENIED = "/srv/denied/bin/python3"
LINKER = "/lib64/ld-linux-x86-64.so.2"
_FOLDER = "/run/guard"
_numbers = itertools.count(1)

_AGENT = r"""
import os, pathlib, signal, socket, time
import msgspec
from garrison.common.events import event_to_json
from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.bpf_lsm.enforcer import BpfLsmEnforcer

folder = pathlib.Path("/run/guard")
told = open(folder / "events", "a", buffering=1)
enforcer = BpfLsmEnforcer(lambda event: told.write(event_to_json(event) + "\n"))
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)

def answer(name, text):
    (folder / "part").write_text(text)
    (folder / "part").rename(folder / name)

def own():
    # What the agent itself may do, whatever the rules say.
    done = []
    for what in (lambda: socket.create_connection(("127.0.0.1", 7000), 5).close(),
                 lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())):
        try:
            what()
            done.append("ok")
        except OSError as err:
            done.append(err.strerror)
    return " ".join(done)

def query(name):
    # As a resolver of the agent's own would ask.
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        try:
            s.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1", ("127.0.0.1", 53))
            s.recv(512)
        except OSError as err:
            return str(err.strerror or err)
    return "ok"

while going:
    for asked in folder.glob("ask-*"):
        name, number = asked.name.split("-")[1:]
        raw = asked.read_bytes()
        asked.unlink()
        try:
            if name == "apply":
                said = msgspec.json.encode(enforcer.apply(msgspec.json.decode(raw, type=RuleSet))).decode()
            elif name == "status":
                said = msgspec.json.encode(enforcer.status()).decode()
            elif name == "own":
                said = own()
            elif name == "query":
                said = query(raw)
            else:
                enforcer.release()
                said = "released"
        except Exception as err:
            said = f"failed: {err} {getattr(err, 'hint', '')}"
        answer(f"answer-{number}", said)
    time.sleep(0.02)
enforcer.close()
"""

_SERVER = r"""
import selectors, socket, time
choose = selectors.DefaultSelector()
def serve(kind):
    s = socket.socket(socket.AF_INET6, kind)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("::", 7000))
    return s
tcp, udp = serve(socket.SOCK_STREAM), serve(socket.SOCK_DGRAM)
tcp.setsockopt(socket.IPPROTO_TCP, 23, 16)
tcp.listen(64)
local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
local.bind("\0guard")
local.listen(64)
for s in (tcp, udp, local):
    choose.register(s, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in choose.select():
        s = key.fileobj
        if s is udp:
            print("udp", s.recvfrom(64)[0].decode(), flush=True)
        else:
            try:
                connection, _ = s.accept()
            except OSError:  # a rule refused it; the connection stays in the queue
                time.sleep(0.05)
                continue
            connection.settimeout(1)
            try:
                print("unix" if s is local else "tcp", connection.recv(64).decode(), flush=True)
            except OSError as err:
                print("tcp", err, flush=True)
            connection.close()
"""

_ACTS = r"""
import ctypes, errno, os, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
V4, V6, MAPPED = ("127.0.0.1", 7000), ("::1", 7000), ("::ffff:127.0.0.1", 7000)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

def sock(family, kind=socket.SOCK_STREAM, protocol=0):
    return socket.socket(family, kind, protocol)

def connect(family, to, kind=socket.SOCK_STREAM, protocol=0):
    with sock(family, kind, protocol) as s:
        s.settimeout(10)
        s.connect(to)
        s.send(NAME.encode())

def sendto(family, to, flags=0, kind=socket.SOCK_DGRAM, times=1):
    with sock(family, kind) as s:
        for _ in range(times):
            s.sendto(NAME.encode(), flags, to)

def bind(kind, listen=False):
    with sock(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        if listen:
            s.listen()

def listen_unbound():
    with sock(socket.AF_INET) as s:
        s.listen()

def serve():
    # Listens before the rules come, accepts after.
    with sock(socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 7001))
        s.listen()
        print("listening", flush=True)
        while not os.path.exists("/run/guard/go"):
            time.sleep(0.02)
        s.setblocking(False)
        s.accept()

def disconnect():
    with sock(socket.AF_INET, socket.SOCK_DGRAM) as s:
        check(libc.connect(s.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16))

def handed():
    # A raw socket that another program made.
    s = socket.socket(fileno=int(os.environ["HANDED"]))
    s.sendto(b"\x08\0\xf7\xff\0\0\0\0", ("127.0.0.1", 0))

def unshared_netlink():
    with sock(socket.AF_NETLINK, socket.SOCK_RAW) as s:
        s.bind((0, 0))

def pair():
    a, b = socket.socketpair()
    a.send(b"x")
    b.recv(1)

def init_module():
    check(libc.syscall(175, b"no module", 9, b""))

def settime():
    time.clock_settime(time.CLOCK_REALTIME, time.time())

def kallsyms():
    with open("/proc/kallsyms") as f:
        shown = any(not line.startswith("0000000000000000") for line in f)
    if not shown:
        raise OSError(errno.EPERM, "")

def many(times):
    for _ in range(times):
        try:
            settime()
        except PermissionError:
            pass

def list_(path):
    print("found", *sorted(os.listdir(path)))

ACTS = {
    "tcp4": lambda: connect(socket.AF_INET, V4),
    "tcp6": lambda: connect(socket.AF_INET6, V6),
    "mapped": lambda: connect(socket.AF_INET6, MAPPED),
    "mptcp": lambda: connect(socket.AF_INET, V4, protocol=262),
    "fastopen": lambda: sendto(socket.AF_INET, V4, flags=0x20000000, kind=socket.SOCK_STREAM),
    "fastopen6": lambda: sendto(socket.AF_INET6, V6, flags=0x20000000, kind=socket.SOCK_STREAM),
    "udp4": lambda: sendto(socket.AF_INET, V4),
    "udp6": lambda: sendto(socket.AF_INET6, V6),
    "udpmapped": lambda: sendto(socket.AF_INET6, MAPPED),
    "udpconnect": lambda: connect(socket.AF_INET, V4, socket.SOCK_DGRAM),
    "udpflood": lambda: sendto(socket.AF_INET, V4, times=2000),
    "udplite": lambda: connect(socket.AF_INET, V4, socket.SOCK_DGRAM, 136),
    "bind": lambda: bind(socket.SOCK_STREAM),
    "bindudp": lambda: bind(socket.SOCK_DGRAM),
    "listen": lambda: bind(socket.SOCK_STREAM, listen=True),
    "unbound": listen_unbound,
    "serve": serve,
    "disconnect": disconnect,
    "raw": lambda: sock(socket.AF_INET, socket.SOCK_RAW, 1),
    "raw6": lambda: sock(socket.AF_INET6, socket.SOCK_RAW, 58),
    "rawip": lambda: sock(socket.AF_INET, socket.SOCK_RAW, 255),
    "icmp": lambda: sock(socket.AF_INET, socket.SOCK_DGRAM, 1),
    "packet": lambda: sock(socket.AF_PACKET, socket.SOCK_RAW, 0x300),
    "packetdgram": lambda: sock(socket.AF_PACKET, socket.SOCK_DGRAM, 0x300),
    "alg": lambda: sock(38, socket.SOCK_SEQPACKET),
    "vsock": lambda: sock(40, socket.SOCK_STREAM),
    "sctp": lambda: sock(socket.AF_INET, socket.SOCK_STREAM, 132),
    "sctpseq": lambda: sock(socket.AF_INET, socket.SOCK_SEQPACKET),
    "handed": handed,
    "unix": lambda: connect(socket.AF_UNIX, "\0guard"),
    "netlink": unshared_netlink,
    "pair": pair,
    "module": init_module,
    "settime": settime,
    "chown": lambda: os.chown("/run/guard/file", 1000, -1),
    "nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -1),
    "kallsyms": kallsyms,
    "many": lambda: many(2000),
    "list": lambda: list_(sys.argv[2]),
}
for NAME in sys.argv[1].split(","):
    try:
        ACTS[NAME]()
        print(NAME, "ok", flush=True)
    except OSError as err:
        print(NAME, errno.errorcode.get(err.errno, err), flush=True)
"""


def network(name: str, verdict: Verdict = Verdict.BLOCK, *, by: str = "", **more: object) -> Rule:
    """Return a network rule, for one program if ``by`` is given."""
    return _rule(Entity.NETWORK, Protocol(name), verdict, by, more)


def capability(name: str, verdict: Verdict = Verdict.BLOCK, *, by: str = "", **more: object) -> Rule:
    """Return a capability rule, for one program if ``by`` is given."""
    return _rule(Entity.CAPABILITY, Other(name), verdict, by, more)


def _rule(entity: Entity, target: Protocol | Other, verdict: Verdict, by: str, more: dict[str, object]) -> Rule:
    said = {"sources": (Source(by),) if by else (), "severity": 7, "message": "no"} | more
    return Rule(id=f"test/{next(_numbers)}", policy="test", entity=entity, verdict=verdict, target=target, **said)  # type: ignore[arg-type]


class Guard:
    """The enforcer in ``vm``, and a server on port 7000 (TCP, UDP) and the abstract Unix socket ``guard``."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        vm.put(f"{_FOLDER}/acts.py", _ACTS)
        vm.put(f"{_FOLDER}/file", "")
        vm.check(
            "sh", "-c", f"install -D {ALLOWED} {DENIED}; ulimit -c 0; for m in sctp vsock af_alg overlay; do modprobe $m; done"
        )
        vm.put("/run/server.py", _SERVER)
        self.server = vm.start(ALLOWED, "-S", "/run/server.py", log="/run/server.log")
        vm.until(lambda: "ready" in self.server.output(), "the server")
        self.agent = self._start()

    def _start(self) -> Background:
        self.vm.put("/run/agent.py", _AGENT)
        return self.vm.start("python3", "/run/agent.py", log="/run/agent.log")

    def restart(self) -> None:
        """Start another agent after ``close``."""
        self.agent = self._start()

    def close(self) -> None:
        """End the agent in order: what it applied stays."""
        self.agent.kill("TERM")
        assert self.agent.wait(60) == 0, self.agent.output()

    def ask(self, what: str, raw: bytes = b"") -> str:
        """Have the agent do something; returns what it said."""
        number = next(_numbers)
        self.vm.put(f"/run/part-{number}", raw)
        self.vm.check("mv", f"/run/part-{number}", f"{_FOLDER}/ask-{what}-{number}")
        answer = f"{_FOLDER}/answer-{number}"
        self.vm.until(lambda: self.vm.run("test", "-e", answer).returncode == 0 or not self.agent.running(), what, 120)
        assert self.agent.running(), self.agent.output()
        said = self.vm.get(answer).decode()
        assert not said.startswith("failed"), said
        return said

    def apply(self, *rules: Rule, **postures: Posture) -> None:
        """Have ``rules`` enforced, and forget the events so far."""
        drawn = RuleSet(rules=tuple(sorted(rules, key=lambda rule: rule.id)), postures=Postures(**postures))
        self.ask("apply", msgspec.json.encode(drawn))
        self.vm.check("truncate", "-s", "0", f"{_FOLDER}/events")

    def act(self, program: str, action: str) -> str:
        """Run one action with ``program``; returns ``ok`` or the error's name."""
        return self._run(program, action)[action]

    def acts(self, program: str, *actions: str, through: str = "") -> dict[str, str]:
        """Run actions, by name, one after the other, in one process, which ``through`` starts if it is given."""
        return self._run(program, ",".join(actions), through=through)

    def listed(self, program: str, path: str) -> str:
        """Return what ``program`` finds in a directory."""
        return self._run(program, "list", path)["found"]

    def _run(self, program: str, *argv: str, through: str = "") -> dict[str, str]:
        done = self.vm.run(*filter(None, (through, program)), "-S", f"{_FOLDER}/acts.py", *argv, env={"PYTHONHOME": "/usr"})
        assert done.returncode == 0, done.stderr
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    def events(self) -> list[Event]:
        """Return what was told since the rules were applied."""
        return [event_from_json(line) for line in self.vm.get(f"{_FOLDER}/events").splitlines()]

    def told(self, count: int, like: Callable[[Event], bool] = lambda _: True) -> list[Event]:
        """Wait for ``count`` events and return them; more are an error."""
        found = self.vm.until(lambda: (f := [e for e in self.events() if like(e)]) and len(f) >= count and f, f"{count} events")
        assert len(found) == count, [(event.operation, event.object, event.verdict) for event in found]
        return found

    def counters(self) -> dict[str, int]:
        """Return the enforcer's figures."""
        return dict(msgspec.json.decode(self.ask("status"))["counters"])

    def received(self) -> str:
        """Return what the server got."""
        return self.server.output()
