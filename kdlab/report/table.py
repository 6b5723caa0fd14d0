"""Rows as a Markdown table that reads well as plain text: aligned columns, signatures below it."""

from __future__ import annotations

from collections.abc import Sequence

from kdlab.report.collect import Row

MISSING = "-"
METRICS = {"bleu": "BLEU", "chrf": "chrF"}


def render(rows: Sequence[Row]) -> str:
    """The table and its footnotes; a cell without a number is marked `-`.

    Columns: model, seed (when there is more than one), parameters, every metric of every test set, translated
    sentences a second over all test sets, CPU-seconds of training.
    """
    tests = list(dict.fromkeys(test for row in rows for test in row.tests))
    metrics = [m for m in METRICS if any(getattr(s, m) is not None for row in rows for s in row.tests.values())]
    seeds = len({row.seed for row in rows if row.model != "teacher"}) > 1
    header = ["model", *(["seed"] if seeds else []), "parameters"]
    header += [f"{test} {METRICS[metric]}" for test in tests for metric in metrics]
    header += ["sentences/s", "training CPU-s"]
    body = []
    for row in rows:
        line = [row.model, *([_number(row.seed, "d")] if seeds else []), _number(row.parameters, ",d")]
        for test in tests:
            line += [_number(getattr(row.tests[test], m) if test in row.tests else None, ".1f") for m in metrics]
        body.append([*line, _number(_speed(row), ",.1f"), _number(row.train_cpu_s, ",.0f")])
    return "\n".join([*aligned(header, body), "", *_footnotes(rows, any(MISSING in line for line in body))]) + "\n"


def aligned(header: list[str], body: list[list[str]], labels: int = 1) -> list[str]:
    """Lines of a Markdown table; the first `labels` columns are aligned to the left."""
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]

    def row(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if number < labels else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    widths = [max(width, 2) for width in widths]
    rule = ["-" * width if number < labels else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    return [row(header), row(rule), *(row(line) for line in body)]


def _footnotes(rows: Sequence[Row], has_gaps: bool) -> list[str]:
    notes = []
    for metric, title in METRICS.items():
        by_signature: dict[str, list[str]] = {}
        for row in rows:
            for test, scores in row.tests.items():
                if metric in scores.signatures:
                    of_tests = by_signature.setdefault(scores.signatures[metric], [])
                    of_tests += [] if test in of_tests else [test]
        for signature, of_tests in by_signature.items():
            where = f" ({', '.join(of_tests)})" if len(by_signature) > 1 else ""
            notes.append(f"{title}{where}: {signature}")
    for what in ("device", "precision"):
        kinds = sorted({str(getattr(row, what)) for row in rows if getattr(row, what) is not None})
        if len(kinds) > 1:
            notes.append(f"Not alike: {what} of decoding is {' and '.join(kinds)}; do not compare their speeds.")
    if has_gaps:
        notes.append(f"{MISSING}: not computed, or removed from the store.")
    return notes


def _speed(row: Row) -> float | None:
    known = [(s.sentences, s.sentences_per_s) for s in row.tests.values()]
    if not known or any(not count or not speed for count, speed in known):
        return None
    return sum(count for count, _ in known if count) / sum(c / speed for c, speed in known if c and speed)


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
