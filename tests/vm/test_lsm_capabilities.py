"""Capability rules in the kernel, tried with real programs that run as root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Posture, Verdict
from vm.guard import ALLOWED, DENIED, LINKER, Guard, capability
from vm.lab import K61, K612, Lab


@pytest.fixture(scope="module", params=[pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    with Lab() as lab:
        guard = Guard(lab.boot("cap", request.param))
        guard.vm.check("sysctl", "-qw", "kernel.perf_event_paranoid=2", "kernel.kptr_restrict=1")
        yield guard


def test_without_rules_root_may_do_all_of_it(guard: Guard) -> None:
    guard.apply()

    said = guard.acts(DENIED, "settime", "module", "raw", "packet", "chown", "nice", "kallsyms")

    assert said == dict.fromkeys(said, "ok") | {"module": "ENOEXEC"}


def test_date_cannot_set_the_clock_and_others_can(guard: Guard) -> None:
    date = guard.vm.check("readlink", "-f", "/bin/date").strip()
    guard.apply(capability("sys_time", by=date))

    refused = guard.vm.run("date", "-s", "now")

    assert (refused.returncode, "Operation not permitted" in refused.stderr) == (1, True)
    assert guard.vm.run("date").returncode == 0
    assert guard.act(ALLOWED, "settime") == "ok"
    event = guard.told(1)[0]
    assert event.actor is not None
    assert (event.operation, event.object, event.verdict, event.result, event.actor.exe) == (
        "capable",
        "sys_time",
        "block",
        "EPERM",
        date,
    )


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("sys_module", ("module",)),
        ("net_raw", ("raw", "packet")),
        ("chown", ("chown",)),
        ("sys_nice", ("nice",)),
        ("sys_time", ("settime",)),
    ],
)
def test_capability_is_refused_to_the_program_alone_and_no_other_one_is(
    guard: Guard, name: str, refused: tuple[str, ...]
) -> None:
    guard.apply(capability(name, by=DENIED))

    fine = {"settime": "ok", "module": "ENOEXEC", "raw": "ok", "packet": "ok", "chown": "ok", "nice": "ok", "tcp4": "ok"}
    expected = fine | dict.fromkeys(refused, "EACCES" if name == "sys_nice" else "EPERM")
    assert guard.acts(DENIED, *fine) == expected
    assert guard.acts(ALLOWED, *refused) == {action: fine[action] for action in refused}

    assert guard.told(1)[0].object == name


@pytest.mark.parametrize(("program", "through"), [(DENIED, LINKER), ("/srv/denied/linked", "")], ids=["linker", "hard link"])
def test_rule_about_a_program_holds_however_it_is_started(guard: Guard, program: str, through: str) -> None:
    guard.vm.check("sh", "-c", f"ln -f {DENIED} /srv/denied/linked")

    guard.apply(capability("sys_time", by=DENIED))
    assert guard.acts(program, "settime", "chown", through=through) == {"settime": "EPERM", "chown": "ok"}
    assert guard.acts(ALLOWED, "settime", through=through) == {"settime": "ok"}

    guard.apply(capability("net_raw", Verdict.ALLOW, by=DENIED), capability=Posture.BLOCK)
    assert guard.acts(program, "raw", "settime", through=through) == {"raw": "ok", "settime": "EPERM"}
    assert guard.acts(ALLOWED, "settime", through=through) == {"settime": "ok"}


def test_rule_without_a_source_holds_for_everybody_but_the_agent(guard: Guard) -> None:
    guard.apply(capability("sys_time"))

    assert (guard.act(DENIED, "settime"), guard.act(ALLOWED, "settime")) == ("EPERM", "EPERM")
    assert guard.ask("own").split()[-1] == "ok"


def test_allow_list_refuses_the_other_capabilities_by_posture(guard: Guard) -> None:
    guard.apply(capability("net_raw", Verdict.ALLOW, by=DENIED), capability=Posture.BLOCK)

    said = guard.acts(DENIED, "raw", "settime", "module", "chown")

    assert said == {"raw": "ok", "settime": "EPERM", "module": "EPERM", "chown": "EPERM"}
    assert guard.acts(ALLOWED, "settime", "chown") == {"settime": "ok", "chown": "ok"}
    told = {e.object: e for e in guard.events()}
    assert {"sys_time", "sys_module", "chown"} <= told.keys()
    assert all(event.data.get("by_posture") for event in told.values())


def test_audit_passes_and_is_told_once_however_often(guard: Guard) -> None:
    guard.apply(capability("sys_time", Verdict.AUDIT, by=DENIED))
    before = guard.counters()

    assert guard.act(DENIED, "many") == "ok"

    assert [(e.object, e.verdict, e.result) for e in guard.told(1)] == [("sys_time", "audit", "passed")]
    after = guard.counters()
    assert (after["audits"] - before["audits"], after["repeats"] - before["repeats"]) == (2000, 1999)


def test_block_in_a_loop_is_refused_each_time_and_told_once(guard: Guard) -> None:
    guard.apply(capability("sys_time", by=DENIED))
    before = guard.counters()

    guard.act(DENIED, "many")

    guard.told(1)
    after = guard.counters()
    assert (after["blocks"] - before["blocks"], after["repeats"] - before["repeats"]) == (2000, 1999)


def test_capability_that_the_kernel_only_wonders_about_is_refused_and_counted_but_not_told(guard: Guard) -> None:
    guard.apply(capability("syslog", by=DENIED))
    before = guard.counters()

    assert (guard.act(DENIED, "kallsyms"), guard.act(ALLOWED, "kallsyms")) == ("EPERM", "ok")

    assert guard.counters()["quiet"] > before["quiet"]
    assert guard.events() == []


def test_overlay_shows_the_same_to_a_program_that_is_refused_what_overlayfs_needs(guard: Guard) -> None:
    mount = "mount -t overlay o -o lowerdir=lower,upperdir=upper,workdir=work all"
    prepare = f"""cd /srv; mkdir -p lower/d upper work all; touch lower/d/hidden; {mount}
        rm -r all/d; mkdir all/d; touch all/d/shown; umount all; {mount}"""
    guard.vm.check("sh", "-ec", prepare)
    guard.apply(capability("sys_admin", by=DENIED), capability("dac_override", by=DENIED))
    try:
        assert (guard.listed(DENIED, "/srv/all/d"), guard.listed(ALLOWED, "/srv/all/d")) == ("shown", "shown")
    finally:
        guard.vm.check("sh", "-c", "umount /srv/all; rm -rf /srv/lower /srv/upper /srv/work /srv/all")


def test_rules_hold_without_an_agent(guard: Guard) -> None:
    guard.apply(capability("sys_time", by=DENIED))

    guard.close()

    assert (guard.act(DENIED, "settime"), guard.act(ALLOWED, "settime")) == ("EPERM", "ok")
    guard.restart()
    assert guard.ask("release") == "released"
    guard.vm.until(lambda: guard.act(DENIED, "settime") == "ok", "the kernel to let go")
