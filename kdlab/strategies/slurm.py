"""Ranks on several nodes of a SLURM job: srun starts one torchrun agent on each, and the agents find one another.

    the run --> srun (its place is taken by `start`) --> an agent on each node (this file as a program) --> ranks

The run's files, store and checkpoints must lie where all nodes see them. Nodes meet at MASTER_ADDR where it is set,
else at the first node of the step.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from kdlab import runtime
from kdlab.strategies import launch

OPTIONS = (
    "--overlap",  # the run itself may be a step of this job, and only waits
    "--cpu-bind=none",  # else an agent and its ranks are bound to the share of one task
    "--export=ALL",
    "--input=none",
    "--kill-on-bad-exit=1",  # no rank can go on alone
    "--wait=0",  # ranks that were told to stop leave one after another; the first may take longest to save
)


def start(module: str, spec: Path, devices: int, nodes: int) -> NoReturn:
    """Becomes the srun that starts `devices` ranks, equally many on each node."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    size = (f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1")
    program = (sys.executable, "-m", "kdlab.strategies.slurm", str(devices // nodes), str(port), module, str(spec))
    os.execvp("srun", ["srun", *size, *OPTIONS, *program])


def _node(devices: str, port: str, module: str, spec: str) -> int:
    """The agent of one node."""
    if not Path(spec).exists():
        runtime.say(
            f"{spec} is not there on {socket.gethostname()}, so this node cannot take a part in the training: the "
            "nodes of a job share files, not memory; write paths.store=<a folder that all nodes see>"
        )
        return 1
    address = os.environ.get("MASTER_ADDR") or first_host(os.environ["SLURM_STEP_NODELIST"])
    place = ("--nnodes", os.environ["SLURM_STEP_NUM_NODES"], "--node-rank", os.environ["SLURM_NODEID"])
    meet = ("--master-addr", address, "--master-port", port)
    return launch.watch(module, spec, *place, *meet, "--nproc-per-node", devices)


def first_host(nodes: str) -> str:
    """The first of nodes in SLURM's notation, e.g. n[1-2]."""
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


if __name__ == "__main__":
    sys.exit(_node(*sys.argv[1:]))
