"""A point of a grid as one machine runs it: its plan, the experiment that gets its rows, the evaluations they need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdlab.artifacts.stage import Step, needed, round_of
from kdlab.artifacts.store import Store
from kdlab.sweep.graph import Point

ALONE = "evaluate_baseline"


@dataclass(frozen=True)
class Cell:
    """A point of a grid; `record` has what run.json will say: config, choices, steps."""

    grid: str
    point: Point
    record: dict[str, Any] = field(repr=False)

    @property
    def experiment(self) -> str:
        """Whose results.csv gets its rows."""
        return str(self.record["config"]["name"])

    @property
    def seed(self) -> int:
        """Of the student."""
        return int(self.record["config"]["seed"])

    @property
    def evaluations(self) -> dict[str, str]:
        """Step and key of each evaluation that makes a row of a student, or of the student alone."""
        names = [step.name for step in needed(self.point.steps, self.point.until)]
        return {n: self.point.keys[n] for n in names if n in ("evaluate", ALONE) or round_of(n) is not None}

    def is_done(self, finished: set[str]) -> bool:
        """Whether all its rows are among the finished keys."""
        return bool(self.evaluations) and set(self.evaluations.values()) <= finished

    def missing(self, store: Store) -> dict[tuple[str, str], Step]:
        """The steps that it would make now, upstream first, by stage and key."""
        planned = store.plan(self.point.steps, self.point.until)
        return {(step.stage, key): step for step, key, state in planned if state == "run"}
