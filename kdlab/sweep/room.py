"""Whether what a task asks the cluster for has room for its trainings, by the arithmetic of kdlab.budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdlab.strategies import footprint
from kdlab.strategies.footprint import Layout
from kdlab.strategies.trainings import Training

JOBS = {"teacher": "teacher", "pretrain": "pretrain"}  # step: the job that trains it; all others are students'
# What a process has beside tensors: Python, torch, Lightning and a small corpus (517 MiB with a step of 54, measured).
PROCESS_BYTES = 485_000_000
GIB = 2**30  # SLURM's G


@dataclass(frozen=True)
class Request:
    """A training that a task will do, and what the task asks for.

    Args:
        step, point: its name in the plan, and the run that it belongs to.
        gpu_memory_gb: of each GPU, 1e9 bytes; None: it runs on the CPU.
        mem_gb: main memory of the task, 2^30 bytes; None: the cluster's own default, which nobody knows here.
    """

    step: str
    point: str
    training: Training
    layout: Layout
    num_devices: int
    gpu_memory_gb: float | None
    mem_gb: int | None

    def lacks(self) -> tuple[float, str] | None:
        """(GB that it needs more than there are, the sentence that says so), or None."""
        peak = footprint.memory(self.training, self.layout, self.num_devices).peak
        who = f"{self.step} of {self.point}"
        if self.gpu_memory_gb is not None:
            more = peak / 1e9 - self.gpu_memory_gb
            said = f"{who} needs {peak / 1e9:.1f} GB on a GPU, but cluster.gpu_memory_gb={self.gpu_memory_gb:g}"
            return (more, said) if more > 0 else None
        if self.mem_gb is None:
            return None
        needed = self.num_devices * (peak + PROCESS_BYTES) / GIB
        said = f"{who} needs {needed:.1f} GiB in {self.num_devices} processes, but cluster.mem_gb={self.mem_gb}"
        return (needed - self.mem_gb, said) if needed > self.mem_gb else None


def warnings(requests: Iterable[Request]) -> list[str]:
    """One line for each kind of job with a training that will not fit: the one that lacks most, and how many lack."""
    lacking: dict[str, list[tuple[float, str]]] = {}
    for request in requests:
        if (lack := request.lacks()) is not None:
            lacking.setdefault(JOBS.get(request.step, "students"), []).append(lack)
    return [
        f"warning: job {job} will not fit: {max(lacks)[1]} (trainings of this job that need too much: {len(lacks)}); "
        "python -m kdlab.budget shows what another strategy or a smaller trainer.microbatch_tokens needs"
        for job, lacks in lacking.items()
    ]
