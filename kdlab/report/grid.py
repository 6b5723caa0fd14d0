"""A published table and ours in one: every row measured, as printed, their difference, and the gain over no KD."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from kdlab.report import cells
from kdlab.report.document import Footnotes, Table
from kdlab.report.layout import Layout, Settings, fulfils, marked
from kdlab.report.results import DONE, Result

METRIC = "bleu"
NO_CELL = "-"  # as printed: there is no such cell; an empty one may be filled by us
NOT_RUN, AMBIGUOUS, OTHER_SIGNATURE = "not run", "ambiguous", "other signature"
MEASURED, PUBLISHED, DIFFERENCE, GAIN = "measured", "published", "difference", "gain over no KD"
PUBLISHED_GAIN = "published gain"

Labels = tuple[str, ...]


def grid(layout: Layout, results: Sequence[Result]) -> Table:
    """The table of a layout, four lines a row at most; lines with nothing to say are left out."""
    return _Grid(layout, results).table()


def measured(layout: Layout, results: Sequence[Result]) -> dict[tuple[Labels, str], list[float]]:
    """The scores behind the table's measured cells, one a seed, by labels and column."""
    values = _Grid(layout, results).values
    return {place: some for place, some in values.items() if some and not isinstance(some, str)}


class _Grid:
    def __init__(self, layout: Layout, results: Sequence[Result]):
        self.layout, self.lookup, self.notes = layout, cells.by_key(results), Footnotes()
        self.scored = [name for name, cell in layout.columns.items() if isinstance(cell, dict)]
        self.found = {
            (labels, column): self._matching(labels, column, results, None)
            for labels in layout.labels
            for column in layout.columns
        }
        self.subtracted = {
            (labels, column): self._matching(labels, column, results, layout.minus) if layout.minus else []
            for labels in layout.labels
            for column in self.scored
        }
        self.used = [result for some in (*self.found.values(), *self.subtracted.values()) for result in some]
        signatures = Counter(result.signature(METRIC) for result in self.used if result.state == DONE)
        self.signature = signatures.most_common(1)[0][0] if signatures else ""
        self.values = {
            (labels, column): self._values(labels, column) for labels in layout.labels for column in self.scored
        }

    def table(self) -> Table:
        layout = self.layout
        header = [*layout.rows, "", *(self._column(name) for name in layout.columns)]
        rows: list[list[str]] = []
        groups = []
        for labels in layout.labels:
            groups.append(len(rows))
            lines = self._lines(labels)
            told = [*labels[:-1], labels[-1] + self._marks(labels, None)]
            rows += [[*(told if line is lines[0] else [""] * len(told)), line[0], *line[1]] for line in lines]
        return Table(layout.title, header, rows, len(layout.rows) + 1, self._footnotes(), groups)

    def _lines(self, labels: Labels) -> list[tuple[str, list[str]]]:
        """What is said of one row."""
        columns = list(self.layout.columns)
        lines = []
        if self.layout.conditions(labels, columns[0]) is not None:
            lines.append((MEASURED, [self._measured(labels, column) for column in columns]))
        if any(self._printed(labels, column) for column in columns):
            shown = [self._printed(labels, column) + self._marks(labels, column) for column in columns]
            lines.append((PUBLISHED, shown))
        more = ((DIFFERENCE, self._difference), (GAIN, self._gain), (PUBLISHED_GAIN, self._published_gain))
        for what, line in more:
            told = [line(labels, column) if column in self.scored else "" for column in columns]
            if any(told):
                lines.append((what, told))
        return lines or [("", [""] * len(columns))]

    def _measured(self, labels: Labels, column: str) -> str:
        kind = self.layout.columns[column]
        if isinstance(kind, str):
            empty = self.layout.published and not self._printed(labels, column)
            return "" if empty else self._derived(labels, kind)
        found, values = self.found[labels, column], self.values[labels, column]
        if isinstance(values, str):
            return values
        if values:
            gaps = cells.gaps([*found, *self.subtracted[labels, column]])
            return cells.mean(values) + (self.notes.mark(f"Left out: {gaps}.") if gaps else "")
        if word := cells.state(found):
            return word + self.notes.mark(f"{cells.gaps(found)}.")
        return NOT_RUN if self._printed(labels, column) not in ("", NO_CELL) else ""

    def _values(self, labels: Labels, column: str) -> list[float] | str:
        """Scores by seed, or why there are none to show."""
        sides = [self.found[labels, column], *([self.subtracted[labels, column]] if self.layout.minus else [])]
        for side in sides:
            if len({result.arm() for result in side}) > 1:
                return AMBIGUOUS + self.notes.mark(f"Several arms fit: {_differing(side)}; tables.yaml must say which.")
            for signature in sorted({r.signature(METRIC) for r in side if r.state == DONE} - {self.signature}):
                return OTHER_SIGNATURE + self.notes.mark(f"Not comparable: scored with {signature or 'no signature'}.")
        by_seed = [cells.by_seed(side) for side in sides]
        scores = [{seed: result.score(METRIC) for seed, result in side.items()} for side in by_seed]
        known = [{seed: score for seed, score in side.items() if score is not None} for side in scores]
        if not self.layout.minus:
            return list(known[0].values())
        return [score - known[1][seed] for seed, score in known[0].items() if seed in known[1]]

    def _derived(self, labels: Labels, kind: str) -> str:
        places = [(labels, column) for column in self.scored]
        results = [
            one for place in places for one in (*self.found[place], *self.subtracted[place]) if one.state == DONE
        ]
        counts = cells.parameters(results[0].parameters) if results else ""
        ratio = cells.compression(results[0]) if results else ""
        if kind in ("max", "max_delta"):
            best, block = (
                self._best([labels]),
                self._best([other for other in self.layout.labels if other[0] == labels[0]]),
            )
            if best is None or block is None:
                return ""
            return f"{best:.1f}" if kind == "max" else "-" if best == block else cells.signed(best - block)
        if kind == "parameters/compression":
            return f"{counts.replace(' ', '')}/{ratio}" if ratio else ""
        return counts if kind == "parameters" else ratio

    def _best(self, rows: Sequence[Labels]) -> float | None:
        cells_of = (self.values[labels, column] for labels in rows for column in self.scored)
        means = [fmean(values) for values in cells_of if values and not isinstance(values, str)]
        return max(means, default=None)

    def _difference(self, labels: Labels, column: str) -> str:
        values = self.values[labels, column]
        try:
            printed = float(self._printed(labels, column))
        except ValueError:
            return ""
        return cells.signed(fmean(values) - printed) if values and not isinstance(values, str) else ""

    def _gain(self, labels: Labels, column: str) -> str:
        found, values = self.found[labels, column], self.values[labels, column]
        students = [result for result in found if result.model == "student"]
        return "" if self.layout.minus or isinstance(values, str) else cells.gain(students, self.lookup, METRIC)

    def _published_gain(self, labels: Labels, column: str) -> str:
        alone = (*labels[:-1], self.layout.no_kd or "")
        try:
            found = [float(self._printed(row, column)) for row in (labels, alone)]
        except ValueError:
            return ""
        return cells.signed(found[0] - found[1]) if labels != alone else ""

    def _matching(self, labels: Labels, column: str, results: Sequence[Result], where: Settings | None) -> list[Result]:
        conditions = self.layout.conditions(labels, column, where)
        none = not isinstance(self.layout.columns[column], dict) or self._printed(labels, column) == NO_CELL
        return [] if none or conditions is None else [one for one in results if fulfils(one, conditions)]

    def _printed(self, labels: Labels, column: str) -> str:
        return self.layout.published.get((labels, column), "")

    def _marks(self, labels: Labels, column: str | None) -> str:
        return "".join(self.notes.mark(note.text) for note in marked(self.layout, labels, column))

    def _column(self, name: str) -> str:
        notes = [note for note in self.layout.notes if note.column == name and not note.row]
        return name + "".join(self.notes.mark(note.text) for note in notes)

    def _footnotes(self) -> list[str]:
        lines = self.notes.lines() + [note.text for note in self.layout.notes if not note.row and not note.column]
        if self.signature:
            lines.append(f"BLEU: {self.signature}")
        return lines + cells.mixed(self.used)


def _differing(results: Sequence[Result]) -> str:
    """The settings in which results differ, with their values."""
    names = {name: None for result in results for name in ("model", *result.dials(), *result.more())}
    found = {name: sorted({str(result.fact(name)) for result in results}) for name in names}
    return ", ".join(f"{name} {' or '.join(values)}" for name, values in found.items() if len(values) > 1)
