"""results.csv: one row per evaluated model and test set, all that a report needs once the runs themselves are gone.

A row that is done is never rewritten, only its blank cells are filled; rows of unfinished models are replaced. A file
may therefore grow over days and on several machines, and be committed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdlab import files
from kdlab.errors import UserError
from kdlab.report.facts import DIALS, text

DONE, FAILED, MISSING = STATES = ("done", "failed", "missing")
METRICS = {"bleu": "BLEU", "chrf": "chrF"}
Place = tuple[str, str]  # key and test set of a row


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model on one test set. Blank or None: it does not apply, or is not known.

    Units: bleu, chrf 0-100; *_p of the paired bootstrap against the row `baseline` (a key); cpu_hours of the training
    over all its attempts, gpu_hours of its wall clock on a GPU; sentences_per_s of decoding, by wall clock.
    """

    key: str
    test: str
    state: str = DONE
    model: str = "student"
    student: str = ""
    teacher: str = ""
    recipe: str = ""
    objective: str = ""
    init: str = ""
    data: str = ""
    temperature: str = ""
    mix: str = ""
    max_steps: str = ""
    seed: int | None = None
    settings: str = ""
    bleu: float | None = None
    bleu_signature: str = ""
    bleu_p: float | None = None
    chrf: float | None = None
    chrf_signature: str = ""
    chrf_p: float | None = None
    baseline: str = ""
    sentences: int | None = None
    parameters: int | None = None
    teacher_parameters: int | None = None
    train_pairs: int | None = None
    best_validation: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    sentences_per_s: float | None = None
    train_device: str = ""
    train_precision: str = ""
    device: str = ""
    precision: str = ""
    model_key: str = ""
    commit: str = ""
    command: str = ""
    error: str = ""

    def fact(self, name: str) -> str | None:
        """A setting as text: blank where the model does not answer to it, None where it is not recorded."""
        if name in DIALS or name in ("model", "test", "seed"):
            return text(getattr(self, name))
        return self.more().get(name)

    def dials(self) -> dict[str, str]:
        """The settings with a column of their own."""
        return {name: str(getattr(self, name)) for name in DIALS}

    def more(self) -> dict[str, str]:
        """The column `settings` by name."""
        return dict(part.split("=", 1) for part in self.settings.split())

    def arm(self) -> tuple[str, ...]:
        """What runs of one arm share, wherever they were made: all but seed, test, what was measured, and the settings
        that the model does not answer to (blank)."""
        return (self.model, *self.dials().values(), join({name: value for name, value in self.more().items() if value}))

    def score(self, metric: str) -> float | None:
        """bleu or chrf."""
        value: float | None = getattr(self, metric)
        return value

    def signature(self, metric: str) -> str:
        """What makes the score comparable."""
        return str(getattr(self, f"{metric}_signature"))

    def same_training(self, other: Result) -> bool:
        """Whether two rows of one model and test set are of one training: on another machine it has other scores."""
        scores = [(self.score(metric), other.score(metric)) for metric in METRICS]
        return all(one == two for one, two in scores if one is not None and two is not None)

    def p_value(self, metric: str) -> float | None:
        """Of the difference from the student alone."""
        value: float | None = getattr(self, f"{metric}_p")
        return value


FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Result)}


def finished(path: Path) -> set[str]:
    """Keys of the evaluations that a results.csv holds on all their tests; none where there is no such file."""
    results = read(path)
    return {result.key for result in results} - {result.key for result in results if result.state != DONE}


def read(path: Path) -> list[Result]:
    """The rows of a results.csv; none where there is no such file. Raises: UserError for another kind of file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        header, rows = reader.fieldnames or [], list(reader)
    if unknown := [name for name in header if name not in FIELDS] or sorted({"key", "test"} - set(header)):
        raise UserError(
            f"{path} has or lacks the column '{unknown[0]}', so it is no table of kdlab.report and would be "
            "overwritten; move it away, or give another folder with out=<folder>"
        )
    try:
        found = [Result(**{name: _value(FIELDS[name], row[name]) for name in header}) for row in rows]  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds a cell that cannot be read ({error}); restore the file from git") from error
    for number, (row, result) in enumerate(zip(rows, found, strict=True), start=1):
        if None in row or None in row.values() or result.state not in STATES:
            raise UserError(
                f"{path} row {number} ({row[header[0]]!r:.40}) lacks cells or has too many, or its state is no state: "
                "cut short, or left by a merge of git; mend it, since a report of the others would be a wrong one"
            )
    return found


def dump(results: Iterable[Result]) -> str:
    """Results as CSV; read() of it gives them back."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows([_cell(getattr(result, name)) for name in FIELDS] for result in results)
    return out.getvalue()


def write(path: Path, results: Sequence[Result]) -> None:
    """Writes results.csv where it changes; none while there is nothing in it."""
    content = dump(results)
    if (results or path.exists()) and (not path.exists() or path.read_text(encoding="utf-8") != content):
        files.write_text(path, content)


def union(tables: Iterable[Sequence[Result]]) -> list[Result]:
    """The rows of several tables; of a model that several have, that of the first where it is done, filled where blank.

    A p-value comes along only with the student alone that it was computed against, not to another training of it.
    """
    found: dict[Place, Result] = {}
    for table in tables:
        rows, before = _placed(table), dict(found)
        _add(found, table)
        for place, result in rows.items():
            alone = rows.get((result.baseline, result.test))
            if alone and not alone.same_training(found[alone.key, alone.test]):
                known = {f"{m}_p": before[place].p_value(m) if place in before else None for m in METRICS}
                found[place] = dataclasses.replace(found[place], **known)  # type: ignore[arg-type]
    return list(found.values())


def merge(old: Sequence[Result], new: Iterable[Result]) -> list[Result]:
    """Old rows in their order, filled where they were blank; then the new ones.

    Where there are new ones, old rows of unfinished models that no run stands behind any more are left out.
    """
    new = list(new)
    merged = _placed(result for result in old if result.state == DONE or not new)
    _add(merged, new)
    return list(merged.values())


def _placed(results: Iterable[Result]) -> dict[Place, Result]:
    return {(result.key, result.test): result for result in results}


def _add(merged: dict[Place, Result], new: Iterable[Result]) -> None:
    for result in new:
        place = (result.key, result.test)
        before = merged.get(place)
        if before is None or before.state != DONE:
            merged[place] = result
        elif result.state == DONE:
            merged[place] = _filled(before, result)


def _filled(old: Result, new: Result) -> Result:
    blank = [name for name in FIELDS if getattr(old, name) in ("", None)] if old.same_training(new) else []
    changes = {name: getattr(new, name) for name in blank}
    more = {**new.more(), **old.more()}  # new: a setting that the experiment's tables have named since
    changes["settings"] = join(more)
    for dial in DIALS:  # blank is a value there: the model does not answer to it
        changes.pop(dial, None)
    return dataclasses.replace(old, **changes)


def join(settings: dict[str, str]) -> str:
    """The text of the column `settings`."""
    return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))


def _cell(value: str | float | None) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _value(kind: str, cell: str) -> str | int | float | None:
    if kind == "str":
        return cell or ""
    return None if cell in ("", None) else int(cell) if kind.startswith("int") else float(cell)
