"""Log files are followed through everything that happens to log files, with no line lost and none told twice."""

import os
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.common import limits
from garrison.minion.observers import _log_files
from garrison.minion.observers._log_files import LogFiles
from garrison.minion.observers._worker import Stop


@pytest.fixture
def stop():
    stop = Stop()
    yield stop
    stop.close()


class Follower:
    """A source and the messages that it gave."""

    def __init__(self, stop, *paths, position=None):
        self.stop, self.source, self.seen = stop, LogFiles(paths), []
        self.source.open(position)

    def turn(self, times=1):
        for _ in range(times):
            self.seen += [f.message for f in self.source.read(self.stop, 0)]
        return self.seen

    def end(self):
        position = self.source.position()
        self.source.close()
        return position


@pytest.fixture
def log(tmp_path):
    return tmp_path / "app.log"


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def test_what_was_there_before_the_first_start_is_not_told(log, stop):
    append(log, "ERROR old\n")
    follower = Follower(stop, log)

    append(log, "ERROR new\ninfo nothing\n")

    assert follower.turn(2) == ["ERROR new"]


def test_file_that_appears_later_is_read_from_its_beginning(log, stop):
    follower = Follower(stop, log)
    assert follower.turn() == []

    append(log, "ERROR first words\n")

    assert follower.turn(2) == ["ERROR first words"]


def test_file_that_appeared_while_the_agent_was_down_is_read_from_its_beginning(log, stop):
    position = Follower(stop, log).end()
    append(log, "ERROR while down\n")

    assert Follower(stop, log, position=position).turn(2) == ["ERROR while down"]


def test_renamed_file_is_read_to_its_end_before_the_new_one(log, stop):
    follower = Follower(stop, log)
    append(log, "ERROR 1\n")
    follower.turn(2)

    with log.open("a") as held:
        held.write("ERROR 2\n")
        held.flush()
        log.rename(log.with_name("app.log.1"))
        append(log, "ERROR 4\n")
        follower.turn(2)
        held.write("ERROR 3, written after the renaming\n")
        held.flush()
        follower.turn(2)

    assert follower.seen == ["ERROR 1", "ERROR 2", "ERROR 4", "ERROR 3, written after the renaming"]


def test_file_renamed_while_the_agent_was_down_is_read_to_its_end(log, stop):
    follower = Follower(stop, log)
    append(log, "ERROR 1\n")
    follower.turn(2)
    position = follower.end()
    append(log, "ERROR 2\n")
    log.rename(log.with_name("app.log.1"))
    append(log, "ERROR 3\n")

    assert Follower(stop, log, position=position).turn(3) == ["ERROR 2", "ERROR 3"]


def test_truncated_file_is_read_from_its_beginning(log, stop):
    follower = Follower(stop, log)
    append(log, "ERROR before\n" * 3)
    follower.turn(2)

    shutil.copy(log, log.with_name("app.log.1"))
    os.truncate(log, 0)
    append(log, "ERROR after\n")

    assert follower.turn(2)[3:] == ["ERROR after"]


def test_file_written_anew_in_place_and_longer_than_before_is_read_from_its_beginning(log, stop):
    follower = Follower(stop, log)
    append(log, "ERROR before\n")
    follower.turn(2)

    log.write_text("ERROR quite another text\nERROR and longer\n")

    assert follower.turn(2)[1:] == ["ERROR quite another text", "ERROR and longer"]


def test_other_file_with_the_same_inode_number_is_not_taken_for_the_old_one(log, stop):
    append(log, "x" * 100 + "\n")
    follower = Follower(stop, log)
    position = follower.end()
    inode = log.stat().st_ino
    log.write_text("ERROR another file's first line\n" + "y" * 200 + "\n")
    assert log.stat().st_ino == inode

    assert Follower(stop, log, position=position).turn(2) == ["ERROR another file's first line"]


def test_restart_neither_repeats_nor_skips(log, stop):
    follower = Follower(stop, log)
    append(log, "ERROR 1\nERROR 2\nERR")
    follower.turn(2)
    position = follower.end()
    append(log, "OR 3\nERROR 4\n")

    assert follower.seen + Follower(stop, log, position=position).turn(2) == ["ERROR 1", "ERROR 2", "ERROR 3", "ERROR 4"]


def test_line_without_an_end_waits_for_it(log, stop):
    follower = Follower(stop, log)

    append(log, "ERROR half")
    assert follower.turn(2) == []
    append(log, " and half\n")

    assert follower.turn(2) == ["ERROR half and half"]


def test_overlong_line_is_cut_once_and_the_next_one_is_whole(log, stop):
    follower = Follower(stop, log)

    append(log, "ERROR " + "x" * (3 * limits.LOG_LINE_MAX_BYTES))
    follower.turn()
    append(log, "ERROR in the middle of the long line\nERROR next\n")
    follower.turn(3)

    assert [m[:7] for m in follower.seen] == ["ERROR x", "ERROR n"]
    assert len(follower.seen[0].encode()) <= limits.LOG_MESSAGE_MAX_BYTES
    assert follower.source.counters["file_lines_cut"] == 1


def test_backlog_longer_than_one_turn_is_read_completely(log, stop):
    follower = Follower(stop, log)
    line = "ERROR " + "z" * 994 + "\n"
    append(log, line * 2500)

    follower.turn(5)

    assert len(follower.seen) == 2500


def test_unreadable_file_shows_and_leaves_the_others_alone(log, tmp_path, stop):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    follower = Follower(stop, fifo, log)

    append(log, "ERROR here\n")

    assert follower.turn(2) == ["ERROR here"]
    assert "not a regular file" in follower.source.error


@pytest.mark.parametrize("position", [7, [], {"x": 1}, "text"])
def test_malformed_position_counts_as_a_first_start(log, stop, position):
    append(log, "ERROR old\n")
    follower = Follower(stop, log, position=position if not isinstance(position, dict) else {str(log): position})

    append(log, "ERROR new\n")

    assert follower.turn(2) == ["ERROR new"]


step = st.sampled_from(["error", "half", "info", "trace", "rotate", "turn", "restart"])


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(step, max_size=40))
def test_any_order_of_writes_rotations_and_restarts_tells_every_error_once(tmp_path_factory, steps):
    """The model: every error line that was written completely is told exactly once, in order, per file."""
    folder = tmp_path_factory.mktemp("logs")
    log, stop = folder / "app.log", Stop()
    log.touch()
    follower, told, written, rotations = Follower(stop, log), [], [], 0
    for number, name in enumerate(steps):
        if name == "error":
            append(log, f"ERROR n{number}\n")
            written.append(f"n{number}")
        elif name == "half":
            append(log, f"ERROR n{number}")
            append(log, "\n")
            written.append(f"n{number}")
        elif name == "info":
            append(log, "INFO nothing\n")
        elif name == "trace":
            append(log, f"Traceback (most recent call last):\n  File x\nValueError: n{number}\n")
            written.append(f"n{number}")
        elif name == "rotate":
            rotations += 1
            follower.turn()  # two renamings between two looks lose the name of the one between
            log.rename(folder / f"app.log.{rotations}")
            log.touch()
        elif name == "turn":
            follower.turn()
        else:
            told += follower.seen
            follower = Follower(stop, log, position=follower.end())
    told += follower.turn(4)
    follower.end()
    stop.close()

    # A traceback right behind an error line is one message with it: so count the marks, not the messages.
    assert sorted(mark for message in told for mark in re.findall(r"\bn\d+\b", message)) == sorted(written)


def test_files_are_looked_at_often_enough_for_people():
    assert _log_files.LOOK_S <= 1
