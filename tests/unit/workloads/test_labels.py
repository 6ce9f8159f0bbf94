"""Nobody's label can look like ours, outgrow its limits or carry what does not print."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.minion.workloads.labels import CONTAINER_NAME, foreign_labels, own_labels


def test_a_container_cannot_pass_itself_off_as_something_else() -> None:
    pairs = [("garrison/unit", "ssh.service"), (CONTAINER_NAME, "other"), ("garrison/kind", "unit"), ("app", "web")]

    assert foreign_labels(pairs, room=9) == (frozenset({"app=web"}), 3)


def test_labels_that_could_be_read_two_ways_are_left_out() -> None:
    assert foreign_labels([("a=b", "c"), ("", "x"), ("a", "b=c")], room=9) == (frozenset({"a=b=c"}), 2)


def test_too_long_a_label_is_left_out_and_never_cut() -> None:
    long = "x" * limits.WORKLOAD_LABEL_MAX_CHARS

    assert foreign_labels([("a", long), ("b", long[3:])], room=9) == (frozenset({f"b={long[3:]}"}), 1)


def test_the_same_labels_are_kept_whatever_the_order() -> None:
    pairs = [(f"k{n}", "v") for n in range(20)]

    assert foreign_labels(pairs, room=5) == foreign_labels(pairs[::-1], room=5)
    assert foreign_labels(pairs, room=5)[1] == 15
    assert foreign_labels(pairs, room=-1) == (frozenset(), 20)


@given(st.lists(st.tuples(st.text(), st.text()), max_size=40), st.integers(0, 30))
def test_whatever_comes_in_what_is_kept_prints_and_each_label_is_kept_or_counted(pairs, room) -> None:
    kept, left_out = foreign_labels(pairs, room=room)

    assert len(kept) <= room
    assert all(label.isprintable() and len(label) <= limits.WORKLOAD_LABEL_MAX_CHARS for label in kept)
    assert not any(label.startswith(("garrison/", f"{CONTAINER_NAME}=")) for label in kept)
    assert len(kept) + left_out <= len(pairs)
    assert left_out or {f"{k}={v}" for k, v in pairs} == kept


def test_our_own_labels_say_nothing_rather_than_something_that_does_not_print() -> None:
    assert own_labels([("garrison/image", "a\nb"), ("garrison/unit", ""), ("garrison/uid", "0")]) == {"garrison/uid=0"}
