"""Starting ranks and telling them to stop; where sharded modules say they are."""

import signal
import subprocess
import sys
import time

import lightning
import torch

from kdlab.strategies.fsdp import _ShardedByUs

WAITS = """
import subprocess, sys
from kdlab.strategies import launch
child = (
    "import pathlib, signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), exit(0)));"
    "pathlib.Path('ready').touch(); time.sleep(60)"
)
launch.command = lambda *_: [sys.executable, "-c", child]
import pathlib
try:
    launch.launch("m", pathlib.Path("spec.json"), 2, 1)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_run_that_is_told_twice_still_waits_for_its_ranks(tmp_path):
    """SLURM tells every process of a job, and the shell of a batch script then tells the run again."""
    process = subprocess.Popen([sys.executable, "-c", WAITS], cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130


def test_a_sharded_module_knows_its_device_though_nothing_moves_it():
    class OnMeta(_ShardedByUs):
        root_device = torch.device("meta")

    module, strategy = lightning.LightningModule(), OnMeta(data_parallel_size=1, tensor_parallel_size=1)
    strategy.connect(module)
    strategy.model_to_device()
    assert module.device == torch.device("meta")
