"""A laid-out table as curves: our scores and the printed ones against the setting that its cells vary in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from kdlab.report import cells
from kdlab.report.document import Picture
from kdlab.report.grid import MEASURED, METRIC, PUBLISHED, Labels, measured
from kdlab.report.layout import Layout, Settings
from kdlab.report.results import METRICS, Result
from kdlab.report.summary import short
from kdlab.report.svg import COLOURS, Point, Series, chart

LEAST = 3  # values of a setting: two are two arms and no curve


def pictures(layout: Layout, results: Sequence[Result]) -> list[Picture]:
    """One chart: each line of the table in a colour, ours solid and the printed one dashed; none without such a setting
    or without a number."""
    setting = _axis(layout)
    ours = measured(layout, results)
    lines: dict[str, dict[str, list[Point]]] = {}
    for labels in layout.labels:
        for column in layout.columns:
            x = _value(layout, labels, column, setting) if setting else None
            if x is None:
                continue
            line = lines.setdefault(_name(layout, labels, column, setting), {MEASURED: [], PUBLISHED: []})
            if scores := ours.get((labels, column)):
                spread = stdev(scores) if len(scores) > 1 else 0.0
                line[MEASURED].append(Point(x, fmean(scores), spread, label=cells.mean(scores)))
            if (printed := _number(layout.published.get((labels, column)))) is not None:
                line[PUBLISHED].append(Point(x, printed, label=f"{printed:g}"))
    series = [
        Series(
            f"{name}, {origin}".removeprefix(", "),
            sorted(points, key=lambda point: point.x),
            colour,
            dash + 2 * (colour // len(COLOURS)),
        )
        for colour, (name, line) in enumerate(lines.items())
        for dash, (origin, points) in enumerate(line.items())
        if points
    ]
    if not series or setting is None:
        return []
    xs = [point.x for one in series for point in one.points]
    log = min(xs) > 0 and max(xs) >= 10 * min(xs)
    return [Picture(layout.title, chart(short(setting), METRICS[METRIC], series, log_x=log))]


def _axis(layout: Layout) -> str | None:
    """The setting that columns, or rows, give at least LEAST numbers."""
    columns = [cell for cell in layout.columns.values() if isinstance(cell, dict)]
    for group in (columns, *(list(known.values()) for known in layout.rows.values())):
        for name in dict.fromkeys(name for settings in group for name in settings):
            if len({settings[name] for settings in group if _is_number(settings.get(name))}) >= LEAST:
                return name
    return None


def _value(layout: Layout, labels: Labels, column: str, setting: str) -> float | None:
    """Where a cell lies on the axis; None for one that stands for no runs, or that knows no such number."""
    conditions = layout.conditions(labels, column) if isinstance(layout.columns[column], dict) else None
    found = [known[setting] for known in conditions or () if _is_number(known.get(setting))]
    return float(found[-1]) if found else None


def _name(layout: Layout, labels: Labels, column: str, setting: str | None) -> str:
    """What tells a line from the others: its labels, and its column, where they say more than the place on the axis."""
    levels: Iterable[tuple[str, Settings]] = (
        (label, known.get(label, {})) for label, known in zip(labels, layout.rows.values(), strict=True)
    )
    parts = [label for label, settings in levels if settings and setting not in settings]
    cells_of = [cell for cell in layout.columns.values() if isinstance(cell, dict)]
    if len(cells_of) > 1 and setting not in cells_of[0]:
        parts.append(column)
    return ", ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
