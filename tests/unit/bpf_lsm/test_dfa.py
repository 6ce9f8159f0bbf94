"""The automaton says the same as the globs it was made of."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common.policy.glob import GlobError, check_glob, glob_matches
from garrison.minion.enforcers.bpf_lsm.dfa import DEAD, build_dfa

PIECES = st.sampled_from(
    ["/", "a", "b", "ab", "*", "**", "?", "/**/", "/**/**/", "[ab]", "[!a]", "[a-c]", "{a,b}", "{a/,}", "\\*", "é"]
)
PATTERNS = st.lists(PIECES, min_size=1, max_size=6).map(lambda parts: "/" + "".join(parts))
PATHS = st.text(alphabet="/abcé*", max_size=8).map(lambda text: "/" + text)


def legal(pattern: str) -> bool:
    try:
        check_glob(pattern)
    except GlobError:
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(patterns=st.lists(PATTERNS.filter(legal), min_size=1, max_size=6), paths=st.lists(PATHS, min_size=1, max_size=20))
def test_automaton_accepts_what_the_globs_match(patterns, paths):
    dfa = build_dfa(dict(enumerate(patterns)))

    for path in paths:
        found = dfa.accepted[dfa.walk(path.encode())]
        assert found == {n for n, pattern in enumerate(patterns) if glob_matches(pattern, path)}, path


def test_dead_state_is_final():
    dfa = build_dfa({7: "/etc/*.conf"})

    assert dfa.walk(b"/usr/a.conf") == 0
    assert dfa.accepted[dfa.walk(b"/etc/a.conf")] == {7}
    assert {dfa.step(DEAD, byte) for byte in range(256)} == {0}


def test_thousand_globs_stay_small():
    dfa = build_dfa({n: f"/opt/app{n}/**/*.so" for n in range(1000)})

    assert dfa.accepted[dfa.walk(b"/opt/app999/lib/x/y.so")] == {999}
    assert len(dfa.base) < 20_000
    assert len(dfa.next) < 8 * len(dfa.base)
