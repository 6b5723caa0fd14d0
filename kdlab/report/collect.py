"""Rows of a report: one evaluated model of one run each, read from run.json, manifests and scores.json alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlab import files
from kdlab.artifacts.stage import round_of
from kdlab.artifacts.store import Store
from kdlab.errors import UserError

# evaluation step -> step that made its model, in the order of the table
EVALUATIONS = {"evaluate_teacher": "teacher", "evaluate_baseline": "baseline", "evaluate": "student"}


@dataclass(frozen=True)
class Scores:
    """One model on one test set; None where something was not computed.

    Units: bleu and chrf 0-100, as sacreBLEU gives them; signatures by metric.
    """

    bleu: float | None = None
    chrf: float | None = None
    signatures: dict[str, str] = field(default_factory=dict)
    sentences: int | None = None
    sentences_per_s: float | None = None


@dataclass(frozen=True)
class Row:
    """One evaluated model, with the files that say so: its run, and the manifests of its training and evaluation
    (empty where not finished). Units: `train_cpu_s` CPU-seconds over all attempts."""

    run: str
    model: str
    seed: int | None
    parameters: int | None
    train_cpu_s: float | None
    device: str | None
    precision: str | None
    tests: dict[str, Scores]
    evaluation: str
    key: str
    folder: Path
    record: dict[str, Any]
    trained: dict[str, Any]
    evaluated: dict[str, Any]
    store: Store
    error: str | None


def run_folders(runs: Path | str, name: str) -> list[Path]:
    """The folders of all points of an experiment, in order of their names."""
    return sorted(path.parent for path in (Path(runs) / name).glob("*/run.json"))


def collect(folders: Iterable[Path | str], store: Path | str | None = None) -> list[Row]:
    """Rows of the given run folders; the same evaluation reached from several runs (a shared teacher) comes once.

    A model whose evaluation is not finished is a row without scores, with the error of a run that failed before it.
    Args:
        store: where the artefacts are; None: where each run says.
    Raises: UserError for a folder that is no run.
    """
    rows: dict[str, Row] = {}
    for folder in map(Path, folders):
        run = _read_run(folder)
        later = {name: f"student_{number}" for name in run["steps"] if (number := round_of(name))}
        for evaluation, model in (EVALUATIONS | later).items():
            key = run["steps"].get(evaluation, {}).get("key")
            if key is None or (key in rows and (rows[key].evaluated or rows[key].error)):
                continue
            rows[key] = _row(folder, run, evaluation, model, Store(store_of(folder, run) if store is None else store))
    return sorted(rows.values(), key=lambda row: ("teacher" not in row.model, "alone" not in row.model))


def store_of(folder: Path, run: dict[str, Any]) -> Path:
    """The store of a run; a relative one is looked for here, then where the run's own folder begins."""
    paths = run["config"].get("paths", {})
    store, runs = Path(paths.get("store", "store")), Path(paths.get("runs", "runs"))
    if store.is_absolute() or store.is_dir() or runs.is_absolute():
        return store
    start = folder.resolve().parents[1 + len(runs.parts)]  # <start>/<runs>/<name>/<point>
    return start / store


def _row(folder: Path, run: dict[str, Any], evaluation: str, model: str, store: Store) -> Row:
    step = run["steps"][evaluation]
    made = run["steps"].get(model)
    trained = store.manifest(made["stage"], made["key"]) if made else None
    evaluated = store.manifest(step["stage"], step["key"]) or {}
    summary = (trained or {}).get("summary", {})
    error = folder / "error.txt"
    seed = run["config"].get("teacher", {}).get("seed") if model == "teacher" else run["config"].get("seed")
    return Row(
        run=f"{folder.parent.name}/{folder.name}",
        model=_title(model, run["config"]),
        seed=seed,
        parameters=summary.get("parameters", evaluated.get("summary", {}).get("parameters")),
        train_cpu_s=trained["cpu_seconds"] if trained and trained["stage"] == "train_model" else None,
        device=evaluated.get("device"),
        precision=evaluated.get("params", {}).get("decode", {}).get("precision"),
        tests=_scores(store.folder(step["stage"], step["key"])) if evaluated else {},
        evaluation=evaluation,
        key=step["key"],
        folder=store.folder(step["stage"], step["key"]),
        record=run,
        trained=trained or {},
        evaluated=evaluated,
        store=store,
        error=error.read_text(encoding="utf-8").strip() if not evaluated and error.exists() else None,
    )


def _title(model: str, config: dict[str, Any]) -> str:
    recipe = str(config["recipe"]["_target_"]).split(".")[-2]
    if model == "teacher":
        return "teacher"
    if recipe == "noisy_student" and model != "baseline":
        return f"student, noisy_student, round {model.partition('_')[2] or 1}"
    return "student alone" if model == "baseline" or recipe == "train_only" else f"student, {recipe}"


def _scores(folder: Path) -> dict[str, Scores]:
    found = files.read_json(folder / "scores.json")
    return {
        test: Scores(
            bleu=_score(one, "bleu"),
            chrf=_score(one, "chrf"),
            signatures={metric: one[metric]["signature"] for metric in ("bleu", "chrf") if one.get(metric)},
            sentences=one.get("sentences"),
            sentences_per_s=one.get("sentences_per_s"),
        )
        for test, one in found.items()
    }


def _score(scores: dict[str, Any], metric: str) -> float | None:
    return float(scores[metric]["score"]) if scores.get(metric) else None


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        run = files.read_json(folder / "run.json")
        assert {"config", "steps"} <= set(run)
    except (OSError, json.JSONDecodeError, AssertionError, TypeError) as error:
        raise UserError(
            f"{folder} holds no run.json of kdlab, so there is nothing to report from; "
            "give a folder that python -m kdlab.run has written: runs/<name>/<point>"
        ) from error
    return run
