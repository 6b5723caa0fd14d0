"""Many points at once on an empty store: what they share is made once, also when its maker is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

NUM_POINTS = 12
POINT = [
    *("+debug=small", "until=teacher", "data.train.0.num_lines=800", "data.valid.num_lines=10"),
    *("teacher.max_steps=30", "trainer.val_every=30", "trainer.checkpoint_every=5", "trainer.tokens_per_step=300"),
]
TAKEN_OVER_WITHIN_S = 60  # a dead owner on the same machine is seen at once; the rest is a busy machine


def test_twelve_points_train_one_teacher_and_survive_the_death_of_its_maker(tmp_path):
    points = {}
    for seed in range(NUM_POINTS):
        command = [sys.executable, "-m", "kdlab.run", *POINT, f"seed={seed}"]
        with (tmp_path / f"{seed}.log").open("w") as log:
            points[seed] = subprocess.Popen(command, cwd=tmp_path, stderr=log, stdout=subprocess.DEVNULL)
    try:
        store = tmp_path / "store" / "train_model"
        wait(lambda: any(store.glob("*.work-*/scratch/*")))  # training, with a checkpoint behind it
        victim = holder(store)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        wait(lambda: holder(store) not in (None, victim) or any(store.glob("*/manifest.json")))
        assert time.monotonic() - killed < TAKEN_OVER_WITHIN_S
        codes = sorted(point.wait(timeout=300) for point in points.values())
    finally:
        for point in points.values():
            point.kill()
            point.wait()
    assert codes == [-signal.SIGKILL, *[0] * (NUM_POINTS - 1)]
    manifests = [json.loads(path.read_text()) for path in store.glob("*/manifest.json")]
    assert len(manifests) == 1 and manifests[0]["attempts"] == 2  # the second went on, ten others waited
    logs = [(tmp_path / f"{seed}.log").read_text() for seed in range(NUM_POINTS)]
    assert sum("resuming what an earlier run left" in log for log in logs) == 1
    assert sum("is making train_model" in log for log in logs) >= NUM_POINTS - 2


def holder(store: Path) -> int | None:
    """The process that holds the lock of the only result."""
    for lock in sorted(store.glob(".*.lock.*"), key=lambda path: int(path.suffix[1:]), reverse=True):
        try:
            return int(json.loads(lock.read_text())["pid"])
        except (OSError, ValueError, TypeError):
            continue
    return None


def wait(done, limit_s=200):
    until = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < until
        time.sleep(0.1)
