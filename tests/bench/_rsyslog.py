"""Lines a second through two rsyslogs, RELP between them: what bench path is compared with.

The sender takes lines over TCP and queues them for RELP, the receiver writes them to a file.

- ``sync``: as durable as events are. The queue is on disk and synced (``queue.syncQueueFiles``), the receiver's file too.
- not ``sync``: as people mostly run it. The queue is disk-assisted, so in memory as long as the receiver keeps up, and the file
  is left to the page cache: a power cut loses what is on the way.

RELP's window is raised from 128 lines to 10,000: with the default, and delayed acknowledgements of TCP, it is 30 times slower.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT_S = 120

_RECEIVER = """
module(load="imrelp")
global(workDirectory="{work}")
template(name="line" type="string" string="%msg%\\n")
input(type="imrelp" port="{relp}" address="127.0.0.1" maxDataSize="16k" ruleset="in")
ruleset(name="in") {{ action(type="omfile" file="{out}" template="line" sync="{sync}") }}
"""
_SENDER = """
module(load="imptcp")
module(load="omrelp")
global(workDirectory="{work}")
input(type="imptcp" port="{tcp}" address="127.0.0.1" ruleset="out")
ruleset(name="out" queue.type="Direct") {{
  action(type="omrelp" target="127.0.0.1" port="{relp}" template="RSYSLOG_ForwardFormat"
    windowSize="{window}" action.resumeRetryCount="-1"
    queue.type="{queue}" queue.filename="q" queue.syncQueueFiles="{sync}" queue.size="200000" queue.dequeueBatchSize="1000")
}}
"""


def available() -> bool:
    """Return whether rsyslog with RELP is installed."""
    return shutil.which("rsyslogd") is not None and bool(list(Path("/usr/lib").glob("*/rsyslog/omrelp.so")))


def lines_per_s(lines: list[str], work: Path, *, sync: bool) -> float:
    """Return how many lines a second come through; the clock stops when the last one is in the receiver's file."""
    tcp, relp = _free_port(), _free_port()
    out = work / "out"
    out.touch()
    facts = {"work": work, "tcp": tcp, "relp": relp, "out": out, "window": 10_000}
    facts |= {"queue": "Disk", "sync": "on"} if sync else {"queue": "LinkedList", "sync": "off"}
    receiver, sender = _RECEIVER.format(**facts), _SENDER.format(**facts)
    with _daemon(work / "receiver.conf", receiver, relp), _daemon(work / "sender.conf", sender, tcp):
        raw = "".join(f"<13>Jan  1 00:00:00 path-1 garrison: {line}\n" for line in lines).encode()
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", tcp)) as feed:
            feed.sendall(raw)
            seen = 0
            with out.open("rb") as file:
                while seen < len(lines):
                    assert time.perf_counter() - began < LIMIT_S, f"{seen} of {len(lines)} lines came through in {LIMIT_S} s"
                    piece = file.read(1 << 20)
                    seen += piece.count(b"\n")
                    if not piece:
                        time.sleep(0.01)
        return len(lines) / (time.perf_counter() - began)


@contextlib.contextmanager
def _daemon(config: Path, text: str, port: int) -> Iterator[None]:
    config.write_text(text)
    log = config.with_suffix(".log")
    with log.open("wb") as file:
        daemon = subprocess.Popen(
            ["rsyslogd", "-n", "-f", config, "-i", config.with_suffix(".pid")], stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + LIMIT_S
        while not _answers(port):
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        daemon.kill()
        daemon.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
