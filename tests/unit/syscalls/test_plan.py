"""The kernel's filter lets through all that rules may speak of; what rules say of a call is what ``match`` says."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.bpf.pathhash import PathHasher
from garrison.common.policy.match import source_matches
from garrison.common.policy.rules import (
    Entity,
    Mode,
    Other,
    PathKind,
    PathTarget,
    Rule,
    RuleSet,
    Source,
    Verdict,
    WorkloadScope,
)
from garrison.minion.enforcers.profiles import HOST_PROFILE, NO_WORKLOAD, UNKNOWN_PROFILE, Placement, Profile
from garrison.minion.enforcers.program_row import RowKind, encode_key
from garrison.minion.enforcers.syscalls.layout import ROW_BYTES, encode_target
from garrison.minion.enforcers.syscalls.numbers import NUMBERS
from garrison.minion.enforcers.syscalls.plan import Plan, make_plan
from garrison.minion.enforcers.syscalls.report import report_rules

X86 = NUMBERS["x86_64"]
HASHER = PathHasher(bytes(range(24)))
UNLINK, OPENAT, GETPID = X86["unlink"], X86["openat"], X86["getpid"]
HOME = '{"path":"/home/","recursive":true}'
WEB, DB = WorkloadScope(labels=("app=web",)), WorkloadScope(labels=("app=db",))


def rule(name: str, calls: str, spec: str = "", *sources: str, **options) -> Rule:
    held = tuple(
        Source(s, recursive=s.endswith("//")) if not s.endswith("//") else Source(s[:-1], recursive=True) for s in sources
    )
    options = {"verdict": Verdict.AUDIT, "policy": "p"} | options
    return Rule(id=f"p/{name}", entity=Entity.SYSCALL, target=Other(calls, spec), sources=held, **options)


def plan_of(*rules: Rule, profiles: tuple[Profile, ...] = (), realpath=lambda path: path) -> Plan:
    """A plan for a node with a workload for each profile."""
    placements = {f"/{index}": Placement(profile) for index, profile in enumerate(profiles)}
    return make_plan(RuleSet(rules=rules), 1, HASHER, X86, placements, realpath=realpath)


def bits(plan: Plan, program: str, profile: int = HOST_PROFILE) -> tuple[set[int], set[int]]:
    """The lookup of ``syscalls.bpf.c`` in the rows of one profile, in Python: (passed on, compared first)."""
    raw = plan.rows.get(encode_key(RowKind.PROGRAM, HASHER.path(program), profile))
    directory, kind = program.rpartition("/")[0], RowKind.DIRECT
    while raw is None:
        raw = plan.rows.get(encode_key(kind, HASHER.path(directory or "/"), profile))
        if not directory:
            break
        directory, kind = directory.rpartition("/")[0], RowKind.BELOW
    raw = raw or plan.rows.get(encode_key(RowKind.OTHER, 0, profile))
    return decoded(raw) if raw else (set(), set())


def decoded(raw: bytes) -> tuple[set[int], set[int]]:
    assert len(raw) == ROW_BYTES
    words = struct.unpack("=IIII64s64s", raw)[4:]
    calls, paths = (int.from_bytes(word, "little") for word in words)
    return {n for n in range(512) if calls >> n & 1}, {n for n in range(512) if paths >> n & 1}


# ---- reports -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("made", "status", "reason"),
    [
        (rule("a", "unlink,unlinkat"), "audited", ""),
        (rule("a", "unlink", HOME, "/usr/bin/rm"), "audited", ""),
        (rule("a", "unlink", verdict=Verdict.BLOCK, mode=Mode.AUDIT), "audited", ""),
        (rule("a", "unlink", verdict=Verdict.BLOCK), "audited", "rules on system calls audit, whatever their action"),
        (rule("a", "unlnk"), "impossible", "x86_64 has no system call unlnk"),
        (rule("a", "unlink,unlnk"), "degraded", "x86_64 has no system call unlnk"),
        (rule("a", "getpid", HOME), "impossible", "no path is given to getpid"),
        (rule("a", "getpid,unlink", HOME), "degraded", "no path is given to getpid"),
        (rule("a", "getpid,unlnk", HOME), "impossible", "x86_64 has no system call unlnk; no path is given to getpid"),
        (rule("a", "unlink", scope=WEB), "audited", ""),
        (rule("a", "unlink", scope=DB), "audited", NO_WORKLOAD),
        (rule("a", "unlink,unlnk", scope=DB), "degraded", f"x86_64 has no system call unlnk; {NO_WORKLOAD}"),
        (rule("a", "unlnk", scope=DB), "impossible", "x86_64 has no system call unlnk"),
        (rule("a", "unlink", verdict=Verdict.ALLOW), "inert", "an allow of system calls makes no list, and exempts nobody here"),
        (rule("a", "unlink", "", "/usr/bin/rm", verdict=Verdict.ALLOW, exempts=True), "audited", ""),
    ],
)
def test_report_says_what_becomes_of_a_rule_and_why(made, status, reason):
    (line,) = report_rules(RuleSet(rules=(made,)), X86, "x86_64", matched={WEB})

    assert (line.rule, line.status, line.reason, line.backend) == ("p/a", status, reason, "syscalls")


def test_report_says_that_workloads_are_not_told_apart_of_rules_for_workloads_alone():
    rules = RuleSet(rules=(rule("a", "unlink"), rule("b", "unlink", scope=WEB), rule("c", "unlnk", scope=WEB)))

    lines = report_rules(rules, X86, "x86_64", matched={WEB}, shortage="too many")

    assert [(line.status, line.reason) for line in lines] == [
        ("audited", ""),
        ("degraded", "too many"),
        ("impossible", "x86_64 has no system call unlnk"),
    ]


def test_calls_of_another_machine_are_not_taken_for_this_ones():
    (line,) = report_rules(RuleSet(rules=(rule("a", "unlink,unlinkat"),)), NUMBERS["aarch64"], "aarch64")

    assert (line.status, line.reason) == ("degraded", "aarch64 has no system call unlink")


def test_rules_of_other_kinds_are_left_out():
    target = PathTarget(PathKind.EXACT, "/etc/passwd")
    other = Rule(id="p/f", policy="p", entity=Entity.FILE, verdict=Verdict.BLOCK, target=target)

    assert report_rules(RuleSet(rules=(other,)), X86, "x86_64") == ()
    assert not plan_of(other).rules


# ---- the filter --------------------------------------------------------------------------------------------------------
def test_call_without_source_is_let_through_for_every_program():
    plan = plan_of(rule("a", "unlink"))

    assert bits(plan, "/usr/bin/rm") == ({UNLINK}, set())
    assert plan.sourced == frozenset()


def test_call_with_a_source_is_let_through_for_that_source_only():
    plan = plan_of(rule("a", "unlink", "", "/usr/bin/rm"), rule("b", "getpid", "", "/opt/", "/srv//"))

    assert bits(plan, "/usr/bin/rm") == ({UNLINK}, set())
    assert bits(plan, "/usr/bin/rmdir") == (set(), set())
    assert bits(plan, "/opt/tool") == ({GETPID}, set())
    assert bits(plan, "/opt/bin/tool") == (set(), set())
    assert bits(plan, "/srv/bin/deep/tool") == ({GETPID}, set())
    assert plan.sourced == {UNLINK, GETPID}


def test_unknown_program_counts_as_every_source():
    plan = plan_of(rule("a", "unlink", "", "/usr/bin/rm"), rule("b", "getpid", "", "/opt/"))

    assert decoded(plan.rows[encode_key(RowKind.UNKNOWN)]) == ({UNLINK, GETPID}, set())


def test_paths_of_calls_made_often_are_compared_in_the_kernel_and_those_of_others_are_not():
    plan = plan_of(rule("a", "openat,unlink", HOME), rule("b", "openat", '{"path":"/etc/passwd"}'))

    assert bits(plan, "/any") == ({UNLINK}, {OPENAT})
    assert plan.targets == {encode_target(p) for p in (b"/home/", b"/etc/passwd\0", b"/proc/", b"/dev/")}


def test_path_too_long_to_be_compared_is_not():
    plan = plan_of(rule("a", "openat", f'{{"path":"/{"x" * 300}"}}'))

    assert bits(plan, "/any") == ({OPENAT}, set())


def test_more_paths_than_the_kernel_holds_are_compared_in_user_space():
    plan = plan_of(*(rule(f"{i:04}", "openat", f'{{"path":"/etc/{i}"}}') for i in range(4095)))

    assert bits(plan, "/any") == ({OPENAT}, set())
    assert plan.targets == frozenset()


def test_allow_rules_make_no_call_seen():
    plan = plan_of(rule("a", "unlink", "", "/usr/bin/rm", verdict=Verdict.ALLOW))

    assert not plan.rules


PROGRAMS = ["/a", "/b", "/d/a", "/d/b", "/d/e/a", "/d/e/f/g"]
SOURCES = st.lists(st.sampled_from(["/a", "/d/a", "/d/", "/d//", "/d/e/", "/d/e//", "//"]), max_size=2, unique=True)


@given(st.lists(st.tuples(st.sampled_from(["unlink", "openat", "getpid"]), st.sampled_from(["", HOME]), SOURCES), max_size=6))
def test_filter_lets_through_exactly_the_calls_that_some_rule_names_for_the_program(made):
    rules = [rule(str(i), call, spec, *sources) for i, (call, spec, sources) in enumerate(made)]
    plan = plan_of(*rules)

    for program in PROGRAMS:
        wanted = {
            X86[r.target.value]
            for r in rules
            if isinstance(r.target, Other)
            and source_matches(r.sources, program)
            and not (r.target.spec and r.target.value == "getpid")
        }
        passed, compared = bits(plan, program)
        assert passed | compared == wanted


# ---- what rules say ----------------------------------------------------------------------------------------------------
def test_rule_speaks_of_the_path_that_it_names():
    plan = plan_of(rule("a", "unlink", HOME))

    found = plan.decide(UNLINK, "unlink", "/usr/bin/rm", ["/tmp/link/a", "/home/a"])

    assert found is not None
    assert found[0].rule is not None
    assert (found[0].rule.id, found[1]) == ("p/a", "/home/a")
    assert plan.decide(UNLINK, "unlink", "/usr/bin/rm", ["/tmp/a"]) is None
    assert plan.decide(UNLINK, "unlink", "/usr/bin/rm", [""]) is not None
    assert plan.decide(GETPID, "getpid", "/usr/bin/rm", []) is None


def test_rule_whose_path_is_a_link_speaks_of_the_link_and_of_what_it_leads_to():
    plan = plan_of(rule("a", "unlink", '{"path":"/bin/"}'), realpath=lambda path: path.replace("/bin", "/usr/bin"))

    assert plan.decide(UNLINK, "unlink", "", ["/bin/x"])
    assert plan.decide(UNLINK, "unlink", "", ["/usr/bin/x"])
    assert list(plan.suspects(0, UNLINK)) == ["p/a"]


def test_exempt_program_is_past_the_rules_of_its_policy():
    exempt = rule("b", "unlink", "", "/usr/bin/rm", verdict=Verdict.ALLOW, exempts=True)
    plan = plan_of(rule("a", "unlink"), exempt)

    assert plan.decide(UNLINK, "unlink", "/usr/bin/rm", ["/x"]) is None
    assert plan.decide(UNLINK, "unlink", "/usr/bin/python3", ["/x"]) is not None


def test_lost_record_is_counted_against_the_rules_that_may_have_spoken_of_it():
    plan = plan_of(rule("a", "unlink", "", "/usr/bin/rm"), rule("b", "unlink", HOME), rule("c", "getpid"))
    row = plan.samples.index((HOST_PROFILE, "/usr/bin/rm"))

    assert list(plan.suspects(row, UNLINK)) == ["p/a", "p/b"]
    assert list(plan.suspects(0, UNLINK)) == ["p/b"]
    assert list(plan.suspects(0, GETPID)) == ["p/c"]


# ---- for workloads -----------------------------------------------------------------------------------------------------
PROFILES = (frozenset({WEB}), frozenset({DB}), frozenset({WEB, DB}))
NUMBER = {profile: number for number, profile in enumerate(PROFILES, 2)}


def told(plan: Plan, call: int, name: str, source: str = "/usr/bin/rm", **inside: int) -> str:
    found = plan.decide(call, name, source, ["/x"], **inside)
    return found[0].rule.id if found and found[0].rule else ""


def test_rule_for_workloads_lets_calls_through_in_the_rows_of_those_alone():
    plan = plan_of(rule("a", "unlink", scope=WEB), rule("b", "getpid"), profiles=PROFILES)

    assert bits(plan, "/any") == ({GETPID}, set())
    assert {number: bits(plan, "/any", number)[0] for number in (UNKNOWN_PROFILE, *NUMBER.values())} == {
        UNKNOWN_PROFILE: {UNLINK},
        NUMBER[frozenset({WEB})]: {UNLINK},
        NUMBER[frozenset({DB})]: set(),
        NUMBER[frozenset({WEB, DB})]: {UNLINK},
    }
    assert plan.placed == {UNLINK}


def test_sources_of_a_rule_for_workloads_make_no_row_for_the_host():
    plan = plan_of(rule("a", "unlink", "", "/usr/bin/rm", scope=WEB), rule("b", "unlink", "", "/opt/"), profiles=PROFILES)
    web = NUMBER[frozenset({WEB})]

    assert (bits(plan, "/usr/bin/rm"), bits(plan, "/opt/x")) == ((set(), set()), ({UNLINK}, set()))
    assert (bits(plan, "/usr/bin/rm", web), bits(plan, "/opt/x", web)) == (({UNLINK}, set()), (set(), set()))


def test_rule_for_workloads_speaks_in_them_and_nowhere_else():
    plan = plan_of(rule("a", "unlink", scope=WEB), rule("b", "getpid"), profiles=PROFILES)
    web, db = NUMBER[frozenset({WEB})], NUMBER[frozenset({DB})]

    assert told(plan, UNLINK, "unlink") == ""
    assert told(plan, UNLINK, "unlink", profile=web) == "p/a"
    assert told(plan, UNLINK, "unlink", profile=db) == ""
    assert told(plan, UNLINK, "unlink", profile=UNKNOWN_PROFILE) == "p/a"
    assert told(plan, UNLINK, "unlink", profile=db, also=web) == "p/a"
    assert told(plan, UNLINK, "unlink", also=web) == "p/a"
    assert told(plan, GETPID, "getpid", profile=db) == "p/b"


def test_exemption_for_workloads_holds_in_them_and_not_in_unknown_ones():
    exempt = rule("b", "unlink", "", "/usr/bin/rm", verdict=Verdict.ALLOW, exempts=True, scope=WEB)
    plan = plan_of(rule("a", "unlink"), exempt, profiles=PROFILES)
    web, db = NUMBER[frozenset({WEB})], NUMBER[frozenset({DB})]

    assert [told(plan, UNLINK, "unlink", profile=profile) for profile in (HOST_PROFILE, web, db, UNKNOWN_PROFILE)] == [
        "p/a", "", "p/a", "p/a"
    ]  # fmt: skip
    assert told(plan, UNLINK, "unlink", profile=web, also=db) == "p/a", "what holds where it came from counts as well"


def test_lost_record_is_counted_against_the_rules_of_the_rows_that_let_it_through():
    plan = plan_of(rule("a", "unlink", scope=WEB), rule("b", "unlink"), rule("c", "unlink", scope=DB), profiles=PROFILES)
    rows = {profile: index for index, (profile, sample) in enumerate(plan.samples) if sample == "\0"}

    assert list(plan.suspects(rows[HOST_PROFILE], UNLINK)) == ["p/b"]
    assert list(plan.suspects(rows[NUMBER[frozenset({WEB})]], UNLINK)) == ["p/a"]
    assert list(plan.suspects(rows[UNKNOWN_PROFILE], UNLINK)) == ["p/a", "p/c"]


@given(
    st.lists(st.tuples(st.sampled_from([None, WEB, DB]), st.sampled_from(["unlink", "getpid"]), SOURCES), max_size=6),
    st.sampled_from([HOST_PROFILE, UNKNOWN_PROFILE, 2, 3, 4]),
)
def test_whatever_a_rule_says_of_a_caller_the_host_row_or_its_profiles_has_let_through(made, profile):
    plan = plan_of(
        *(
            rule(str(i), call, "", *sources, **({"scope": scope} if scope else {}))
            for i, (scope, call, sources) in enumerate(made)
        ),
        profiles=PROFILES,
    )

    for program in PROGRAMS:
        passed = bits(plan, program)[0] | (bits(plan, program, profile)[0] if profile else set())
        spoken = {X86[call] for call in ("unlink", "getpid") if told(plan, X86[call], call, program, profile=profile)}
        assert passed == spoken
