"""Known ways around path rules that are not about paths: other calls, races, layers, floods."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.common.events import Event, Kind
from garrison.common.policy.rules import Rule
from vm.lab import K61, K612, PREEMPT_FULL, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process

EPERM = "1\n"
FLOOD = 5000  # more than the ring holds
RATED_FLOOD = 60_000
FLOODS = f"""
import os
opened = refused = 0
for _ in range({FLOOD}):
    try:
        os.close(os.open("/srv/t/secret", 0))
        opened += 1
    except PermissionError:
        refused += 1
print(opened, refused)
"""


@pytest.fixture(scope="module")
def tricks(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """``tricks.c``, built."""
    built: Path = tmp_path_factory.mktemp("tricks") / "tricks"
    source = Path(__file__).with_name("tricks.c")
    subprocess.run(["gcc", "-O1", "-static", "-no-pie", "-pthread", str(source), "-o", str(built)], check=True)
    return built.read_bytes()


@pytest.fixture(scope="module", params=[K61, K612, PREEMPT_FULL], ids=["6.1", "6.12", "6.1-preempt"])
def guard(request: pytest.FixtureRequest, tricks: bytes) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("tricks", machine))
        guard.vm.put("/tmp/tricks", tricks, mode=0o755)
        guard.files("/srv/t/secret", "/srv/t/free")
        yield guard


@pytest.mark.bypass(11, "refuses opens by io_uring, also by its worker and polling threads")
@pytest.mark.bypass(23, "refuses 32-bit system calls of a 64-bit program")
@pytest.mark.parametrize("how", ["compat", "uring", "sqpoll"])
def test_other_system_calls_get_the_same_answer(guard: Guard, how: str) -> None:
    guard.hold(file("/srv/t/secret"))

    assert guard.vm.check("/tmp/tricks", how, "/srv/t/secret") == EPERM
    assert guard.vm.check("/tmp/tricks", how, "/srv/t/free") == "OK\n"


@pytest.mark.bypass(16, "refuses: no decision keeps anything where another task could write; 0 of 400,000 wrong")
def test_threads_that_interrupt_each_other_get_their_own_answers(guard: Guard) -> None:
    guard.files("/srv/race/secret", "/srv/race/secret-free")
    guard.hold(file("/srv/race/secret"))

    assert guard.vm.check("/tmp/tricks", "race", "/srv/race/secret", "50000", timeout_s=300) == "0\n"


@pytest.mark.bypass(15, "refuses what was reached, whatever the link says by then")
def test_links_that_change_while_they_are_followed_lead_nowhere_else(guard: Guard) -> None:
    guard.files("/srv/links/secret", text="S")
    guard.files("/srv/links/free", text="F")
    guard.vm.check("sh", "-c", "cd /srv/links; ln -sf secret link; ln -sf free other")
    guard.hold(file("/srv/links/secret"))

    opened, secrets = map(int, guard.vm.check("/tmp/tricks", "links", "/srv/links", timeout_s=200).split())

    assert opened > 0
    assert secrets == 0


@pytest.mark.bypass(5, "refuses by the path in the merged directory, before and after the copy")
def test_overlay_of_a_protected_file_is_protected_by_its_path(guard: Guard) -> None:
    guard.vm.check(
        "sh", "-c", "mkdir -p /srv/ov/merged /srv/tmp; mount -t tmpfs t /srv/tmp; mkdir /srv/tmp/up /srv/tmp/work /srv/tmp/low"
    )
    guard.vm.check(
        "sh", "-c", "echo x >/srv/tmp/low/named; echo x >/srv/tmp/low/free; mkdir /srv/tmp/low/d; echo x >/srv/tmp/low/d/x"
    )
    guard.vm.check(
        "mount", "-t", "overlay", "o", "-o", "lowerdir=/srv/tmp/low,upperdir=/srv/tmp/up,workdir=/srv/tmp/work", "/srv/ov/merged"
    )
    try:
        guard.hold(file("/srv/ov/merged/named", by="/usr/bin/cat"), file("/srv/ov/merged/d/**", by="/usr/bin/cat"))
        for _ in range(2):
            assert not guard.opens("/srv/ov/merged/named")
            assert not guard.opens("/srv/ov/merged/d/x")
            assert guard.opens("/srv/ov/merged/free")
            # Copied up: another inode below, the same path.
            guard.vm.check("sh", "-c", "for f in named d/x free; do echo y >>/srv/ov/merged/$f; done")
    finally:
        guard.vm.check("umount", "/srv/ov/merged", "/srv/tmp")


@pytest.mark.bypass(17, "refuses with a full ring; what is lost is counted by rule")
def test_flood_of_alerts_hides_nothing_and_is_counted_by_rule(guard: Guard) -> None:
    rule = file("/srv/t/secret")
    guard.kill()
    guard.rate = (0, 1)
    guard.hold(rule)
    guard.events(0)
    guard.kill()
    guard.rate = (100, 200)

    refused = guard.vm.check("python3", "-c", FLOODS)
    guard.hold(rule)
    assert refused == f"0 {FLOOD}\n"
    lost = guard.counters()[f"lost.{rule.id}"]
    assert lost > 0
    told: list[Event] = []

    def read() -> bool:
        told.extend(event for event in guard.events(0) if event.rule == rule.id)
        return len(told) >= FLOOD - lost

    guard.vm.until(read, "the events that fitted into the ring", 60)
    assert len(told) == FLOOD - lost
    assert all(event.operation == "open" and "repeats" not in event.data for event in told)


@pytest.mark.bypass(17, "tells the other rule's event; told, suppressed and lost add up")
def test_flood_of_one_rule_leaves_the_others_event_alone_and_is_counted_exactly(guard: Guard) -> None:
    rule, other = file("/srv/t/secret"), file("/srv/t/secret-other")
    guard.files("/srv/t/secret-other")
    guard.hold(rule, other)
    guard.events(0)
    before = guard.counters()
    lost_before = before.get(f"lost.{rule.id}", 0)

    assert guard.vm.check("/tmp/tricks", "flood", "/srv/t/secret", str(RATED_FLOOD), timeout_s=300) == f"0 {RATED_FLOOD + 1}\n"

    told: list[Event] = []

    def accounted() -> bool:
        lost = guard.counters().get(f"lost.{rule.id}", 0) - lost_before  # asks for the status, which sums up
        told.extend(e for e in guard.events(0) if e.kind == Kind.ALERT)
        return stands_for(told, rule) + lost >= RATED_FLOOD

    guard.vm.until(accounted, "an account of every event", 60)
    after = guard.counters()
    lost = after.get(f"lost.{rule.id}", 0) - lost_before
    assert stands_for(told, rule) + lost == RATED_FLOOD
    assert after["blocks"] - before["blocks"] == RATED_FLOOD + 1
    assert after["suppressed"] - before["suppressed"] > RATED_FLOOD // 2
    assert [(e.object, e.result, e.data.get("repeats")) for e in told if e.rule == other.id] == [
        ("/srv/t/secret-other", REFUSED, None)
    ]
    assert sum(e.operation == "summary" for e in told) <= 1


def stands_for(told: list[Event], rule: Rule) -> int:
    """How many decisions of the rule the events tell of."""
    own = [e for e in told if e.rule == rule.id]
    return sum((e.operation != "summary") + int(str(e.data.get("repeats", 0))) for e in own)


def test_threads_and_children_get_the_answer_of_their_program(guard: Guard) -> None:
    guard.hold(file("/srv/t/secret", by="/usr/bin/python3.11"), process("/usr/bin/base64", by="/usr/bin/python3.11"))

    in_thread = (
        "import threading; r = []; t = threading.Thread(target=lambda: r.append(os.access('/', 4) and open('/srv/t/secret'))); "
    )
    tried = guard.tries(
        "open('/srv/t/secret')",
        f"{in_thread} threading.excepthook = lambda a: r.append(a.exc_value.errno); t.start(); t.join(); assert r == [1], r",
        "subprocess.run(['base64', '/etc/hostname'])",
        "subprocess.run(['sh', '-c', 'base64 /etc/hostname && cat /srv/t/secret'], check=True, stdout=-3)",
    )

    assert tried == [REFUSED, "OK", REFUSED, "OK"]
