"""kill -9 at any moment and the same command again: the same weights, bit for bit, as without the kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OVERRIDES = [
    "recipe=hybrid",
    "baseline=false",
    "max_steps=40",
    "min_labelled=0",
    "teacher.max_steps=12",
    "data.train.0.num_lines=1500",
    "data.valid.num_lines=60",
    "data.tests.toy.num_lines=40",
    "vocab_size=400",
    "trainer.tokens_per_step=600",
    "trainer.microbatch_tokens=700",
    "trainer.val_every=10",
    "trainer.checkpoint_every=7",
    "trainer.log_every=5",
    "trainer.average=2",
    "trainer.threads=1",
    "trainer.device=cpu",
    "label_decode=greedy",
    "decode=greedy",
]


def command(folder: Path, *more: str) -> list[str]:
    paths = [f"paths.store={folder}/store", f"paths.runs={folder}/runs"]
    return [sys.executable, "-m", "kdlab.run", *OVERRIDES, *paths, *more]


def finish(folder: Path, *more: str) -> str:
    done = subprocess.run(command(folder, *more), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def student(folder: Path) -> Path:
    (run,) = (folder / "runs").glob("*/*/run.json")
    step = json.loads(run.read_text())["steps"]["student"]
    return folder / "store" / step["stage"] / step["key"]


def rows(folder: Path) -> int:
    """Rows of metrics.csv that the student under way has written."""
    found = list((folder / "store" / "train_model").glob("*.work-*/metrics.csv"))
    return max((len(path.read_text().splitlines()) for path in found), default=0)


def kill_at(folder: Path, row: str, number: int) -> int:
    """Starts the command and sends it a signal when a row of metrics.csv begins so; its exit code."""
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 120:
        logs = (folder / "store" / "train_model").glob("*.work-*/metrics.csv")
        if any(row in path.read_text() for path in logs):
            break
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return folder


@pytest.mark.parametrize(
    ("kill_after_step", "number", "code"),
    [(5, signal.SIGKILL, -9), (12, signal.SIGTERM, 130), (26, signal.SIGKILL, -9), (39, signal.SIGKILL, -9)],
)
def test_killed_and_resumed_is_bit_identical(uninterrupted, tmp_path, kill_after_step, number, code):
    """Killed before the first checkpoint, between checkpoints, after a validation, near the end."""
    # the finished steps before the student are shared: only the student is under test
    for stage in ("prepare_corpus", "decode_sources", "pseudo_label", "train_model"):
        (tmp_path / "store").mkdir(exist_ok=True)
        for artefact in (uninterrupted / "store" / stage).iterdir():
            if artefact != student(uninterrupted):
                (tmp_path / "store" / stage).mkdir(exist_ok=True)
                os.symlink(artefact, tmp_path / "store" / stage / artefact.name)
    finished = tmp_path / "store" / "train_model" / student(uninterrupted).name / "manifest.json"
    for _ in range(3):  # a busy machine may let a run end before we look
        found = kill_at(tmp_path, f"\n{kill_after_step - kill_after_step % 5},", number)
        if not finished.exists():
            assert found == code
            break
        shutil.rmtree(finished.parent)
    assert not finished.exists() and rows(tmp_path) > 1, "the run was not killed in the middle of its training"

    assert "student: resuming what an earlier run left" in finish(tmp_path)
    ours, whole = student(tmp_path), student(uninterrupted)
    assert ours.name == whole.name
    assert (ours / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()

    def without_costs(path: Path) -> list[str]:
        told = ("tokens_per_s", "peak_memory_mib")  # of the process, not of the training
        return [row for row in path.read_text().splitlines() if not any(name in row for name in told)]

    assert without_costs(ours / "metrics.csv") == without_costs(whole / "metrics.csv")


def test_a_second_run_reuses_every_step(uninterrupted):
    said = finish(uninterrupted)
    assert said.count(": reuse ") >= 5 and ": run " not in said
