"""`./dev bench` takes a bench's settings as SETTING=NUMBER and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("setting", ["nosuch=1", "nodes=many", "nodes", "nodes=-1"])
def test_setting_that_a_bench_does_not_have_is_refused_before_it_runs(setting):
    argv = [sys.executable, ROOT / "dev.d" / "bench.py", "fleet", setting]

    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "nodes=NUMBER" in done.stderr
