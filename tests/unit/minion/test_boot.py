"""The boot counter: three bad boots in a row end in safe mode, safe mode ends by a decision, and no crash loses the count."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.common import limits
from garrison.common.errors import KernelError
from garrison.minion.boot import BootLog, BootRecord, Footing, applied, begin, confirmed, healthy


def boots(record: BootRecord, *outcomes: bool, first: int = 0) -> BootRecord:
    """Return the record after boots that became healthy or not."""
    for number, good in enumerate(outcomes, first):
        record = begin(record, f"boot-{number}")
        record = healthy(record) if good else record
    return record


def test_first_boot_is_sound():
    assert begin(BootRecord(), "a") == BootRecord(boot="a")


def test_three_failed_boots_in_a_row_lead_to_the_generation_before():
    record = begin(boots(BootRecord(), False, False, False), "next")

    assert (record.footing, record.failed) == (Footing.PREVIOUS, 3)


def test_two_failed_boots_are_not_enough():
    assert begin(boots(BootRecord(), False, False), "next").footing is Footing.SOUND


def test_good_boot_in_between_starts_the_count_again():
    assert begin(boots(BootRecord(), False, False, True, False, False), "next").footing is Footing.SOUND


def test_boot_that_fails_in_safe_mode_leads_to_nothing():
    record = begin(boots(BootRecord(), False, False, False, False), "next")

    assert record.footing is Footing.NOTHING


def test_good_boots_do_not_end_safe_mode():
    record = begin(boots(BootRecord(), False, False, False, True, True), "next")

    assert record.footing is Footing.PREVIOUS


@pytest.mark.parametrize("decision", [confirmed, applied])
def test_decision_ends_safe_mode_and_the_boot_has_to_prove_itself(decision):
    record = decision(boots(BootRecord(), False, False, False, False, True))

    assert (record.footing, record.failed, record.healthy) == (Footing.SOUND, 0, False)
    assert begin(boots(record, False, False, first=10), "next").footing is Footing.PREVIOUS


def test_agent_that_starts_again_within_a_boot_is_not_counted():
    record = begin(BootRecord(), "a")

    assert begin(begin(begin(record, "a"), "a"), "a") == record
    assert begin(healthy(record), "a").healthy


@given(st.lists(st.booleans(), max_size=30))
def test_safe_mode_comes_exactly_when_enough_boots_in_a_row_failed(outcomes):
    record = begin(boots(BootRecord(), *outcomes), "next")

    bad = "".join("g" if good else "b" for good in outcomes)
    assert record.safe_mode == ("b" * limits.BOOT_FAILURES_MAX in bad)
    # Nothing is only ever held after the generation before had its turn and failed, too.
    after = bad.partition("b" * limits.BOOT_FAILURES_MAX)[2]
    assert (record.footing is Footing.NOTHING) == ("b" in after)


def test_record_outlives_the_process(tmp_path: Path):
    BootLog(tmp_path).change(lambda record: begin(record, "a"))
    BootLog(tmp_path).change(lambda record: begin(record, "b"))

    assert BootLog(tmp_path).read() == BootRecord(boot="b", failed=1)


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b'{"footing": "loose"}', b"{", b"\xff"])
def test_damaged_record_counts_as_none_and_is_written_anew(tmp_path: Path, content: bytes):
    (tmp_path / "boot.json").write_bytes(content)
    log = BootLog(tmp_path)

    assert log.read() == BootRecord()
    assert log.change(lambda record: begin(record, "a")).boot == "a"
    assert log.read().boot == "a"


def test_part_file_of_an_interrupted_write_is_not_the_record(tmp_path: Path):
    BootLog(tmp_path).change(lambda record: begin(record, "a"))
    (tmp_path / ".boot.json.1.part").write_bytes(b'{"boot": "hal')

    assert BootLog(tmp_path).read().boot == "a"


def test_record_that_cannot_be_written_is_an_error_and_the_old_one_stands(tmp_path: Path):
    log = BootLog(tmp_path / "absent")

    with pytest.raises(KernelError):
        log.change(lambda record: begin(record, "a"))
    assert log.read() == BootRecord()
