"""Preparing four times the corpus takes hardly more memory: nothing but hashes is kept of a pair."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def prepared(num_lines: int) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "bench_prepare_memory.py"), str(num_lines)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_peak_memory_hardly_grows_with_the_corpus():
    small, big = prepared(100_000), prepared(400_000)
    assert (small["rows_kept"], big["rows_kept"]) == (100_000, 400_000)
    assert small["peak_mib"] > small["before_mib"]  # the stage, and not what was there before, sets the peak
    assert big["peak_mib"] - small["peak_mib"] < 50
