"""Processes that die: the others end with them, one message says why, and the same command goes on exactly.

One case in every run of the tests; all of them with KDLAB_FAULTS=all (`make nightly`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TRAINING = [
    "recipe=train_only",
    "objective=nll",
    "student.dropout=0.1",
    "max_steps=24",
    "data.train.0.num_lines=800",
    "data.valid.num_lines=20",
    "data.tests.toy.num_lines=10",
    "vocab_size=200",
    "trainer.tokens_per_step=300",
    "trainer.microbatch_tokens=400",
    "trainer.val_every=12",
    "trainer.checkpoint_every=5",
    "trainer.log_every=1",
    "trainer.select=loss",
    "until=student",
]
ALL = [
    (strategy, how)
    for strategy in ("ddp", "zero1", "zero2", "zero3")
    for how in ("one rank", "all ranks", "torchrun", "the run", "SIGTERM", "SIGUSR1")
]
CASES = ALL if os.environ.get("KDLAB_FAULTS") == "all" else [("zero3", "one rank")]


def start(folder: Path, strategy: str) -> subprocess.Popen[str]:
    paths = [f"paths.store={folder}/store", f"paths.runs={folder}/runs"]
    command = [sys.executable, "-m", "kdlab.run", *TRAINING, f"strategy={strategy}", *paths]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def student(folder: Path) -> Path:
    (run,) = (folder / "runs").glob("*/*/run.json")
    step = json.loads(run.read_text())["steps"]["student"]
    return folder / "store" / step["stage"] / step["key"]


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def numbers(folder: Path) -> list[str]:
    """The log without what a process costs."""
    rows = (student(folder) / "metrics.csv").read_text().splitlines()
    return [row for row in rows if not any(name in row for name in ("tokens_per_s", "peak_memory"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """An uninterrupted run of each strategy, made when asked for."""
    made: dict[str, Path] = {}

    class Runs(dict[str, Path]):
        def __missing__(self, strategy: str) -> Path:
            folder = tmp_path_factory.mktemp(strategy)
            process = start(folder, strategy)
            said = process.communicate(timeout=300)[1]
            assert process.returncode == 0, said[-3000:]
            self[strategy] = folder
            return folder

    yield Runs(made)


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("pgrep"), reason="watches processes through /proc with pgrep"
)
@pytest.mark.parametrize(("strategy", "how"), CASES)
def test_a_run_whose_processes_die_ends_soon_and_goes_on_exactly(whole, tmp_path, strategy, how):
    reference = whole[strategy]
    shutil.copytree(reference / "store" / "prepare_corpus", tmp_path / "store" / "prepare_corpus")
    process = start(tmp_path, strategy)
    for _ in range(3000):
        logs = list((tmp_path / "store" / "train_model").glob("*.work-*/metrics.csv"))
        if process.poll() is not None or any("\n8," in log.read_text() for log in logs):
            break
        time.sleep(0.05)
    (agent,) = children(process.pid)
    ranks = children(agent)
    assert len(ranks) == 2

    begun = time.monotonic()
    if how in ("SIGTERM", "SIGUSR1"):
        process.send_signal(getattr(signal, how))
    victims = {"one rank": ranks[1:], "all ranks": ranks, "torchrun": [agent], "the run": [process.pid]}
    for victim in victims.get(how, ()):
        os.kill(victim, signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    while any(map(is_alive, [agent, *ranks])) and time.monotonic() - begun < 60:
        time.sleep(0.1)
    assert not any(map(is_alive, [agent, *ranks]))
    assert process.returncode == {"the run": -9, "SIGTERM": 130, "SIGUSR1": 130}.get(how, 1)
    told = [line for line in said.splitlines() if "kdlab: " in line and "run the same command" in line]
    assert len(told) == (how in ("one rank", "all ranks", "torchrun")) and "Traceback" not in said
    if how == "one rank":
        assert "rank 1 of the training was killed by SIGKILL" in told[0]

    again = start(tmp_path, strategy)
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and "student: resuming what an earlier run left" in said, said[-3000:]
    assert numbers(tmp_path) == numbers(reference)
    weights = [(student(folder) / "weights.safetensors").read_bytes() for folder in (tmp_path, reference)]
    assert weights[0] == weights[1]
