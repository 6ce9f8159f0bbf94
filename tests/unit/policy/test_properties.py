"""What holds for every policy, by random ones."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common.policy.glob import GlobError, can_match, check_glob, glob_matches, literal_prefix
from garrison.common.policy.load import load_text
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.normalise import NodeFacts, normalise
from garrison.common.policy.rules import Entity, Mode, Posture, Postures, RuleSet, Verdict

NODE = NodeFacts("n")
PATHS = ["/a", "/a/b", "/a/b/c", "/b", "/b/a"]
PROGRAMS = ["/bin/x", "/bin/y"]

sources = st.lists(st.sampled_from([{"path": p} for p in PROGRAMS] + [{"dir": "/bin/"}]), max_size=2)
actions = st.sampled_from(["Allow", "Audit", "Block"])
flags = st.fixed_dictionaries({}, optional={"ownerOnly": st.just(True), "readOnly": st.just(True)})
common = st.fixed_dictionaries({"action": actions, "fromSource": sources}, optional={"severity": st.integers(1, 10)})
by_path = st.builds(lambda p, c, f: {"path": p, **c, **f}, st.sampled_from(PATHS), common, flags)
by_dir = st.builds(
    lambda p, r, c, f: {"dir": p + "/", "recursive": r, **c, **f}, st.sampled_from(PATHS), st.booleans(), common, flags
)
by_glob = st.builds(
    lambda p, c, f: {"pattern": p, **c, **f}, st.sampled_from(["/a/*", "/**/b", "/?", "/{a,b}/**"]), common, flags
)
spec_files = st.fixed_dictionaries(
    {
        "matchPaths": st.lists(by_path, max_size=3),
        "matchDirectories": st.lists(by_dir, max_size=2),
        "matchPatterns": st.lists(by_glob, max_size=2),
    }
)
policies = st.builds(
    lambda name, files: {
        "apiVersion": "security.kubearmor.com/v1",
        "kind": "KubeArmorHostPolicy",
        "metadata": {"name": name},
        "spec": {"nodeSelector": {"matchLabels": {"kubearmor.io/hostname": "*"}}, "file": files},
    },
    st.sampled_from(["one", "two"]),
    spec_files,
)
assigned = st.lists(st.tuples(policies, st.sampled_from(Mode)), min_size=1, max_size=4)
operations = st.builds(
    Operation,
    entity=st.just(Entity.FILE),
    path=st.sampled_from([*PATHS, "/a/b/c/d", "/c", ""]),
    source=st.sampled_from([*PROGRAMS, "/sbin/z", ""]),
    write=st.booleans(),
    is_owner=st.booleans(),
)
postures = st.builds(Postures, file=st.sampled_from(Posture))


def rules_of(documents, posture: Postures | None = None) -> RuleSet:
    loaded = [(load_text(json.dumps(document))[0], mode) for document, mode in documents]
    return normalise(loaded, NODE, posture).rules


@given(assigned, st.randoms(), postures)
def test_order_of_policies_and_of_their_lists_never_matters(documents, random, posture):
    before = rules_of(documents, posture)
    shuffled = []
    for document, mode in documents:
        files = {key: random.sample(value, len(value)) for key, value in document["spec"]["file"].items()}
        for match in (match for found in files.values() for match in found):
            match["fromSource"] = random.sample(match["fromSource"], len(match["fromSource"]))
        shuffled.append(({**document, "spec": {**document["spec"], "file": files}}, mode))
    random.shuffle(shuffled)

    assert rules_of(shuffled, posture) == before


@given(policies, st.sampled_from(Mode))
def test_ids_survive_every_way_to_write_the_same(document, mode):
    flow = json.dumps(document, indent=3)
    block = "# a comment\n---\n" + yaml.safe_dump(document, sort_keys=True, indent=4, width=20)

    one, two = (normalise([(load_text(text)[0], mode)], NODE).rules for text in (flow, block))

    assert one == two
    assert [rule.id for rule in one.rules] == sorted({rule.id for rule in one.rules})


@given(assigned, operations, postures)
def test_block_beats_everything_but_an_exemption_in_its_own_policy(documents, operation, posture):
    rules = rules_of(documents, posture)
    decision = decide(rules, operation)
    # Each rule by itself tells whether it fires or grants; the whole must follow from that.
    alone = {rule.id: decide(RuleSet(rules=(rule,), postures=Postures(file=Posture.AUDIT)), operation) for rule in rules.rules}
    blocks = {r.id: r for r in rules.rules if alone[r.id].verdict is Verdict.BLOCK}
    grants = [r for r in rules.rules if r.verdict is Verdict.ALLOW and alone[r.id].rule is r and not alone[r.id].by_posture]
    exempted = {r.policy for r in grants if r.sources}
    standing = [r for r in blocks.values() if r.sources or r.policy not in exempted]

    if standing:
        assert decision.verdict is Verdict.BLOCK
        assert decision.rule == min(standing, key=lambda rule: rule.id)
        assert not decision.by_posture
    elif decision.verdict is Verdict.BLOCK:
        assert decision.by_posture
        assert not grants


@given(assigned, operations)
def test_audit_mode_refuses_nothing(documents, operation):
    held = rules_of([(document, Mode.AUDIT) for document, _ in documents], Postures(file=Posture.BLOCK))

    assert decide(held, operation).verdict is not Verdict.BLOCK


@given(assigned, operations)
def test_adding_a_block_never_lets_more_through(documents, operation):
    rules = rules_of(documents)
    more = RuleSet(rules=tuple(r for r in rules.rules if r.verdict is not Verdict.BLOCK))

    if decide(more, operation).verdict is Verdict.BLOCK:
        assert decide(rules, operation).verdict is Verdict.BLOCK


# ---- globs against a matcher written another way -------------------------------------------------------------------------
def naive(pattern: str, path: str) -> bool:  # noqa: PLR0911 - one line for each sign
    """Walk both from the left, trying every length for stars."""
    if not pattern:
        return not path
    if pattern.startswith("/**/") and naive(pattern[3:], path):
        return True
    if pattern.startswith("**"):
        return any(naive(pattern[2:], path[i:]) for i in range(len(path) + 1))
    if pattern[0] == "*":
        end = path.find("/") if "/" in path else len(path)
        return any(naive(pattern[1:], path[i:]) for i in range(end + 1))
    if not path:
        return False
    if pattern[0] == "?":
        return path[0] != "/" and naive(pattern[1:], path[1:])
    if pattern.startswith("[ab]"):
        return path[0] in "ab" and naive(pattern[4:], path[1:])
    if pattern.startswith("[!a]"):
        return path[0] not in "a/" and naive(pattern[4:], path[1:])
    if pattern[0] == "\\":
        return path[0] == pattern[1] and naive(pattern[2:], path[1:])
    return path[0] == pattern[0] and naive(pattern[1:], path[1:])


patterns = st.lists(st.sampled_from(["a", "b", "/", "*", "**", "?", "[ab]", "[!a]", "\\*", "/**/", "."]), max_size=7).map(
    lambda parts: "/" + "".join(parts)
)
paths = st.text(alphabet="ab/*.", max_size=8).map(lambda text: "/" + text)


@settings(max_examples=400)
@given(patterns, paths)
def test_glob_agrees_with_a_naive_matcher(pattern, path):
    assert glob_matches(pattern, path) == naive(pattern, path)


@given(patterns, paths)
def test_everything_a_glob_matches_lies_below_its_literal_prefix(pattern, path):
    if glob_matches(pattern, path):
        assert path.startswith(literal_prefix(pattern))


@given(st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4), paths)
def test_alternatives_match_what_one_of_them_matches(choices, path):
    assert glob_matches("/{" + ",".join(choices) + "}/*", path) == any(glob_matches(f"/{one}/*", path) for one in choices)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/usr/bin/apt*", "/usr/bin/apt-get", True),
        ("/usr/bin/apt*", "/usr/bin/apt/x", False),
        ("/**/**/x", "/x", True),
        ("/a/**/b", "/a/b", True),
        ("/a/**/b", "/ab", False),
        ("**/passwd", "/etc/passwd", True),
        ("/etc/{shadow,gshadow}{,-}", "/etc/gshadow-", True),
        ("/[[]x", "/[x", True),
        ("/[]-]x", "/]x", True),
        ("/a\nb", "/a\nb", True),
        ("/x?", "/x/", False),
    ],
)
def test_globs_that_people_get_wrong(pattern, path, matches):
    assert glob_matches(pattern, path) is matches


@pytest.mark.parametrize(
    "pattern", ["etc/x", "/a[", "/a{b", "/a\\", "/[z-a]", "/" + "*" * 33, "/" + "{a,b}" * 9, "/" + "a" * 5000, "/a\0"]
)
def test_broken_and_exploding_globs_are_refused(pattern):
    with pytest.raises(GlobError):
        check_glob(pattern)


def test_glob_that_no_path_can_match_is_told_apart():
    assert not can_match("*.sh")
    assert can_match("**.sh")
    assert can_match("/*.sh")
