"""The cluster's own commands: sbatch, squeue, scancel, sacct, scontrol.

Each call has a time limit, for a controller may not answer.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kdlab.errors import UserError

TIMEOUT_S = 60
KILLED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")


def submit(script: Path, *, after: str | None, anyhow: bool) -> str:
    """Submits a script and returns the job's id; `after` is the id of the job that it waits for."""
    depends = [] if after is None else [f"--dependency={'afterany' if anyhow else 'afterok'}:{after}"]
    return _run(["sbatch", "--parsable", "--kill-on-invalid-dep=yes", *depends, str(script)]).split(";")[0].strip()


def check(script: Path) -> None:
    """Lets the cluster say whether it would take a script. Raises: UserError with its answer."""
    _run(["sbatch", "--test-only", str(script)])


def queue(jobs: Sequence[str]) -> dict[str, str]:
    """State (PENDING, RUNNING, ...) of every task that waits or runs, by `<job>_<task>`, or `<job>` without array."""
    if not jobs:
        return {}
    found: dict[str, str] = {}
    for line in _run(["squeue", "--noheader", "--array", "--format=%i %T"]).splitlines():
        task, _, state = line.strip().partition(" ")
        if task.partition("_")[0] in jobs:
            found[task] = state
    return found


def killed(jobs: Sequence[str]) -> dict[str, str]:
    """By what tasks were killed that could not say so themselves (OUT_OF_MEMORY, TIMEOUT, ..., SIGKILL), named as in
    `queue`; as long as the cluster knows: its accounts, or, where it keeps none, its controller for some minutes."""
    if not jobs:
        return {}
    found: dict[str, str] = {}
    for task, state, code in _accounts(jobs) or _records(jobs):
        exit_code, _, number = code.partition(":")
        by_signal = int(number) or int(exit_code) - 128  # of the script; of the run that it waited for
        if state in KILLED:
            found[task] = state
        elif state == "FAILED" and by_signal in set(signal.Signals):
            found[task] = signal.Signals(by_signal).name
    return found


def _accounts(jobs: Sequence[str]) -> list[tuple[str, str, str]]:
    """(task, state, exit code:signal) as sacct knows them."""
    asked = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode", f"--jobs={','.join(jobs)}")
    rows = [line.split("|") for line in _ask("sacct", *asked).splitlines()]
    return [(task, state.partition(" ")[0], code) for task, state, code in rows]  # "CANCELLED by 0"


def _records(jobs: Sequence[str]) -> list[tuple[str, str, str]]:
    """The same as scontrol knows it."""
    found = []
    for job in jobs:
        for line in _ask("scontrol", "--oneliner", "show", "job", job).splitlines():
            fields = dict(re.findall(r"(ArrayTaskId|JobState|ExitCode)=(\S+)", line))
            task = f"{job}_{fields['ArrayTaskId']}" if "ArrayTaskId" in fields else job
            found.append((task, fields["JobState"], fields["ExitCode"]))
    return found


def _ask(*command: str) -> str:
    """What a command says; nothing where it is missing, refuses or does not answer."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def cancel(jobs: Sequence[str]) -> None:
    """Ends what waits or runs of these jobs; what has ended is no error."""
    if jobs:
        _run(["scancel", *jobs])


def _run(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no {command[0]} here, so nothing can be asked of SLURM; run this on a machine of the cluster, "
            "or run the grid without it: python -m kdlab.run -m <the same overrides>"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} has not answered for {TIMEOUT_S} s, so the state of the jobs is unknown; ask again when the "
            "cluster's controller is there"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
        raise UserError(
            f"SLURM refuses {' '.join(command[:2])} ... ({said}); look at the cluster.* values and at {command[-1]}"
        )
    return done.stdout
