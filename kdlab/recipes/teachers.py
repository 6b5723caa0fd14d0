"""The teacher of a recipe: trained here, or brought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdlab import files
from kdlab.artifacts.stage import Step
from kdlab.errors import UserError
from kdlab.recipes.settings import (
    Settings,
    active,
    adopts_vocabulary,
    folder_hashes,
    hash_cache,
    hashed_trainer,
    training_local,
)
from kdlab.recipes.steps import corpus, evaluate
from kdlab.stages import convert_model, fetch_huggingface, fetch_model, train_model

NLL = "kdlab.objectives.nll.Nll"
RANDOM = {"_target_": "kdlab.models.init.random_init"}


def corpus_and_teacher(settings: Settings) -> list[Step]:
    """The prepared corpus, the teacher and its evaluation; a corpus that adopts the vocabulary comes second.

    So does one beside a Hugging Face teacher, whose languages and files only its own code can check.
    """
    prepared, (made, evaluation) = corpus(settings), teacher(settings)
    first = adopts_vocabulary(settings) or made.stage == "fetch_huggingface"
    return [made, prepared, evaluation] if first else [prepared, made, evaluation]


def teacher(settings: Settings) -> list[Step]:
    """The teacher, trained here or brought, and its evaluation."""
    node = settings["teacher"]
    if node["source"] == "train":
        made = Step(
            name="teacher",
            stage="train_model",
            version=train_model.VERSION,
            params={
                "model": node["model"],
                "init": RANDOM,  # `init` is the student's: a teacher has no teacher to start from
                "objective": _teacher_objective(node),
                "optim": node["optim"],
                "trainer": hashed_trainer(settings),
                "max_steps": node["max_steps"],
                "seed": node["seed"],
            },
            inputs={"corpus": "corpus"},
            run=train_model.run,
            local=training_local(settings, "teacher"),
        )
    elif node["source"] == "folder":
        made = fetched(settings, "teacher", node["path"], "teacher.path")
    elif node["source"] == "marian":
        made = Step(
            name="teacher",
            stage="convert_model",
            version=convert_model.VERSION,
            params=_hub_or_folder(settings, [Path(node["path"]) / name for name in convert_model.FILES]),
            inputs={},
            run=convert_model.run,
            local={"path": str(node["path"])},
        )
    elif node["source"] == "huggingface":
        folder = Path(node["path"])
        made = Step(
            name="teacher",
            stage="fetch_huggingface",
            version=fetch_huggingface.VERSION,
            params={
                **_hub_or_folder(settings, fetch_huggingface.model_files(folder) if folder.is_dir() else []),
                **{name: node[name] for name in ("src_code", "tgt_code", "prefix")},
            },
            inputs={},
            run=fetch_huggingface.run,
            local={"path": str(node["path"])},
        )
    else:
        raise UserError(
            f"teacher.source={node['source']!r}, but this recipe learns from a teacher; "
            "choose one, e.g. teacher=toy_2x2, or recipe=train_only"
        )
    return [made, evaluate(settings, "evaluate_teacher", model="teacher")]


def fetched(settings: Settings, name: str, folder: str | None, option: str) -> Step:
    """A model folder that the user has, known by its content; `option` is where they named it."""
    with files.remembered_hashes(hash_cache(settings)):
        hashes = folder_hashes(folder, option, "a model folder that kdlab has written")
    return Step(
        name=name,
        stage="fetch_model",
        version=fetch_model.VERSION,
        params={"sha256": hashes},
        inputs={},
        run=fetch_model.run,
        local={"path": str(folder)},
    )


def _teacher_objective(node: dict[str, Any]) -> dict[str, Any]:
    # Not cfg.objective: a sweep over the student's weights must not train its teacher again.
    smoothing = node.get("label_smoothing") or 0.0
    term = {"_target_": NLL, "label_smoothing": smoothing}
    return active({"terms": {"nll": {"weight": 1.0, "on": "gold", "per": "tgt_token", "term": term}}})


def _hub_or_folder(settings: Settings, places: Sequence[Path]) -> dict[str, Any]:
    """A local folder by the content of those of its files that are read, a model of the hub by name and commit."""
    node = settings["teacher"]
    if not Path(node["path"]).is_dir():
        return {"hub": node["path"], "revision": node["revision"]}
    with files.remembered_hashes(hash_cache(settings)):
        return {"sha256": {place.name: files.sha256_file(place) for place in places if place.is_file()}}
