"""Host patterns mean the same hosts as Ansible's own engine says, which answers here in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common.errors import InventoryError
from garrison.master.inventory import read_inventory
from garrison.master.inventory.patterns import split_pattern

ROOT = Path(__file__).resolve().parents[3]

TREE = """\
all:
  hosts:
    lonely:
  children:
    web:
      hosts:
        web-[01:05]:
    edge:
      hosts:
        edge-1:
        edge-2:
        web-02:
    db:
      hosts:
        db-1:
        db-2:
    west:
      children:
        web:
    site.a:
      hosts:
        edge-2:
        db-1:
    empty: {}
"""

ORACLE = """\
import json, sys
from ansible.parsing.dataloader import DataLoader
from ansible.inventory.manager import InventoryManager
manager = InventoryManager(loader=DataLoader(), sources=[sys.argv[1]])
for line in sys.stdin:
    pattern, limit = json.loads(line)
    try:
        manager.subset(limit)
        answer = [host.name for host in manager.get_hosts(pattern)]
    except Exception as err:
        answer = None
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    path = tmp_path_factory.mktemp("inv") / "hosts.yml"
    path.write_text(TREE)
    return path


@pytest.fixture(scope="module")
def ansible(tree):
    """Ask Ansible: (pattern, limit) → its hosts, or None for its refusal."""
    process = subprocess.Popen(
        [sys.executable, "-c", ORACLE, str(tree)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(tree.parent)},
    )

    def ask(pattern, limit=None):
        process.stdin.write(json.dumps([pattern, limit]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait(timeout=10)
    process.stdout.close()


@pytest.fixture(scope="module")
def inventory(tree):
    return read_inventory(tree)


def ours(inventory, pattern, limit=None):
    """Our answer in the oracle's form: an empty list and a refusal are both errors here."""
    try:
        return list(inventory.select(pattern, limit))
    except InventoryError:
        return []


PATTERNS = [
    "all",
    "*",
    "web",
    "web:edge",
    "web,edge",
    "web:&edge",
    "web:!edge",
    "!web",
    "&web",
    "web:edge:!db:&west",
    "web[0]",
    "web[-1]",
    "web[0:2]",
    "web[1:]",
    "web[0-1]",
    "web[9]",
    "web[2:1]",
    "west[1:2]:!web-03",
    "web-0*",
    "*-1",
    "e*",
    "site.a",
    "~web-0[13]",
    "~(edge|db)-1",
    "~.*-2:!edge",
    "lonely",
    "ungrouped",
    "web-0[1-3]",
    "edge-?",
    " web , db ",
    "web::edge",
    "nosuch",
    "nosuch:web",
    "empty",
    "~(",
    "web-02:web",
    "edge-1:edge-2",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_means_the_same_hosts_in_the_same_order_as_ansible(ansible, inventory, pattern):
    assert ours(inventory, pattern) == (ansible(pattern) or [])


@pytest.mark.parametrize("limit", ["edge", "!edge", "web[0:1],db", "@{file}", "@{file}:edge-2", "nosuch"])
def test_limit_means_the_same_hosts_as_ansible(ansible, inventory, tmp_path, limit):
    (tmp_path / "failed.txt").write_text("web-01\nweb-02\n\ndb\n")
    limit = limit.format(file=tmp_path / "failed.txt")

    assert ours(inventory, "all", limit) == (ansible("all", limit) or [])


names = st.sampled_from(["all", "web", "edge", "db", "west", "site.a", "web-01", "web-02", "edge-1", "lonely", "nosuch", "empty"])
globs = st.sampled_from(["*", "w*", "*-1", "web-0?", "e*e", "~web", "~.*2$", "~^(db|edge)", "*[12]", "web-0[!1]", "ungr*", "al*"])
subscripts = st.sampled_from(["", "", "", "[0]", "[1]", "[-1]", "[0:0]", "[0:1]", "[1:]", "[1:3]", "[7]"])
plain_terms = st.builds(lambda base, choose: base + choose, names, subscripts)
terms = st.builds(lambda sign, base: sign + base, st.sampled_from(["", "", "&", "!"]), plain_terms | globs)
patterns = st.builds(
    lambda parts, separator: separator.join(parts), st.lists(terms, min_size=1, max_size=5), st.sampled_from(":,")
)


@settings(max_examples=400, deadline=None)
@given(pattern=patterns)
def test_any_pattern_means_the_same_hosts_as_ansible(ansible, inventory, pattern):
    assert sorted(ours(inventory, pattern)) == sorted(ansible(pattern) or [])


@given(st.text(max_size=40))
def test_splitting_any_text_gives_terms_without_separators_or_refuses_nothing(text):
    for term in split_pattern(text):
        assert term == term.strip() != ""
        assert "," not in term


def test_pattern_without_hosts_names_the_groups_there_are(inventory):
    with pytest.raises(InventoryError, match="'nosuchgroup' matches no host") as caught:
        inventory.select("nosuchgroup")

    assert "web" in caught.value.hint
    assert "edge" in caught.value.hint


@pytest.mark.parametrize("pattern", ["", " ", ",", ":"])
def test_empty_pattern_means_nobody_though_ansible_takes_it_for_all(inventory, pattern):
    """An empty variable in a script must not become a command on the whole fleet."""
    with pytest.raises(InventoryError, match="matches no host"):
        inventory.select(pattern)


def test_misspelt_group_is_suggested(inventory):
    with pytest.raises(InventoryError) as caught:
        inventory.select("egde")

    assert caught.value.hint.startswith("did you mean edge?")


def test_limit_that_leaves_nobody_says_whom_the_pattern_means(inventory):
    with pytest.raises(InventoryError, match="leaves no host") as caught:
        inventory.select("edge", "db-2")

    assert "edge-1" in caught.value.hint


def test_terms_that_match_nothing_are_known_though_others_match(inventory):
    assert inventory.unmatched("edge:nosuch:!gone:all") == ("nosuch", "gone")


def test_limit_file_that_does_not_exist_is_an_error_that_names_it(inventory):
    with pytest.raises(InventoryError, match="/nonexistent"):
        inventory.select("all", "@/nonexistent")


def test_sample_inventory_has_exactly_two_edge_nodes():
    inventory = read_inventory(ROOT / "inventory")

    assert inventory.select("edge") == ("edge-1", "edge-2")
    assert len(inventory.select("cell")) == 18
    assert inventory.select("cloud:&gateway") == ("gw-1", "gw-2")
