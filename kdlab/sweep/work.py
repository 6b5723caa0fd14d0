"""The floating-point operations of a step, from its plan alone: what its time is estimated from when no row tells it.

A training takes 6 x parameters x target tokens, and 2 x parameters of the teacher that is asked beside it; decoding
and a teacher cache take 2 x parameters of the teacher x target tokens, decoding for each beam. Source: Kaplan et al.
2020, section 2.1 (forward 2, backward 4 operations a parameter and token).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlab import files, targets
from kdlab.artifacts.stage import Step
from kdlab.artifacts.store import Store
from kdlab.models.shapes import num_parameters, parameter_shapes
from kdlab.sweep.cell import Cell

TRANSFORMER = "kdlab.models.transformer.TransformerConfig"


def parameters(model: Mapping[str, Any]) -> int | None:
    """Of a model's node; None where its vocabulary is not known before its corpus is, or its class is not ours."""
    if model.get("_target_", TRANSFORMER) != TRANSFORMER or None in (model["src_vocab_size"], model["tgt_vocab_size"]):
        return None
    return num_parameters(parameter_shapes(model))


def computing(cell: Cell, step: Step, store: Store) -> int | None:
    """Parameters of the model that a step is about: the one in training, else the teacher."""
    return parameters(step.params["model"]) if step.stage == "train_model" else _teacher(cell, store)


def of_step(cell: Cell, step: Step, store: Store) -> float | None:
    """Operations of a training, of decoding or of a teacher cache; None where something is not known yet."""
    if step.stage == "train_model":
        return _training(cell, step, store)
    teacher, tokens = _teacher(cell, store), _corpus_tokens(cell, store)
    if teacher is None or tokens is None:
        return None
    if step.stage == "decode_sources":
        return 2.0 * teacher * tokens * step.params["decode"].get("beam_size", 1)
    return 2.0 * teacher * tokens * (2 if "labels" in step.inputs else 1)


def _training(cell: Cell, step: Step, store: Store) -> float | None:
    params = step.params
    size, beside = parameters(params["model"]), 0
    if "teacher" in step.inputs and "cache" not in step.inputs:
        terms = params["objective"]["terms"].values()
        if any(targets.needs_teacher(term["term"]["_target_"]) for term in terms):  # else it only starts from it
            known = _teacher(cell, store)
            size, beside = (None, 0) if known is None else (size, known)
    tokens = params["max_steps"] * params["trainer"]["tokens_per_step"]
    return None if size is None else float((6 * size + 2 * beside) * tokens)


def _teacher(cell: Cell, store: Store) -> int | None:
    """Parameters of the teacher: to be trained, in a folder, or in the store."""
    (step,) = (step for step in cell.point.steps if step.name == "teacher")
    if step.stage == "train_model":
        return parameters(step.params["model"])
    if (made := store.manifest(step.stage, cell.point.keys["teacher"])) is not None:
        found = made["summary"].get("parameters")
        return None if found is None else int(found)
    if step.stage == "fetch_model":
        return parameters(files.read_json(Path(step.local["path"]) / "config.json")["architecture"])
    return None


def _corpus_tokens(cell: Cell, store: Store) -> int | None:
    corpus = store.manifest("prepare_corpus", cell.point.keys["corpus"]) or {}
    tokens = corpus.get("summary", {}).get("train", {}).get("tgt_tokens")
    return None if tokens is None else int(tokens)
