"""What runs, waits, has failed or is done, told from the queue, the store and the logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdlab.artifacts.store import Store
from kdlab.sweep import slurm
from kdlab.sweep.graph import REPORT, Job, Task
from kdlab.sweep.record import Submitted

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESV_DEL_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class TaskState:
    """One task: `state` is done, running, waiting, failed, killed or not submitted; `note` its progress or its last
    line, behind what killed it."""

    job: str
    task: str
    point: str
    state: str
    note: str = ""


def states(sweep: Submitted) -> list[TaskState]:
    """The state of every task, jobs in their order; a report job has one task."""
    queued = slurm.queue(list(sweep.ids.values()))
    killed = slurm.killed(list(sweep.ids.values()))
    store = Store(sweep.store)
    found = []
    for job in sweep.jobs:
        for number, task in enumerate(job.tasks):
            found.append(_task_state(sweep, store, job, number, task, queued, killed))
        if job.name == REPORT:
            state = _queue_state(queued, sweep.ids.get(REPORT))
            found.append(
                TaskState(REPORT, "", "", state or "ended", "" if state else last_line(_log(sweep, REPORT, "")))
            )
    return found


def table(found: list[TaskState]) -> str:
    """Lines of job, task, state, point, note; then the count of each state."""
    rows = [("job", "task", "state", "point", ""), *((s.job, s.task, s.state, s.point, s.note) for s in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows]
    counts = {state: sum(s.state == state for s in found) for state in dict.fromkeys(s.state for s in found)}
    return "\n".join([*lines, "", ", ".join(f"{number} {state}" for state, number in counts.items())])


def _task_state(
    sweep: Submitted,
    store: Store,
    job: Job,
    number: int,
    task: Task,
    queued: dict[str, str],
    killed: dict[str, str],
) -> TaskState:
    def state(name: str, note: str = "") -> TaskState:
        return TaskState(job.name, str(number), task.point, name, note)

    if store.manifest(task.stage, task.key) is not None:
        return state("done")
    if job.name not in sweep.ids:
        return state("not submitted")
    name = f"{sweep.ids[job.name]}_{number}"
    in_queue, log = _queue_state(queued, name), _log(sweep, job.name, f"_{number}")
    if in_queue is None and name in killed:
        return state("killed", f"{killed[name]}; {last_line(log)}")
    if in_queue is None:
        return state("failed", last_line(log))
    return state(in_queue, last_line(log) if in_queue == "running" else "")


def _queue_state(queued: dict[str, str], task: str | None) -> str | None:
    state = queued.get(task or "")
    return None if state is None else "waiting" if state in WAITING else "running"


def _log(sweep: Submitted, job: str, task: str) -> Path:
    """Of this submission: in an earlier one the same number may have been another point."""
    return sweep.folder / "logs" / f"{job}_{sweep.ids.get(job)}{task}.log"


def last_line(log: Path) -> str:
    """The last thing that was said: an error, or the progress with its time left (bars return to the line's start)."""
    try:
        text = log.read_bytes()[-4096:].decode("utf-8", errors="replace")
    except FileNotFoundError:
        return "no log: it never started"
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    return next((line for line in reversed(lines) if line), "")
