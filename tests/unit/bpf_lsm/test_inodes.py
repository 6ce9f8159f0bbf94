"""What the kernel must know about files of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from garrison.minion.enforcers.bpf_lsm.inodes import interpreter


def test_dynamic_linker_of_a_program_is_the_one_that_its_header_names() -> None:
    said = subprocess.run(["readelf", "-lW", sys.executable], check=True, capture_output=True, text=True).stdout

    assert f"[Requesting program interpreter: {interpreter(Path(sys.executable))}]" in said


def test_file_that_asks_for_no_linker_has_none(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")

    assert interpreter(script) == ""
