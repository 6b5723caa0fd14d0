"""Which jobs a grid needs and in which order: shared steps once, then every student, then the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdlab.artifacts.stage import Step, needed, round_of

# Steps that many points share, upstream first; all are made before the students start, so that none waits for another.
SHARED = {
    "teacher": "evaluate_teacher",  # job: the step that it leads to
    "labels": "hypotheses",
    "choose": "pseudo_label",
    "cache": "cache_teacher",
    "pretrain": "pretrain",
}
STUDENTS = {"evaluate": "student", "evaluate_baseline": "baseline"}  # last step of a task: the step that trains
REPORT = "report"


@dataclass(frozen=True)
class Point:
    """One point of the grid: its overrides, its folder below paths.runs, its plan and the keys of the steps; `until`:
    the step that it was asked to stop after."""

    overrides: list[str]
    folder: str
    steps: list[Step]
    keys: dict[str, str]
    until: str | None = None


@dataclass(frozen=True)
class Task:
    """One command of a job; it is done when the result of `stage` and `key` is there."""

    overrides: list[str]
    point: str
    stage: str
    key: str


@dataclass(frozen=True)
class Job:
    """An array of commands. It starts when `after` has ended: well, or (`anyhow`) in whatever way."""

    name: str
    tasks: list[Task]
    after: str | None
    anyhow: bool = False


def jobs(points: Sequence[Point], done: Callable[[str, str], bool], label_tasks: int) -> list[Job]:
    """The jobs of a grid, upstream first, without what is done already.

    Args:
        done: whether the result of a stage and key is in the store.
        label_tasks: how many tasks share the decoding of one corpus.
    """
    found: list[Job] = []
    for name, last in SHARED.items():
        tasks = [task for task in _distinct(points, last) if not done(task.stage, task.key)]
        if name == "labels":
            tasks = [task for task in tasks for _ in range(label_tasks)]
        if tasks:
            found.append(Job(name, tasks, found[-1].name if found else None))
    students = [task for last in _lasts(points) for task in _distinct(points, last)]
    students = [task for task in students if not done(task.stage, task.key)]
    if students:
        # Anyhow: a failed teacher must not take the students of another along; they say themselves what they lack.
        found.append(Job("students", students, found[-1].name if found else None, anyhow=True))
    return [*found, Job(REPORT, [], found[-1].name if found else None, anyhow=True)]


def students(points: Sequence[Point]) -> list[Task]:
    """Every student that the grid trains, each once."""
    return [task for last in _lasts(points) for task in _distinct(points, last)]


def _lasts(points: Sequence[Point]) -> list[str]:
    """Last steps of tasks: the evaluations of students, those of later rounds too."""
    names = {step.name for point in points for step in point.steps}
    later = sorted((number, name) for name in names if (number := round_of(name)))
    return [*STUDENTS, *(name for _, name in later)]


def _distinct(points: Sequence[Point], last: str) -> list[Task]:
    """One task for each key of the step `last`; the first point that has it names it."""
    tasks: dict[str, Task] = {}
    for point in points:
        for step in needed(point.steps, point.until):
            if step.name == last:
                key = point.keys[last]
                tasks.setdefault(key, Task([*point.overrides, f"until={last}"], point.folder, step.stage, key))
    return list(tasks.values())
