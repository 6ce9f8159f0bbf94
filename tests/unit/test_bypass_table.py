"""The table of known tricks is what the tests say, and leaves none out."""

from __future__ import annotations

from pathlib import Path

from vm.bypass.table import KERNELS, NOT_RUN, TRICKS, Row, marks, read, render

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bypass.md"
MARKS = list(marks(ROOT / "tests" / "vm"))


def test_each_of_the_tricks_has_a_test() -> None:
    assert {row.number for row in MARKS} == set(TRICKS) == set(range(1, 26))


def test_page_has_a_row_for_each_marked_test_and_no_other() -> None:
    found = [(row.number, row.does, row.test) for row in read(PAGE.read_text())]

    assert found == [(row.number, row.does, row.test) for row in MARKS], "write it anew: ./dev vm-test -m bypass --bypass-table"


def test_page_is_written_by_the_command_and_by_nobody_else() -> None:
    text = PAGE.read_text()

    assert render(read(text)) == text


def test_each_row_was_seen_to_hold_on_both_kernels() -> None:
    assert {cell for row in read(PAGE.read_text()) for cell in row.found} == {"holds"}


def test_row_that_did_not_run_keeps_what_an_earlier_run_found() -> None:
    earlier = Row(3, "refuses", "a.py::test", ("holds", "FAILS"))
    now = Row(3, "refuses", "a.py::test", (NOT_RUN, "holds"))

    assert read(render([now], [earlier])) == [Row(3, "refuses", "a.py::test", ("holds", "holds"))]
    assert read(render([now])) == [now]
    assert len(KERNELS) == len(now.found)
