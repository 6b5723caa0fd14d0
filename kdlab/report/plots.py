"""The pictures of a report: score against every setting that varies, training curves, quality by speed and size."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from kdlab.report import cells
from kdlab.report.collect import Row
from kdlab.report.document import Picture
from kdlab.report.results import DONE, Result
from kdlab.report.summary import MODELS, label, names, order, short
from kdlab.report.svg import Point, Series, chart

METRIC, TITLE = "bleu", "BLEU"
CURVE = "valid/bleu"
LINES = 8  # training curves in one chart


def pictures(results: Sequence[Result], rows: Sequence[Row]) -> list[Picture]:
    """All that the data allow; nothing for a setting that takes one value. Rows: the runs, for training curves."""
    done = [result for result in results if result.state == DONE and result.score(METRIC) is not None]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in done:
        groups.setdefault((result.test, result.signature(METRIC)), []).append(result)
    found = []
    for (test, _), some in sorted(groups.items()):
        for setting in _numeric(some):
            found += _against(setting, test, some)
        found += _pareto(test, some)
    return found + _training(done, rows)


def _numeric(results: Sequence[Result]) -> list[str]:
    """Settings with several values, all of them numbers; of settings without a column of their own at least three."""
    candidates = dict.fromkeys(["temperature", "mix", *(name for one in results for name in one.more()), "max_steps"])
    found = []
    for name in candidates:
        values = {one.fact(name) for one in results} - {"", None}
        least = 2 if name in ("temperature", "mix") else 3  # two weights are two arms and no curve
        if len(values) >= least and all(_number(value) is not None for value in values):
            found.append(name)
    return found


def _against(setting: str, test: str, results: Sequence[Result]) -> list[Picture]:
    """Mean scores by a setting, a line for all that is else alike; what does not answer to it lies across."""
    lines: dict[tuple[str, ...], dict[float, list[Result]]] = {}
    flat: dict[tuple[str, ...], list[Result]] = {}
    for one in sorted(results, key=order):
        if one.model == "teacher":
            continue
        facts = {**one.dials(), **one.more()}
        rest = (one.student, one.model, *(f"{k}={v}" for k, v in facts.items() if k not in (setting, "student")))
        value = _number(one.fact(setting))
        if value is not None:
            lines.setdefault(rest, {}).setdefault(value, []).append(one)
        elif one.model == "baseline":
            flat.setdefault(rest, []).append(one)
    lines = {rest: by_value for rest, by_value in lines.items() if len(by_value) > 1}
    if not lines:
        return []
    xs = [value for by_value in lines.values() for value in by_value]
    firsts = {rest: next(iter(by_value.values()))[0] for rest, by_value in lines.items()}
    told = _told(firsts | {rest: some[0] for rest, some in flat.items()}, setting)
    students, variants = (list(dict.fromkeys(part(rest) for rest in lines)) for part in (_student, _variant))
    series = []
    for rest, by_value in lines.items():
        points = [_point(value, some) for value, some in sorted(by_value.items())]
        series.append(Series(told[rest], points, students.index(_student(rest)), variants.index(_variant(rest))))
    for rest, some in flat.items():
        if _student(rest) in students:
            level = fmean(cells.scores(some, METRIC))
            ends = [Point(min(xs), level), Point(max(xs), level)]
            series.append(Series(told[rest], ends, students.index(_student(rest)), 2, marks=False))
    log = min(xs) > 0 and max(xs) >= 10 * min(xs)
    return [Picture(f"{TITLE} on {test} against {short(setting)}", chart(short(setting), TITLE, series, log_x=log))]


def _student(rest: tuple[str, ...]) -> str:
    return rest[0]


def _variant(rest: tuple[str, ...]) -> tuple[str, ...]:
    return rest[1:]


def _pareto(test: str, results: Sequence[Result]) -> list[Picture]:
    """Quality against decoding speed, the mark's area by size; a line joins what nothing else beats in both."""
    told = names(results)
    by_arm: dict[tuple[str, ...], list[Result]] = {}
    for one in results:
        if one.sentences_per_s and one.parameters:
            by_arm.setdefault(one.arm(), []).append(one)
    sizes = {some[0].parameters for some in by_arm.values()}
    alike = len({(one.device, one.precision) for some in by_arm.values() for one in some}) == 1
    if len(sizes) < 2 or not alike:  # speeds of two devices or number formats are not set side by side
        return []
    largest = max(size for size in sizes if size)
    points: dict[str, list[Point]] = {}
    for arm, some in by_arm.items():
        size = some[0].parameters or 0
        kind = f"{some[0].student or MODELS[some[0].model]}, {cells.parameters(size)}"
        speed = fmean(one.sentences_per_s or 0.0 for one in some)
        mark = Point(speed, fmean(cells.scores(some, METRIC)), size=0.4 + 5 * size / largest, label=label(told[arm]))
        points.setdefault(kind, []).append(mark)
    every = sorted((point for some in points.values() for point in some), key=lambda point: point.x)
    front = [p for p in every if not any(o.x >= p.x and o.y >= p.y and o is not p for o in every)]
    series = [Series("not beaten in both", front, 6, 1, marks=False)] if len(front) > 1 else []
    series += [Series(kind, some, number, joined=False) for number, (kind, some) in enumerate(points.items())]
    picture = chart("sentences a second (area: parameters)", TITLE, series, log_x=every[-1].x >= 10 * every[0].x > 0)
    return [Picture(f"{TITLE} on {test}, speed and size", picture)]


def _training(results: Sequence[Result], rows: Sequence[Row]) -> list[Picture]:
    """Validation score by step of the first seed of every arm."""
    told = names(results) if results else {}
    folders = {row.key: row.store.folder("train_model", row.trained["key"]) for row in rows if row.trained.get("key")}
    curves: dict[tuple[str, ...], list[Point]] = {}
    for one in sorted(results, key=lambda result: result.seed or 0):
        if one.arm() not in curves and one.key in folders:
            points = _curve(folders[one.key] / "metrics.csv")
            if len(points) > 1:
                curves[one.arm()] = points
    ordered = [(arm, curves[arm]) for arm in told if arm in curves]
    found = []
    for start in range(0, len(ordered), LINES):
        some = ordered[start : start + LINES]
        series = [
            Series(label(told[arm]), points, number, number // 7, marks=False)
            for number, (arm, points) in enumerate(some)
        ]
        which = f", {start + 1} to {start + len(some)} of {len(ordered)}" if len(ordered) > LINES else ""
        found.append(Picture(f"Training: validation BLEU by step{which}", chart("step", "validation BLEU", series)))
    return found


def _curve(path: Path) -> list[Point]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        found = {float(row[0]): float(row[2]) for row in csv.reader(file) if len(row) == 3 and row[1] == CURVE}
    return [Point(step, value) for step, value in sorted(found.items())]


def _point(x: float, results: Sequence[Result]) -> Point:
    scores = cells.scores(results, METRIC)
    return Point(x, fmean(scores), stdev(scores) if len(scores) > 1 else 0.0, label=cells.mean(scores))


def _told(some: Mapping[tuple[str, ...], Result], setting: str) -> dict[tuple[str, ...], str]:
    """What tells lines apart, without the setting on the axis."""
    parts = {rest: {**one.dials(), **one.more()} for rest, one in some.items()}
    names = dict.fromkeys(name for part in parts.values() for name in part if name != setting)
    vary = [name for name in names if len({part.get(name) for part in parts.values()} - {""}) > 1]
    return {
        rest: label({"model": MODELS[one.model], **{name: parts[rest].get(name, "") for name in vary}})
        for rest, one in some.items()
    }


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
