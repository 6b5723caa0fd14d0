"""What tells a model's results apart from another's: the settings that it answers to, and the command that makes it.

A teacher knows nothing of the student's seed, and a student alone nothing of the temperature: a setting that a model
does not answer to is blank, so that one baseline serves a whole grid.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Settings with a column of their own in results.csv; all others that were set stand in its column `settings`.
DIALS = ("student", "teacher", "recipe", "objective", "init", "data", "temperature", "mix", "max_steps")
OF_TEACHER = {"teacher", "data", "vocab_size", "trainer", "decode"}
NOT_OF_BASELINE = {
    *("objective", "recipe", "teacher", "teacher_cache", "temperature", "mix", "mix_by"),
    *("label_decode", "labels", "label_tag", "pseudo_share", "rounds", "round"),
    *("weight_nll", "weight_pseudo", "weight_kd", "weight_cos"),
}
OF_LABELS = {"label_decode", "labels", "label_tag", "pseudo_share", "mix_by"}  # where there are pseudo-labels
# What makes no other arm: what else is trained, measured or kept, and where.
SILENT = {"baseline", "evaluate", "min_labelled", "experiment", "cluster", "logger", "paths", "strategy"}
GATHER = "strategy.gather"  # but this: the type in which layers compute
DATA = "KDLAB_DATA"


def role(evaluation: str, record: dict[str, Any]) -> str:
    """`teacher`, `baseline` (a student with the baseline's objective and nothing of a teacher's) or `student`."""
    config = record["config"]
    if evaluation == "evaluate_teacher":
        return "teacher"
    same = config.get("objective") == config.get("baseline_objective")
    alone = evaluation == "evaluate_baseline" or (same and _recipe(config) == "train_only")
    return "baseline" if alone else "student"


def dials(who: str, record: dict[str, Any]) -> dict[str, str]:
    """The values of DIALS as text; blank where this model does not answer to one."""
    config, choices, steps = record["config"], record.get("choices", {}), record["steps"]
    found: dict[str, Any] = {"data": choices.get("data")}
    if who == "teacher" or "teacher" in _inputs(who, record):
        found["teacher"] = choices.get("teacher")
    if who != "teacher":
        objective = "baseline_objective" if who == "baseline" else "objective"
        found |= {name: choices.get(name) for name in ("student", "init")}
        found |= {"max_steps": config.get("max_steps"), "objective": choices.get(_group(objective, choices))}
        if who == "student":
            found["recipe"] = choices.get("recipe", _recipe(config))
        if _has_temperature(config.get(objective, {})):
            found["temperature"] = config.get("temperature")
        if who == "student" and "pseudo_label" in steps:
            found["mix"] = config.get("mix")
    return {name: "" if found.get(name) is None else text(found[name]) for name in DIALS}


def settings(who: str, record: dict[str, Any], named: Iterable[str] = ()) -> dict[str, str]:
    """Other values and choices that the user made, and values that the experiment's tables name, by key.

    Of those that tables name, what the model does not answer to is there and blank.
    """
    found: dict[str, str] = {}
    named, choices = set(named), record.get("choices", {})
    written = {override.partition("=")[0].lstrip("+") for override in record.get("overrides", ())}
    chosen = {*record.get("values", ()), *(written & set(choices))}
    chosen = {name for name in chosen if _first(name) not in SILENT or name == GATHER}
    for name in sorted((chosen | named) - {*DIALS, "seed", "model", "test"}):
        first = _first(name)
        unlabelled = first in OF_LABELS and "pseudo_label" not in record["steps"]
        if (
            unlabelled
            or (who == "teacher" and first not in OF_TEACHER)
            or (who == "baseline" and first in NOT_OF_BASELINE)
        ):
            found |= {name: ""} if name in named else {}
            continue
        value = choices[name] if name in choices else _select(record["config"], name)
        if not isinstance(value, dict) and value is not _ABSENT:
            found[name] = text(value)
    return found


def command(overrides: Iterable[str]) -> str:
    """The command line of a run without what belongs to one machine: a path below $KDLAB_DATA is written so, any other
    absolute one as <its last part>."""
    words = ["python -m kdlab.run"]
    for override in overrides:
        name, equals, value = override.partition("=")
        if not name.startswith("paths."):
            portable = _portable(value)
            words.append(shlex.quote(override) if portable == value else f"{name}{equals}{portable}")
    return " ".join(words)


def text(value: Any) -> str:
    """One text for one value: 1.0 is written 1, no spaces."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":")).replace(" ", "_")
    return _portable(str(value)).replace(" ", "_")


def _portable(value: str) -> str:
    root = os.environ.get(DATA)
    if root and "/" in value and (place := Path(value).resolve()).is_relative_to(Path(root).resolve()):
        return f"${DATA}/{place.relative_to(Path(root).resolve())}"
    return f"<{Path(value).name}>" if value.startswith("/") else value


def _first(name: str) -> str:
    return name.partition(".")[0]


def _recipe(config: dict[str, Any]) -> str:
    return str(config["recipe"]["_target_"]).split(".")[-2]


def _inputs(who: str, record: dict[str, Any]) -> set[str]:
    """Whether what trains this model has the teacher beside it, as the recipe's steps say."""
    if "teacher" not in record["steps"]:
        return set()
    copies = record.get("choices", {}).get("init", "random") != "random"
    return {"teacher"} if who == "student" or copies else set()


def _group(objective: str, choices: dict[str, str]) -> str:
    return f"objective@{objective}" if f"objective@{objective}" in choices else objective


def _has_temperature(objective: dict[str, Any]) -> bool:
    terms = [term for term in objective.get("terms", {}).values() if term and term.get("weight") != 0]
    return any("temperature" in term.get("term", {}) for term in terms)


_ABSENT = object()


def _select(config: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(config, dict) or part not in config:
            return _ABSENT
        config = config[part]
    return config
