"""From run folders to results: what each manifest says, which student alone belongs to a student, and the p-values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdlab.artifacts.stage import round_of
from kdlab.artifacts.store import Store
from kdlab.errors import UserError
from kdlab.report import facts, results
from kdlab.report.collect import Row, Scores, collect
from kdlab.report.results import DONE, FAILED, METRICS, MISSING, Result
from kdlab.report.significance import Significance

CACHE = "significance.json"


def run_folders(place: Path) -> list[Path]:
    """Folders with a run.json: `place` itself, its points, or the points of all experiments in it."""
    found = [path.parent for depth in ("", "*/", "*/*/") for path in place.glob(f"{depth}run.json")]
    return sorted(found)


def gather(rows: Sequence[Row], known: Sequence[Result], named: Iterable[str] = ()) -> list[Result]:
    """The known results and those of runs, with p-values where statistics are at hand.

    Args:
        named: settings to record although nobody set them on a command line.
    """
    named = list(named)
    found = results.merge(known, [result for row in rows for result in _results(row, named)])
    return _tested(_paired(found), {row.key: row for row in rows if row.evaluated})


def collected(folders: Iterable[Path]) -> list[Row]:
    """Rows of the runs below some folders. Raises: UserError for a folder without any."""
    runs: list[Path] = []
    for folder in folders:
        inside = run_folders(folder)
        if not inside:
            raise UserError(
                f"{folder} holds no run.json, at most two folders down, so there is nothing to report; give "
                "experiments/<name>, runs/<name> or a folder of such"
            )
        runs += inside
    return collect(dict.fromkeys(runs))


def _results(row: Row, named: Sequence[str]) -> list[Result]:
    """One result per test set; none for what the run was not asked for (`until`)."""
    who, config, steps = facts.role(row.evaluation, row.record), row.record["config"], row.record["steps"]
    if not row.tests and config.get("until") not in (None, "report", row.evaluation):
        return []
    number = round_of(row.evaluation)
    usual = "student" if number is None else f"student_{number}"
    model_step = {"evaluate_teacher": "teacher", "evaluate_baseline": "baseline"}.get(row.evaluation, usual)
    trained = row.trained if row.trained.get("stage") == "train_model" else {}
    corpus = _manifest(row, "corpus").get("summary", {})
    teacher = _manifest(row, "teacher").get("summary", {})
    alone = steps.get("evaluate_baseline", {}).get("key", "") if who == "student" else ""
    commits = [manifest.get("commit") for manifest in (trained, row.evaluated)]
    shared: dict[str, Any] = {
        "key": row.key,
        "state": DONE if row.tests else FAILED if row.error else MISSING,
        "model": who,
        **facts.dials(who, row.record),
        "seed": row.seed,
        "settings": results.join(facts.settings(who, row.record, named) | ({"round": str(number)} if number else {})),
        "baseline": alone,
        "parameters": row.parameters,
        "teacher_parameters": teacher.get("parameters"),
        "train_pairs": corpus.get("train", {}).get("rows"),
        "best_validation": _rounded(next(iter(trained.get("summary", {}).get("best_validation", {}).values()), None)),
        **_hours(trained),
        "train_device": trained.get("device") or "",
        "train_precision": trained.get("params", {}).get("trainer", {}).get("precision", ""),
        "device": row.device or "",
        "precision": row.precision or "",
        "model_key": steps.get(model_step, {}).get("key", ""),
        "commit": " ".join(dict.fromkeys(commit for commit in commits if commit)),
        "command": facts.command(row.record.get("overrides", [])),
        "error": " ".join((row.error or "").split())[:300],
    }
    asked = config.get("evaluate", {}).get("tests") or config.get("data", {}).get("tests", {})
    tests = row.tests or {str(name): Scores() for name in asked}
    return [_result(shared, test, scores) for test, scores in sorted(tests.items())]


def _result(shared: dict[str, Any], test: str, scores: Scores) -> Result:
    return Result(
        **shared,
        test=test,
        bleu=_rounded(scores.bleu),
        chrf=_rounded(scores.chrf),
        bleu_signature=scores.signatures.get("bleu", ""),
        chrf_signature=scores.signatures.get("chrf", ""),
        sentences=scores.sentences,
        sentences_per_s=_rounded(scores.sentences_per_s),
    )


def _paired(found: Sequence[Result]) -> list[Result]:
    """Gives students without a baseline of their own run the one that shares all that a baseline answers to."""
    alone: dict[tuple[str, ...], set[str]] = {}
    for result in found:
        if result.model == "baseline":
            alone.setdefault(_family(result), set()).add(result.key)
    return [
        dataclasses.replace(result, baseline=next(iter(alone[_family(result)])))
        if result.model == "student" and not result.baseline and len(alone.get(_family(result), ())) == 1
        else result
        for result in found
    ]


def _family(result: Result) -> tuple[str, ...]:
    own = {name: value for name, value in result.more().items() if name.partition(".")[0] not in facts.NOT_OF_BASELINE}
    start = (result.student, result.init, result.data, result.max_steps)
    return (*start, results.join(own), str(result.seed), result.test)


def _tested(found: Sequence[Result], rows: dict[str, Row]) -> list[Result]:
    tests: dict[Path, Significance] = {}
    places = {(result.key, result.test): result for result in found if result.state == DONE}
    tested = []
    for result in found:
        alone = places.get((result.baseline, result.test))
        if result.state == DONE and alone and result.key in rows and alone.key in rows:
            store = rows[result.key].store
            test = tests.setdefault(store.root, Significance(store.root / CACHE))
            result = _with_p_values(result, alone, test, rows)
        tested.append(result)
    for test in tests.values():
        test.save()
    return tested


def _with_p_values(result: Result, alone: Result, test: Significance, rows: dict[str, Row]) -> Result:
    files = [rows[one.key].folder / f"{one.test}.statistics.json" for one in (alone, result)]
    changes: dict[str, Any] = {}
    for metric in METRICS:
        comparable = result.signature(metric) == alone.signature(metric) != "" and result.sentences == alone.sentences
        comparable = comparable and all(_is_of(rows[one.key], one, metric) for one in (alone, result))
        if comparable and result.p_value(metric) is None and all(file.exists() for file in files):
            p_value = test.p_value(files[0], files[1], metric, result.signature(metric))
            changes[f"{metric}_p"] = _rounded(p_value)
    return dataclasses.replace(result, **changes)


def _is_of(row: Row, result: Result, metric: str) -> bool:
    """Whether a run's statistics are those behind a result, which may be of another training of the same model."""
    scores = row.tests.get(result.test)
    return scores is not None and _rounded(getattr(scores, metric)) == result.score(metric)


def _manifest(row: Row, step: str) -> dict[str, Any]:
    made = row.record["steps"].get(step)
    store: Store = row.store
    return (store.manifest(made["stage"], made["key"]) or {}) if made else {}


def _hours(trained: dict[str, Any]) -> dict[str, float | None]:
    if not trained:
        return {"cpu_hours": None, "gpu_hours": None}
    on_gpu = trained.get("device") == "cuda"
    return {
        "cpu_hours": _rounded(trained.get("cpu_seconds", 0.0) / 3600),
        "gpu_hours": _rounded(trained.get("seconds", 0.0) / 3600) if on_gpu else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
