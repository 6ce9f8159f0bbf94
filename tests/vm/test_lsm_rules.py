"""What each kind of rule means, held by the kernel; and that what it does not name goes on working."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Mode, Posture, Postures, Verdict
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import REFUSED, Guard, file, process


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own, shared by the tests of this file: each applies other rules."""
    machine: Machine = request.param
    with Lab() as lab:
        yield Guard(lab.boot("rules", machine))


def test_exact_path_is_refused_and_named_in_the_event(guard: Guard) -> None:
    guard.files("/srv/one/secret", "/srv/one/other")
    rule = file("/srv/one/secret", severity=7)
    guard.hold(rule, process("/usr/bin/base64"))
    guard.events(0)

    assert not guard.opens("/srv/one/secret")
    assert guard.opens("/srv/one/other")
    assert not guard.starts("/usr/bin/base64")
    assert guard.starts("/usr/bin/cat")
    opened, started = guard.events(2)
    assert (opened.operation, opened.object, opened.verdict, opened.result) == ("open", "/srv/one/secret", "block", REFUSED)
    assert (opened.rule, opened.severity, opened.actor and opened.actor.exe) == (rule.id, 7, "/usr/bin/cat")
    assert (started.operation, started.object) == ("exec", "/usr/bin/base64")


def test_directory_names_its_children_and_all_below_only_when_recursive(guard: Guard) -> None:
    guard.files("/srv/flat/a", "/srv/flat/in/b", "/srv/deep/a", "/srv/deep/in/in/b", "/srv/deeper/a")
    guard.hold(file("/srv/flat/"), file("/srv/deep/**"))

    assert not guard.opens("/srv/flat/a")
    assert guard.opens("/srv/flat/in/b")
    assert not guard.opens("/srv/deep/a")
    assert not guard.opens("/srv/deep/in/in/b")
    assert guard.opens("/srv/deeper/a")


def test_glob_and_name_match_as_written(guard: Guard) -> None:
    guard.files("/srv/glob/a/b/x.key", "/srv/glob/x.key", "/srv/glob/a/x.keys")
    guard.vm.check("cp", "/usr/bin/true", "/srv/glob/tool")
    guard.hold(file("/srv/glob/**/*.key"), process("tool"))

    assert not guard.opens("/srv/glob/a/b/x.key")
    assert not guard.opens("/srv/glob/x.key")
    assert guard.opens("/srv/glob/a/x.keys")
    assert not guard.starts("/srv/glob/tool")
    assert guard.starts("/usr/bin/true")


def test_source_is_the_acting_program(guard: Guard) -> None:
    guard.files("/srv/source/secret")
    guard.hold(file("/srv/source/secret", by="/usr/bin/cat"))

    assert not guard.opens("/srv/source/secret", by="cat")
    assert guard.opens("/srv/source/secret", by="sha256sum")


def test_allow_rule_with_a_source_exempts_it_from_a_block_of_its_policy(guard: Guard) -> None:
    guard.files("/srv/exempt/secret")
    guard.hold(file("/srv/exempt/secret"), file("/srv/exempt/secret", Verdict.ALLOW, by="/usr/bin/sha256sum", exempts=True))

    assert not guard.opens("/srv/exempt/secret", by="cat")
    assert guard.opens("/srv/exempt/secret", by="sha256sum")


def test_owner_only_refuses_everybody_but_the_owner(guard: Guard) -> None:
    guard.files("/srv/owner/alices", "/srv/owner/bobs")
    guard.vm.check("sh", "-c", "chown alice /srv/owner/alices; chown bob /srv/owner/bobs; chmod 666 /srv/owner/*")
    guard.hold(file("/srv/owner/", owner_only=True))

    tried = guard.tries("open('/srv/owner/alices')", "open('/srv/owner/bobs')", user="alice")

    assert tried == ["OK", REFUSED]


def test_read_only_refuses_writes_and_lets_reads(guard: Guard) -> None:
    guard.files("/srv/ro/conf")
    guard.hold(file("/srv/ro/", read_only=True))

    tried = guard.tries("open('/srv/ro/conf')", "open('/srv/ro/conf', 'a')", "os.open('/srv/ro/conf', os.O_TRUNC)")

    assert tried == ["OK", REFUSED, REFUSED]
    assert guard.vm.get("/srv/ro/conf") == b"hi\n"


def test_rule_against_terminals_refuses_only_on_one(guard: Guard) -> None:
    guard.hold(process("/usr/bin/base64", no_tty=True))

    on_terminal = guard.vm.run("script", "-qec", "base64 /etc/hostname", "/dev/null")

    assert "Operation not permitted" in on_terminal.stdout or "Permission denied" in on_terminal.stdout, on_terminal
    assert guard.starts("/usr/bin/base64")


def test_audit_verdict_and_audit_mode_tell_and_let_pass(guard: Guard) -> None:
    guard.files("/srv/audit/a", "/srv/audit/b")
    guard.hold(file("/srv/audit/a", Verdict.AUDIT), file("/srv/audit/b", mode=Mode.AUDIT))
    guard.events(0)

    assert guard.opens("/srv/audit/a")
    assert guard.opens("/srv/audit/b")
    assert [(e.object, e.verdict, e.result) for e in guard.events(2)] == [
        ("/srv/audit/a", "audit", "passed"),
        ("/srv/audit/b", "audit", "passed"),
    ]


@pytest.mark.parametrize("posture", list(Posture))
def test_allow_list_of_a_source_gives_the_rest_the_posture(guard: Guard, posture: Posture) -> None:
    guard.files("/srv/list/in", "/srv/list/out")
    listed = [
        file(where, Verdict.ALLOW, by="/usr/bin/sha256sum")
        for where in ("/srv/list/in", "/usr/**", "/etc/**", "/lib/**", "/dev/**", "/proc/**")
    ]
    guard.hold(*listed, postures=Postures(file=posture))
    guard.events(0)

    assert guard.opens("/srv/list/in", by="sha256sum")
    assert guard.opens("/srv/list/out", by="sha256sum") == (posture is Posture.AUDIT)
    assert guard.opens("/srv/list/out", by="cat")
    event = next(e for e in guard.events() if e.object == "/srv/list/out")
    assert (event.verdict, event.data["by_posture"]) == (posture.value, True)


def test_hard_link_made_before_the_rule_is_the_same_file(guard: Guard) -> None:
    guard.files("/srv/hard/secret")
    guard.vm.check("ln", "-f", "/srv/hard/secret", "/srv/hard/alias")
    guard.vm.check("cp", "/usr/bin/true", "/srv/hard/program")
    guard.vm.check("ln", "-f", "/srv/hard/program", "/srv/hard/program-alias")
    guard.hold(file("/srv/hard/secret"), process("/srv/hard/program"))

    assert not guard.opens("/srv/hard/alias")
    assert not guard.starts("/srv/hard/program-alias")


def test_new_rules_hold_at_once_and_old_ones_no_longer(guard: Guard) -> None:
    guard.files("/srv/swap/a", "/srv/swap/b")
    guard.hold(file("/srv/swap/a"))
    assert not guard.opens("/srv/swap/a")
    assert guard.opens("/srv/swap/b")

    guard.hold(file("/srv/swap/b"))

    assert guard.opens("/srv/swap/a")
    assert not guard.opens("/srv/swap/b")


def test_rules_outlive_the_agent_and_a_new_one_takes_over(guard: Guard) -> None:
    guard.files("/srv/agent/a", "/srv/agent/b")
    guard.hold(file("/srv/agent/a"))

    guard.kill()
    assert not guard.opens("/srv/agent/a")
    guard.hold(file("/srv/agent/b"))

    assert guard.opens("/srv/agent/a")
    assert not guard.opens("/srv/agent/b")


def test_close_leaves_rules_in_force_and_release_takes_them_away(guard: Guard) -> None:
    guard.files("/srv/close/a")
    guard.hold(file("/srv/close/a"))

    guard.ask("close")
    assert not guard.opens("/srv/close/a")
    guard.ask("release")

    guard.vm.until(lambda: guard.opens("/srv/close/a"), "the file can be read again")
    assert guard.vm.check("find", "/sys/fs/bpf", "-mindepth", "1") == ""


def test_program_is_ended_before_its_first_instruction_unless_its_arguments_are_listed(guard: Guard) -> None:
    guard.files("/srv/args/x")
    rule = process("/usr/bin/cat", allowed_args=("/srv/args/x", "-n"))
    guard.hold(rule)
    guard.events(0)

    assert guard.vm.run("cat", "/srv/args/x").stdout == "hi\n"
    assert guard.vm.run("cat", "-n", "/srv/args/x").returncode == 0
    for refused in (["/etc/hostname"], ["/srv/args/x", "/etc/hostname"], [], ["-n" * 200], ["-nn"], [""]):
        done = guard.vm.run("cat", *refused, stdin="in")
        assert (done.returncode, done.stdout) == (-9, ""), refused
    assert guard.vm.run("sha256sum", "/etc/hostname").returncode == 0
    events = guard.events(6)
    assert {(e.operation, e.object, e.result, e.rule) for e in events} == {("exec", "/usr/bin/cat", "SIGKILL", rule.id)}


def test_script_counts_as_started_with_arguments_that_are_not_listed(guard: Guard) -> None:
    guard.vm.put("/srv/args/script", "#!/bin/sh\necho ran\n", mode=0o755)
    guard.vm.put("/srv/args/free", "#!/bin/sh\necho ran\n", mode=0o755)
    guard.hold(process("/srv/args/script", allowed_args=("a",)))

    assert guard.tries("subprocess.run(['/srv/args/script', 'a'], check=True)") == REFUSED
    assert guard.vm.run("/srv/args/free", "a").stdout == "ran\n"


def test_allow_list_grants_listed_arguments_only(guard: Guard) -> None:
    guard.hold(
        process("/usr/bin/uname", Verdict.ALLOW, by="/usr/bin/dash", allowed_args=("-r",)), postures=Postures(file=Posture.BLOCK)
    )

    assert guard.vm.run("sh", "-c", "uname -r").returncode == 0
    assert guard.vm.run("sh", "-c", "uname -n").returncode == 128 + 9
    assert guard.vm.run("sh", "-c", "hostname").returncode == 126
