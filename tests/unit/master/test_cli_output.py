"""What commands print of what nodes say."""

import pytest

from garrison.cli._text import harmless
from garrison.cli.run import _Printer, exit_code, outcome


def node(status="done", code=0, **more):
    return {"node": "n1", "status": status, "exit_code": code, "error": "", "dropped_bytes": 0, **more}


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([node()], 0),
        ([node(), node(code=3)], 1),
        ([node(code=-9)], 1),
        ([node(), node("unreachable", None)], 4),
        ([node(code=1), node("unreachable", None)], 1),
        ([node("lost", None)], 1),
        ([node("cancelled", None), node("unreachable", None)], 1),
    ],
)
def test_exit_code_says_the_worst_that_happened(nodes, code):
    assert exit_code(nodes) == code


def test_outcome_names_exit_code_reason_and_lost_output():
    assert outcome(node(code=3)) == "exit code 3"
    assert outcome(node("failed", None, error="no such user\x1b[2J", dropped_bytes=7)) == (
        "failed: no such user\ufffd[2J, 7 bytes of output dropped"
    )


def test_output_in_pieces_is_printed_by_line_with_the_nodes_name(capsys):
    printer = _Printer()
    for piece in (b"caf\xc3", b"\xa9\nsecond", b" line\nrest"):
        printer.take("n1", 1, piece)
    printer.take("n2", 2, b"other\n")
    printer.flush()

    said = capsys.readouterr()
    assert said.out == "n1: café\nn1: second line\nn1: rest\n"
    assert said.err == "n2: other\n"


def test_terminal_controls_of_a_node_are_shown_not_obeyed(capsys):
    _Printer().take("n1", 1, b"\x1b]0;owned\x07 a\tb\x9b2J\r\n")

    assert capsys.readouterr().out == "n1: \ufffd]0;owned\ufffd a\tb\ufffd2J\n"
    assert harmless("plain: ä→") == "plain: ä→"
