"""Tables of any folder of runs: quality by arm, one table per metric and signature, and what every arm costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kdlab.report import cells
from kdlab.report.cells import ByKey
from kdlab.report.document import Footnotes, Table
from kdlab.report.facts import DIALS
from kdlab.report.results import DONE, METRICS, Result

MODELS = {"teacher": "teacher", "baseline": "student alone", "student": "student"}
MOST = 20  # unfinished models that are listed
Arm = tuple[str, ...]


def arms(results: Iterable[Result]) -> dict[Arm, list[Result]]:
    """Results by arm (all but seed and test), teachers first, then by their settings, numbers as numbers."""
    found: dict[Arm, list[Result]] = {}
    for result in results:
        found.setdefault(result.arm(), []).append(result)
    return dict(sorted(found.items(), key=lambda item: order(item[1][0])))


def names(results: Sequence[Result]) -> dict[Arm, dict[str, str]]:
    """What tells the arms of some results apart: `model`, and each setting that takes several values."""
    grouped = arms(results)
    settings = list(dict.fromkeys(name for result in results for name in result.more()))
    facts = {arm: {name: some[0].fact(name) or "" for name in (*DIALS, *settings)} for arm, some in grouped.items()}
    vary = [name for name in (*DIALS, *settings) if len({fact[name] for fact in facts.values()} - {""}) > 1]
    unset = [name for name in settings if name not in vary and _set_in_some(name, grouped, facts)]
    found = {}
    for arm, some in grouped.items():
        known = "recipe" in vary or some[0].recipe in ("", facts[arm]["objective"])
        recipe = "" if known else f", {some[0].recipe}"
        model = MODELS[some[0].model] + recipe
        found[arm] = {"model": model, **{name: facts[arm][name] for name in (*vary, *unset)}}
    return found


def short(name: str) -> str:
    """A setting's name where there is little room."""
    return name.removeprefix("objective.terms.")


def label(settings: Mapping[str, str]) -> str:
    """What tells an arm apart, in one line; numbers with their names."""
    told = [f"{short(name)} {value}" if _natural(value)[0] == 0 else value for name, value in settings.items() if value]
    return ", ".join(told)


def quality(results: Sequence[Result]) -> list[Table]:
    """A table for every metric and signature: two scores with different signatures are never side by side."""
    lookup, tables = cells.by_key(results), []
    for metric, title in METRICS.items():
        signatures = sorted(
            {one.signature(metric) for one in results if one.state == DONE and one.score(metric) is not None}
        )
        for number, signature in enumerate(signatures):
            tests = {one.test for one in results if one.signature(metric) == signature}
            unfinished = [one for one in results if one.state != DONE and number == 0 and metric == "bleu"]
            shown = [one for one in results if one.state == DONE and one.signature(metric) == signature] + unfinished
            tables.append(_quality(shown, metric, f"{title}, {signature}", sorted(tests), lookup))
    if not tables and results:
        tests = {one.test for one in results}
        tables.append(_quality(results, "bleu", "BLEU: nothing is finished yet", sorted(tests), lookup))
    return tables


def _quality(results: Sequence[Result], metric: str, title: str, tests: Sequence[str], lookup: ByKey) -> Table:
    labels, notes = names(results), Footnotes()
    columns = [short(name) for name in next(iter(labels.values()))]
    rows = []
    gains = any(cells.gain([one], lookup, metric) for one in results)
    for arm, some in arms(results).items():
        row = list(labels[arm].values())
        for test in tests:
            here = [one for one in some if one.test == test]
            shown = cells.mean(cells.scores(here, metric)) or cells.state(here)
            row.append(shown + (notes.mark(f"{gap}.") if (gap := cells.gaps(here)) else ""))
            row += [cells.gain(here, lookup, metric)] if gains else []
        rows.append(row)
    header = [*columns, *(name for test in tests for name in (test, *(["gain over no KD"] if gains else [])))]
    return Table(title, header, rows, len(columns), notes.lines() + _twice(results) + cells.mixed(results))


def costs(results: Sequence[Result]) -> Table:
    """Size, time and origin of every arm."""
    labels = names(results)
    columns = [short(name) for name in next(iter(labels.values()))]
    rows = []
    for arm, some in arms(results).items():
        done = [one for one in some if one.state == DONE]
        first = {one.key: one for one in done}  # one row per model, not per test
        ratio = {cells.compression(one) for one in done} - {""}
        seeds = sorted({one.seed for one in done if one.seed is not None})
        rows.append(
            [
                *labels[arm].values(),
                " ".join(map(str, seeds)),
                next((f"{one.parameters:,d}" for one in done if one.parameters), ""),
                " ".join(sorted(ratio)),
                cells.hours(one.cpu_hours for one in first.values()),
                cells.hours(one.gpu_hours for one in first.values()),
                _speed(done),
                " ".join(dict.fromkeys(word for one in done for word in one.commit.split())),
            ]
        )
    header = [*columns, "seeds", "parameters", "compression", "CPU-h", "GPU-h", "sentences/s", "commit"]
    notes = [
        "CPU-h, GPU-h: of the training of one model, mean over seeds; GPU-h is the wall clock of trainings on a GPU.",
        "compression: parameters of the teacher by those of the model, never more than it is.",
        "sentences/s: decoding by wall clock, mean over tests and seeds.",
    ]
    full = [n for n in range(len(header)) if n <= len(columns) or any(row[n] for row in rows)]
    header, rows = [header[n] for n in full], [[row[n] for n in full] for row in rows]
    told = [note for note in notes if note.partition(":")[0].partition(",")[0] in header]
    return Table("Size and cost", header, rows, len(columns) + 1, told + cells.mixed(results))


def failures(results: Iterable[Result]) -> list[str]:
    """One line per unfinished model, up to MOST: what it is, and its error."""
    found = {}
    for one in results:
        if one.state != DONE:
            found[one.key] = f"{one.state}: {one.command}" + (f" ({one.error})" if one.error else "")
    lines = [f"Not done, {line}" for line in found.values()]
    return lines if len(lines) <= MOST else [*lines[:MOST], f"Not done: {len(lines) - MOST} more."]


def _set_in_some(name: str, grouped: dict[Arm, list[Result]], facts: dict[Arm, dict[str, str]]) -> bool:
    """Whether a setting tells two arms of one kind of model apart by being there."""
    kinds = {(some[0].model, facts[arm][name]) for arm, some in grouped.items()}
    return len(kinds) > len({model for model, _ in kinds})


def _speed(done: Sequence[Result]) -> str:
    known = [one.sentences_per_s for one in done if one.sentences_per_s]
    return f"{sum(known) / len(known):.0f}" if known else ""


def _twice(results: Sequence[Result]) -> list[str]:
    """A seed of an arm that was run by two versions of the code: the later row counts."""
    seen: dict[tuple[Arm, int | None, str], set[str]] = {}
    for one in results:
        if one.state == DONE:
            seen.setdefault((one.arm(), one.seed, one.test), set()).add(one.key)
    keys = sorted({" and ".join(sorted(keys)) for keys in seen.values() if len(keys) > 1})
    return [f"Run twice with the same settings ({pair}): the later row of results.csv counts." for pair in keys]


def order(result: Result) -> tuple[object, ...]:
    """For sorting: teachers first, then by settings, numbers as numbers."""
    facts = [result.fact(name) or "" for name in (*DIALS, "settings")]
    return (list(MODELS).index(result.model), *(_natural(fact) for fact in (*facts[:-1], result.settings)))


def _natural(fact: str) -> tuple[int, float, str]:
    try:
        return (0, float(fact), "")
    except ValueError:
        return (1, 0.0, fact)
