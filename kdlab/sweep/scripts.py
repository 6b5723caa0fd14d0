"""Jobs as sbatch scripts: plain text that a user can read, change and submit by hand."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from kdlab.sweep.graph import REPORT, Job

ARRAY = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{parallel}
#SBATCH --output={logs}/{job}_%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{signal_s}
{resources}
# Each task is one line, from 0 on. They stand here because SLURM keeps a script as it was submitted: a task that starts
# days later, or again, is still the same, whatever was written or submitted meanwhile.
tasks=(
{tasks}
)
cd {here} || exit 1
export WANDB_RUN_GROUP={name_of_sweep}
{setup}
eval "set -- ${{tasks[SLURM_ARRAY_TASK_ID]}}"
{python} -m kdlab.run --point "$@" &
run=$!
# Before the time limit: leave, and go on at the same place when the task runs again.
trap 'kill -TERM $run; wait $run; scontrol requeue ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID; exit 0' USR1
trap 'kill -TERM $run; wait $run; exit 143' TERM
wait $run
"""

SINGLE = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={logs}/{job}_%j.log
#SBATCH --open-mode=append
{resources}
cd {here} || exit 1
{setup}
{command}
"""


def script(job: Job, *, sweep: str, folder: Path, cluster: dict[str, Any], report: list[str]) -> str:
    """The sbatch script of a job.

    Args:
        folder: of the sweep; logs lie in it.
        report: the arguments of the report command.
    """
    python = shlex.quote(sys.executable)
    fields = {
        "name": f"{sweep}-{job.name}",
        "job": job.name,
        "name_of_sweep": shlex.quote(sweep),
        "logs": shlex.quote(str((folder / "logs").resolve())),
        "here": shlex.quote(str(Path.cwd())),
        "setup": "\n".join(cluster["setup"]),
        "python": python,
    }
    if job.name == REPORT:
        command = f"{python} -m kdlab.report {shlex.join(report)}"
        return SINGLE.format(**fields, resources=_resources({**cluster, "gpus": 0, "cpus": 1}), command=command)
    return ARRAY.format(
        **fields,
        last=len(job.tasks) - 1,
        parallel=cluster["max_parallel"],
        signal_s=cluster["signal_s"],
        tasks="\n".join(shlex.quote(shlex.join(task.overrides)) for task in job.tasks),
        resources=_resources(cluster),
    )


def _resources(cluster: dict[str, Any]) -> str:
    """What a task asks for; what is null is left to the cluster."""
    asked = {
        "partition": cluster["partition"],
        "account": cluster["account"],
        "qos": cluster["qos"],
        "time": cluster["time_min"],
        "cpus-per-task": cluster["cpus"],
        "mem": None if cluster["mem_gb"] is None else f"{cluster['mem_gb']}G",
        "gres": f"gpu:{cluster['gpus']}" if cluster["gpus"] else None,
    }
    return "\n".join(f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None)
