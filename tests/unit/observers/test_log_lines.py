"""What counts as an error line, and what belongs to one message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.minion.observers import _log_lines
from garrison.minion.observers._log_lines import Joiner, is_error, priority_of_line

ERRORS = [
    b"2026-01-01 ERROR payment: the database went away",
    b"2024/01/01 12:00:00 [error] 7#7: *1 open() failed",
    b"[Mon Jan 01] [core:error] [pid 7] AH00126: Invalid URI",
    b'{"level":"error","msg":"x"}',
    b'time=x level=fatal msg="x"',
    b"E 12 CRITICAL disk",
    b"panic: runtime error: index out of range",
    b"make: error: no rule",
    b"Traceback (most recent call last):",
    b'Exception in thread "main" java.lang.Error',
    b"java.lang.IllegalStateException: no",
    b"app[7]: segfault at 0 ip 0",
]
OTHERS = [
    b"",
    b"INFO all well",
    b"0 errors found",
    b"ERROR_COUNT=0",
    b"TERRORS",
    b'{"level":"info","msg":"no error"}',
    b"GET /error.html 200",
    b"retrying after failure",
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("line", ERRORS)
def test_error_forms_count(line):
    assert is_error(line)


@pytest.mark.parametrize("line", OTHERS)
def test_other_lines_do_not(line):
    assert not is_error(line)


def test_critical_words_make_the_priority_worse():
    assert priority_of_line(b"FATAL: the end") == 2
    assert priority_of_line(b'{"level":"critical"}') == 2
    assert priority_of_line(b"ERROR: so so") == 3


words = st.sampled_from(
    [*ERRORS, *OTHERS, b" ", b"level=", b"[", b"]", b": ", b"Err", b"x", b"Out of memory:", b"core dumped", b"a.b.C"]
)


@given(st.lists(words, max_size=6).map(b"".join))
def test_quick_look_before_the_pattern_passes_over_no_error(line):
    assert is_error(line) == (_log_lines._PATTERN.search(line) is not None)


def messages(text):
    joiner = Joiner()
    found = [joiner.feed(line) for line in text.split(b"\n")] + [joiner.flush()]
    return [m for m in found if m is not None]


def test_traceback_is_one_message_with_the_error_line_before_and_the_exception_at_its_end():
    block = b'ERROR job failed\nTraceback (most recent call last):\n  File "x.py", line 1\n    f()\nValueError: bad'

    assert messages(block + b"\nINFO next\nERROR other") == [block, b"ERROR other"]


def test_stack_of_another_language_is_one_message():
    block = b"java.lang.IllegalStateException: no\n\tat a.B.c(B.java:1)\nCaused by: java.io.IOException: x\n\t... 3 more"

    assert messages(block + b"\nINFO next") == [block]


def test_endless_block_keeps_its_beginning_and_its_last_line():
    lines = [b"Traceback (most recent call last):", *(b"  %d" % n for n in range(10_000)), b"ValueError: the reason"]

    [message] = messages(b"\n".join(lines))

    assert message.count(b"\n") == limits.LOG_BLOCK_MAX_LINES - 1
    assert message.endswith(b"ValueError: the reason")


@given(st.lists(st.binary(max_size=200).filter(lambda b: b"\n" not in b), max_size=30))
def test_any_bytes_are_taken_and_nothing_is_invented(lines):
    joined = b"\n".join(messages(b"\n".join(lines))).split(b"\n")

    assert set(joined) <= {*lines, b""}
