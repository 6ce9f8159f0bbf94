"""Programs for a guest: a server on port 53, and one that asks it in every way there is. Texts for the guest's interpreter."""

from __future__ import annotations

__all__ = ["QUERIES", "SERVER"]

# Answers on port 53 and writes down which names reached it.
SERVER = r"""
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
QUERIES = r"""
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
