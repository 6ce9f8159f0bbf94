"""When a generation on trial stays and when it goes: by rules, and by a machine that plays every order of events."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from garrison.common import limits
from garrison.common.confirm import ConfirmTerms, parse_duration
from garrison.minion.verdict import Known, Origin, Verdict, judge, needs_master, soft_deadline

GOOD = Known(rounds=("", ""))
TERMS = ConfirmTerms()


def verdict(known: Known, terms: ConfirmTerms = TERMS, origin: Origin = Origin.LINK, left_s: float = 60) -> Verdict:
    return judge(known, terms, origin, left_s=left_s).verdict


@pytest.mark.parametrize(
    ("offline", "origin", "master"),
    [
        (None, Origin.LINK, True),
        (None, Origin.IMPORT, False),
        (False, Origin.LINK, True),
        (False, Origin.IMPORT, True),
        (True, Origin.LINK, False),
        (True, Origin.IMPORT, False),
    ],
)
def test_terms_and_origin_say_whether_probes_are_enough(offline, origin, master):
    terms = ConfirmTerms(offline=offline)

    assert needs_master(terms, origin) is master
    assert verdict(GOOD, terms, origin) is (Verdict.WAIT if master else Verdict.KEEP)
    assert verdict(msgspec.structs.replace(GOOD, master_confirmed=True), terms, origin) is Verdict.KEEP


def test_master_alone_is_not_enough_when_the_node_does_not_work():
    assert verdict(Known(master_confirmed=True)) is Verdict.WAIT
    assert verdict(Known(master_confirmed=True, rounds=("ssh: refused",))) is Verdict.WAIT


@pytest.mark.parametrize(
    ("rounds", "healthy"),
    [
        ((), False),
        (("",), False),
        (("", ""), True),
        (("bad", "", ""), True),
        (("", "bad", ""), True),
        (("", "", "bad"), False),
        (("bad", "bad", ""), False),
        (("", "", "bad", "bad", ""), False),
    ],
)
def test_probes_that_flap_count_by_the_newest_rounds(rounds, healthy):
    known = Known()
    for trouble in rounds:
        known = known.with_round(trouble)

    assert known.healthy is healthy


def test_probes_that_only_fail_end_the_trial_before_its_time():
    known = Known(master_confirmed=True)
    for _ in range(limits.PROBE_FAILURES_MAX):
        assert verdict(known) is Verdict.WAIT
        known = known.with_round("ssh: refused")

    found = judge(known, TERMS, Origin.LINK, left_s=60)
    assert (found.verdict, found.why) == (Verdict.GIVE_UP, "the node does not work under it: ssh: refused")


def test_what_is_missing_at_the_deadline_is_named():
    known = Known(rounds=("dns: timed out",), master_trouble="cannot reach tcp://m:1: timed out")

    found = judge(known, TERMS, Origin.LINK, left_s=0)

    assert found.verdict is Verdict.GIVE_UP
    assert "dns: timed out" in found.why
    assert "cannot reach tcp://m:1" in found.why


def test_agent_acts_before_the_deadman_does():
    assert soft_deadline(1000, 120) == 1000 - limits.CONFIRM_MARGIN_S
    assert soft_deadline(1000, 5) == 1000 - 1.25


@pytest.mark.parametrize(("text", "seconds"), [("120", 120), ("90s", 90), ("10m", 600), ("24h", 86_400), (" 5 s ", 5)])
def test_times_are_written_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "4s", "25h", "-5s", "1.5m", "ten", "1d", "9999999"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="must be"):
        parse_duration(text)


class TrialMachine(RuleBasedStateMachine):
    """Any order of news; the verdict must follow the rules at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.left_s = Known(), 120.0
        self.terms, self.origin = ConfirmTerms(), Origin.LINK
        self.all_rounds: list[str] = []

    @rule(offline=st.sampled_from([None, True, False]), origin=st.sampled_from(list(Origin)))
    @precondition(lambda self: self.known == Known())
    def come(self, offline, origin):
        self.terms, self.origin = ConfirmTerms(offline=offline), origin

    @rule(trouble=st.sampled_from(["", "", "ssh: refused"]))
    def look(self, trouble):
        self.all_rounds.append(trouble)
        self.known = self.known.with_round(trouble)

    @rule(name=st.sampled_from(["master_confirmed", "person_confirmed", "deadman_gone"]))
    def learn(self, name):
        self.known = msgspec.structs.replace(self.known, **{name: True})

    @rule()
    def be_refused(self):
        self.known = msgspec.structs.replace(self.known, master_refused="assigned something else")

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds):
        self.left_s -= seconds

    @invariant()
    def nothing_is_kept_without_what_it_takes(self):
        found = judge(self.known, self.terms, self.origin, left_s=self.left_s)
        if found.verdict is Verdict.KEEP:
            assert self.left_s > 0
            assert not self.known.deadman_gone
            probed = self.all_rounds[-1:] == [""] and self.all_rounds[-3:].count("") >= 2
            told = self.known.master_confirmed or not needs_master(self.terms, self.origin)
            assert self.known.person_confirmed or (probed and told and not self.known.master_refused)

    @invariant()
    def nothing_waits_for_ever(self):
        found = judge(self.known, self.terms, self.origin, left_s=self.left_s)
        if self.left_s <= 0 or self.known.deadman_gone:
            assert found.verdict is Verdict.GIVE_UP
        assert bool(found.why) is (found.verdict is not Verdict.WAIT)


TestTrialMachine = TrialMachine.TestCase
