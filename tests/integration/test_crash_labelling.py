"""A slice of crash_labelling.py: two processes, three moments, no byte changed."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "crash_labelling.py"


def test_labelling_that_is_killed_gives_the_bytes_of_an_uninterrupted_run():
    command = [sys.executable, str(SCRIPT), "--quick", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(": SIG") >= 3 and "rows; nothing left behind" in done.stdout
