"""Records of the kernel log and entries of the journal are read as their documents say, and any other bytes are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.minion.observers._journal import parse_entry
from garrison.minion.observers._kernel_log import Record, parse_record

# One line as journalctl 252 printed it.
ENTRY = {
    "_HOSTNAME": "vm",
    "SYSLOG_IDENTIFIER": "app",
    "__CURSOR": "s=0922edc1e145452da12824ff65c1e076;i=159;b=51cfd5e55d85469fb365c42e3ddc1a0f;m=53f270c1;t=6610f9ccd6d91;x=cf08",
    "PRIORITY": "3",
    "__MONOTONIC_TIMESTAMP": "1408397505",
    "_BOOT_ID": "51cfd5e55d85469fb365c42e3ddc1a0f",
    "MESSAGE": "disk on fire",
    "_COMM": "app",
    "_PID": "1890",
    "_TRANSPORT": "stdout",
    "_UID": "0",
    "_SYSTEMD_UNIT": "app.service",
    "__REALTIME_TIMESTAMP": "1795569543376273",
}


def entry(**changes):
    return json.dumps({**ENTRY, **changes}).encode()


def test_record_of_the_kernel_is_read():
    raw = b"3,341,1395020752,-;sd 0:0:0:0: [sda] I/O error\n SUBSYSTEM=scsi\n DEVICE=b8:0\n"

    assert parse_record(raw) == Record(3, 0, 341, 1395020752, "sd 0:0:0:0: [sda] I/O error", "b8:0")


def test_record_of_a_program_has_its_facility_and_extra_header_fields_are_passed_over():
    record = parse_record(b"30,7,9,c,caller=T1,new;systemd[1]: a;b\n")

    assert record == Record(6, 3, 7, 9, "systemd[1]: a;b")


@pytest.mark.parametrize("raw", [b"", b";", b"x,1,2,-;m", b"3,1;m", b"\xff\xff"])
def test_what_is_no_record_is_none(raw):
    assert parse_record(raw) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_none(raw):
    parse_record(raw)


def test_entry_of_the_journal_is_read():
    cursor, finding = parse_entry(entry())

    assert cursor == ENTRY["__CURSOR"]
    assert (finding.message, finding.priority, finding.object) == ("disk on fire", 3, "app.service")
    assert finding.ts == 1795569543376273000
    assert finding.data == {"unit": "app.service", "identifier": "app", "comm": "app", "pid": 1890, "uid": 0}


def test_entry_that_pid_1_wrote_about_a_unit_belongs_to_that_unit():
    assert parse_entry(entry(UNIT="db.service", _SYSTEMD_UNIT="init.scope"))[1].object == "db.service"


def test_message_that_is_no_text_comes_as_bytes():
    assert parse_entry(entry(MESSAGE=list(b"caf\xc3\xa9 \xff")))[1].message == "café \ufffd"
    assert parse_entry(entry(MESSAGE=None))[1].message == ""
    assert parse_entry(entry(MESSAGE=["a", "b"]))[1].message == "a b"


def test_entry_from_the_kernel_moves_the_cursor_and_is_not_told_twice():
    assert parse_entry(entry(_TRANSPORT="kernel")) == (ENTRY["__CURSOR"], None)


def test_entry_of_lesser_priority_is_not_told():
    assert parse_entry(entry(PRIORITY="4")) == (ENTRY["__CURSOR"], None)


@pytest.mark.parametrize("line", [b"", b"-- No entries --", b"[]", b"{}", b'{"__CURSOR": 1}', b"[" * 100_000])
def test_what_is_no_entry_is_none(line):
    assert parse_entry(line) is None


values = st.none() | st.text(max_size=20) | st.lists(st.integers(-5, 300) | st.text(max_size=3), max_size=5) | st.integers()


@given(st.dictionaries(st.sampled_from(sorted(ENTRY)), values))
def test_any_values_are_an_entry_or_none(changes):
    parse_entry(entry(**changes))
