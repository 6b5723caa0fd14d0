"""Starting ranks and telling them to stop; where sharded modules say they are."""

import signal
import subprocess
import sys
import time

import lightning
import pytest
import torch

from kdlab import run, runtime
from kdlab.strategies import slurm
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


@pytest.mark.parametrize(
    ("variables", "nodes"),
    [({}, 1), ({"SLURM_JOB_NUM_NODES": "3"}, 3), ({"SLURM_JOB_NUM_NODES": "3", "SLURM_STEP_NUM_NODES": "1"}, 1)],
)
def test_ranks_go_to_the_nodes_of_the_step_or_else_of_the_job(monkeypatch, variables, nodes):
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.num_nodes() == nodes


def test_srun_starts_an_agent_a_node_and_an_agent_an_equal_share_of_the_ranks(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(slurm.os, "execvp", lambda program, arguments: started.append(arguments))
    slurm.start("a.module", tmp_path / "spec.json", 6, 3)
    command, program = started[0][: started[0].index(sys.executable)], started[0][started[0].index(sys.executable) :]
    assert command[:4] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1"]
    assert program[3] == "2" and program[5:] == ["a.module", str(tmp_path / "spec.json")]


def test_a_node_without_the_files_of_the_run_says_so(capsys, tmp_path):
    assert slurm._node("1", "2000", "a.module", str(tmp_path / "spec.json")) == 1
    assert "write paths.store=<a folder that all nodes see>" in capsys.readouterr().err


def test_ranks_that_cannot_be_dealt_out_evenly_are_refused_before_any_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.chdir(tmp_path)
    assert run.main(["+debug=small", "strategy=ddp", "strategy.devices=3"]) == 1
    assert "strategy.devices=3, but this SLURM job has 2 nodes" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
