"""What a grid will cost before it starts: the steps that are missing with their hours, from finished rows or from
arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from statistics import median

from kdlab import runtime
from kdlab.artifacts.stage import Step
from kdlab.artifacts.store import Store
from kdlab.report import facts
from kdlab.report.results import DONE, Result
from kdlab.sweep import work
from kdlab.sweep.cell import Cell

ROWS, RATE, ASSUMED, UNKNOWN = "finished rows", "operations, rate of rows", "operations, assumed rate", "not known yet"
# Operations a second where nothing is finished: of a CPU thread with models of 1 to 7 million parameters (4.6e10 to
# 9.5e10 measured, validation included); of a GPU with small models a guess.
ASSUMED_RATE = {"cpu": 6e10, "cuda": 2e13}
ASKED_OF_TEACHER = ("decode_sources", "cache_teacher")
EVALUATED = {"teacher": "evaluate_teacher", "baseline": "evaluate_baseline"}  # student: evaluate, student_2: evaluate_2

Place = tuple[str, str]  # stage and key
Rates = dict[str, dict[int, dict[str, float]]]  # operations a second by device, parameters of the model, key


@dataclass(frozen=True)
class Cost:
    """A missing step. `hours` of one device (a CPU thread, a GPU); None: not known. `stage` orders a table: 0 what is
    shared, 1 students, 2 their tests."""

    grid: str
    stage: int
    what: str
    objective: str
    num_steps: int
    hours: float | None
    known_from: str


class Finished:
    """Rows that are done, by the key of their evaluation."""

    def __init__(self, rows: Iterable[Result]):
        self.models: dict[str, list[Result]] = {}  # one row for each test
        for row in {(row.key, row.test): row for row in rows}.values():  # two experiments may hold the same model
            if row.state == DONE:
                self.models.setdefault(row.key, []).append(row)

    def hours(self, key: str | None, device: str) -> float | None:
        """What the training behind an evaluation took on such a device."""
        rows = self.models.get(key or "")
        return _hours(rows[0], device) if rows else None

    def hours_per_step(self, who: str, dials: dict[str, str], size: int | None, device: str) -> float | None:
        """Median over trainings of the same student in the same recipe, of the same objective where there are some."""
        alike = {row: _hours(row, device) for row in self._alike(who, dials, size) if row.max_steps}
        spent = {row: hours / int(row.max_steps) for row, hours in alike.items() if hours}
        same = [hours for row, hours in spent.items() if row.objective == dials["objective"]]
        return median(same or spent.values()) if spent else None

    def decoding_hours(self, who: str, dials: dict[str, str], size: int | None) -> float | None:
        """Median of what the tests of such a model took, by the clock."""
        alike = [self.models[row.key] for row in self._alike(who, dials, size)]
        spent = [
            sum(row.sentences / row.sentences_per_s / 3600 for row in rows if row.sentences and row.sentences_per_s)
            for rows in alike
        ]
        return median(spent) if any(spent) else None

    def _alike(self, who: str, dials: dict[str, str], size: int | None) -> list[Result]:
        wanted = (who, *(dials[name] for name in ("student", "recipe", "data")))
        first = [rows[0] for rows in self.models.values()]
        return [
            row
            for row in first
            if (row.model, row.student, row.recipe, row.data) == wanted
            and (None in (size, row.parameters) or row.parameters == size)
        ]


def costs(todo: Sequence[Cell], done: Sequence[Cell], rows: Iterable[Result], store: Store) -> dict[Place, Cost]:
    """Every missing step that takes time, once, under the first grid that needs it."""
    finished = Finished(rows)
    rates = _rates([*done, *todo], finished, store)
    found: dict[Place, Cost] = {}
    for cell in todo:
        for place, step in cell.missing(store).items():
            if place not in found and (cost := _cost(cell, step, finished, rates, store)) is not None:
                found[place] = cost
    return found


def _cost(cell: Cell, step: Step, finished: Finished, rates: Rates, store: Store) -> Cost | None:
    if step.stage in ASKED_OF_TEACHER:
        return Cost(cell.grid, 0, step.name, "", 0, *_by_rate(cell, step, rates, store))
    if step.stage == "evaluate_model":
        who = facts.role(step.name, cell.record)
        (model,) = (one for one in cell.point.steps if one.name == step.inputs["model"])
        hours = finished.decoding_hours(who, facts.dials(who, cell.record), _size(model))
        return Cost(cell.grid, 2, "translating the tests", "", 0, hours, UNKNOWN if hours is None else ROWS)
    if step.stage != "train_model":
        return None  # minutes at most: corpora, copies of models, a choice among hypotheses
    who, evaluation = _role(cell, step)
    dials, num_steps = facts.dials(who, cell.record), int(step.params["max_steps"])
    student, is_first = dials["student"], step.name == "pretrain"
    what = {"teacher": f"teacher {dials['teacher']}", "baseline": f"{student} alone", "student": student}[who]
    what = f"{student}, first steps" if is_first else what
    hours, known_from = finished.hours(cell.point.keys.get(evaluation), _device(step)), ROWS
    if hours is None and (each := finished.hours_per_step(who, dials, _size(step), _device(step))) is not None:
        hours = each * num_steps
    if hours is None:
        hours, known_from = _by_rate(cell, step, rates, store)
    return Cost(
        cell.grid, 0 if is_first or who == "teacher" else 1, what, dials["objective"], num_steps, hours, known_from
    )


def _role(cell: Cell, step: Step) -> tuple[str, str]:
    """Whose training it is, as reports say it, and the step that evaluates it (none has the name of `pretrain`'s)."""
    evaluation = EVALUATED.get(step.name, step.name.replace("student", "evaluate"))
    return ("baseline" if step.name == "pretrain" else facts.role(evaluation, cell.record)), evaluation


def _by_rate(cell: Cell, step: Step, rates: Rates, store: Store) -> tuple[float | None, str]:
    """Hours at the median rate of the finished models that are nearest in size: a small one computes less a second."""
    operations, size, device = work.of_step(cell, step, store), work.computing(cell, step, store), _device(step)
    if operations is None or size is None:
        return None, UNKNOWN
    if found := rates.get(device):
        nearest = min(found, key=lambda known: abs(log(known / size)))
        return operations / median(found[nearest].values()) / 3600, RATE
    return operations / ASSUMED_RATE[device] / 3600, ASSUMED


def _rates(cells: Sequence[Cell], finished: Finished, store: Store) -> Rates:
    """Operations a second of the finished trainings of these grids."""
    found: Rates = {}
    for cell in cells:
        for step in cell.point.steps:
            if step.stage != "train_model":
                continue
            device, key, size = _device(step), cell.point.keys.get(_role(cell, step)[1]), _size(step)
            hours = finished.hours(key, device)
            if key and size and hours and (operations := work.of_step(cell, step, store)):
                found.setdefault(device, {}).setdefault(size, {})[key] = operations / hours / 3600
    return found


def _size(step: Step) -> int | None:
    return work.parameters(step.params["model"]) if step.stage == "train_model" else None


def _device(step: Step) -> str:
    return runtime.device(step.local.get("device", "cpu"))


def _hours(row: Result, device: str) -> float | None:
    if (row.train_device == "cuda") != (device == "cuda"):
        return None
    return row.gpu_hours if device == "cuda" else row.cpu_hours
