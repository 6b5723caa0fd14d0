"""tables.yaml of an experiment: how its results are laid out beside the published table, and what is known of that.

tables:
  - title: 1x1 students, WMT20
    published: published.csv           # the table as printed: label columns first, then one column per cell
    where: {test: wmt20}               # what all cells have in common
    rows: # label column -> label -> settings; every setting must hold, a list means any of its values
      arch: {Wide 1x1: {student: wide_1x1}}
      loss: {Baseline: {model: baseline}, KD+NLL: {model: student, weight_nll: 1}}
    columns: # column -> settings of its cells, or one of DERIVED below
      T=0.5: {temperature: 0.5}
      params: parameters
    no_kd: Baseline                    # optional: last label of the rows without KD, for published gains
    minus: {fraction: 1}               # optional: cells are differences from the same cells with this for `where`
    notes: # optional; footnotes, with `row` (labels from the left) and `column` at the cells that they are about
      - {row: [Wide 1x1], column: params, text: why it is wrong}
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from kdlab.errors import UserError, did_you_mean
from kdlab.report.facts import text
from kdlab.report.results import Result

DERIVED = ("parameters", "compression", "parameters/compression", "max", "max_delta")
KEYS = ("title", "published", "where", "rows", "columns", "no_kd", "minus", "notes")
FILE = "tables.yaml"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Note:
    """A footnote: to a row that begins with these labels, to a column, to their cell, or to the whole table."""

    text: str
    row: list[str] = field(default_factory=list)
    column: str | None = None


@dataclass(frozen=True)
class Layout:
    """One table of an experiment; `published` by (labels, column), empty without a published.csv."""

    title: str
    where: Settings
    rows: dict[str, dict[str, Settings]]
    columns: dict[str, Settings | str]
    labels: list[tuple[str, ...]]
    published: dict[tuple[tuple[str, ...], str], str]
    notes: list[Note]
    minus: Settings | None = None
    no_kd: str | None = None

    def conditions(self, labels: tuple[str, ...], column: str, where: Settings | None = None) -> list[Settings] | None:
        """What results of a cell fulfil; None for a row that is printed but stands for no runs."""
        found = [self.where if where is None else where]
        for known, label in zip(self.rows.values(), labels, strict=True):
            if known and label not in known:
                return None
            found.append(known.get(label, {}))
        cell = self.columns[column]
        return [*found, cell] if isinstance(cell, dict) else found

    def named(self) -> set[str]:
        """Every setting that the table asks for."""
        cells = [cell for cell in self.columns.values() if isinstance(cell, dict)]
        labels = [settings for known in self.rows.values() for settings in known.values()]
        return {name for settings in [self.where, self.minus or {}, *cells, *labels] for name in settings}


def fulfils(result: Result, conditions: list[Settings]) -> bool:
    """Whether a result fulfils all; one that does not answer to a setting (a blank cell) fulfils any value of it."""
    return all(_holds(result.fact(name), value) for settings in conditions for name, value in settings.items())


def read(folder: Path) -> list[Layout]:
    """The tables of an experiment's folder; none where it has no tables.yaml. Raises: UserError."""
    path = folder / FILE
    if not path.exists():
        return []
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
        return [_layout(folder, node) for node in found["tables"]]
    except (OmegaConfBaseException, YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not understood ({type(error).__name__}: {error}), so its tables cannot be laid out; "
            "write it as the head of kdlab/report/layout.py shows"
        ) from error


def _layout(folder: Path, node: dict[str, Any]) -> Layout:
    for key in node:
        if key not in KEYS:
            raise UserError(
                f"{folder / FILE}: unknown key '{key}'{did_you_mean(key, KEYS)}, which would be passed over; "
                f"write some of {', '.join(KEYS)}"
            )
    rows = {
        str(name): {str(label): known[label] or {} for label in known or {}} for name, known in node["rows"].items()
    }
    columns = {str(name): cell for name, cell in node["columns"].items()}
    for name, cell in columns.items():
        if not isinstance(cell, dict) and cell not in DERIVED:
            raise UserError(
                f"{folder / FILE}: column '{name}' is '{cell}', which nothing computes"
                f"{did_you_mean(str(cell), DERIVED)}; write settings, or one of {', '.join(DERIVED)}"
            )
    published = folder / node["published"] if "published" in node else None
    labels, printed = _published(published, list(rows), list(columns)) if published else ([], {})
    notes = [
        Note(note["text"], [str(label) for label in note.get("row", [])], note.get("column"))
        for note in node.get("notes", [])
    ]
    return Layout(
        title=node["title"],
        where=node.get("where", {}),
        rows=rows,
        columns=columns,
        labels=labels or list(product(*rows.values())),
        published=printed,
        notes=notes,
        minus=node.get("minus"),
        no_kd=node.get("no_kd"),
    )


def _published(
    path: Path, rows: list[str], columns: list[str]
) -> tuple[list[tuple[str, ...]], dict[tuple[tuple[str, ...], str], str]]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [*rows, *columns]:
            raise UserError(
                f"{path} has the columns {reader.fieldnames}, {FILE} beside it describes {[*rows, *columns]}; a cell "
                "would be set beside the wrong number; let both name the same columns in the same order"
            )
        labels: list[tuple[str, ...]] = []
        cells: dict[tuple[tuple[str, ...], str], str] = {}
        for line in reader:
            labels.append(tuple(line[name] for name in rows))
            cells |= {(labels[-1], column): line[column] or "" for column in columns}
    return labels, cells


def _holds(fact: str | None, wanted: Any) -> bool:
    if fact == "":
        return True
    return any(_same(fact, value) for value in (wanted if isinstance(wanted, list) else [wanted]))


def _same(fact: str | None, wanted: Any) -> bool:
    if fact is None or wanted is None:
        return fact in (None, "null") and wanted is None
    return fact == text(wanted) or (_number(fact) is not None and _number(fact) == _number(text(wanted)))


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def marked(layout: Layout, labels: tuple[str, ...], column: str | None) -> Iterator[Note]:
    """The notes to one published cell, or (None) to a row."""
    for note in layout.notes:
        if note.row and list(labels[: len(note.row)]) == note.row and note.column == column:
            yield note
