"""The resolved configuration as plain values, and what steps of several files ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdlab import files, targets
from kdlab.errors import UserError

TRAINER_HASHED = ("precision", "tokens_per_step", "val_every", "select", "average", "patience")
TRAINER_LOCAL = (
    *("device", "threads", "microbatch_tokens", "chunk_size", "recompute_layers", "checkpoint_every", "log_every"),
)
OBJECTIVE = "kdlab.objectives.objective.Objective"
TERM = "kdlab.objectives.objective.WeightedTerm"

ADOPT = "teacher"  # of data.tokenizer.path

Settings = dict[str, Any]


def resolve(cfg: DictConfig) -> Settings:
    """The configuration as plain values."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    if not isinstance(settings, dict):
        raise TypeError("a configuration is a mapping")
    found = {str(name): value for name, value in settings.items()}
    if adopts_vocabulary(found):  # how large it is shows when the corpus is there
        sizes = ("src_vocab_size", "tgt_vocab_size")
        found["student"] = {name: None if name in sizes else value for name, value in found["student"].items()}
    return found


def adopts_vocabulary(settings: Settings) -> bool:
    """Whether corpus and student take the teacher's vocabulary: `data.tokenizer.path=teacher`."""
    return settings["data"]["tokenizer"]["path"] == ADOPT


def uses_labels(objective: dict[str, Any]) -> bool:
    """Whether a term with weight looks at pseudo-label rows."""
    return any(term["on"] in ("pseudo", "all") for term in active(objective)["terms"].values())


def label_tag(settings: Settings) -> str | None:
    """What stands before the sources of pseudo-labels; None where the recipe makes none."""
    makes_labels = "pseudo_label" in settings["recipe"]["steps"] and uses_labels(settings["objective"])
    return settings["label_tag"] if makes_labels else None


def uses_cache(settings: Settings, objective: dict[str, Any]) -> bool:
    """Whether a term with weight compares with a teacher whose answers are kept."""
    compares = any(targets.needs_teacher(term["term"]["_target_"]) for term in active(objective)["terms"].values())
    return compares and settings["teacher_cache"]["kind"] != "none"


def compares_layers(objective: dict[str, Any]) -> bool:
    """Whether a term with weight compares hidden states."""
    return any(targets.compares_layers(term["term"]["_target_"]) for term in objective["terms"].values())


def active(objective: dict[str, Any]) -> dict[str, Any]:
    """An objective without the terms of weight zero: they are not computed, so they must not change the key either."""
    terms = {
        name: {"_target_": TERM, **{field: value for field, value in term.items() if value is not None}}
        for name, term in objective["terms"].items()
        if term is not None and term["weight"] != 0
    }
    return {"_target_": OBJECTIVE, **objective, "terms": terms}


def hashed_trainer(settings: Settings) -> dict[str, Any]:
    """What of the trainer changes results; a strategy only does where its layers compute in another type."""
    gather = settings["strategy"].get("gather", "fp32")
    own = {} if gather == "fp32" else {"gather": gather}
    return {**{name: settings["trainer"][name] for name in TRAINER_HASHED}, **own}


def training_local(settings: Settings, name: str) -> dict[str, Any]:
    """What a training is told beside its params; `name` names it in logs."""
    loggers = [node for node in settings["logger"].values() if isinstance(node, dict) and "_target_" in node]
    local = {field: settings["trainer"][field] for field in TRAINER_LOCAL}
    return {**local, "strategy": settings["strategy"], "loggers": loggers, "name": name}


def device(settings: Settings) -> dict[str, Any]:
    """Where a step computes."""
    return {name: settings["trainer"][name] for name in ("device", "threads")}


def hash_cache(settings: Settings) -> Path:
    """Where hashes of big files are remembered."""
    return Path(settings["paths"]["store"]) / "hashes.json"


def folder_hashes(folder: str | None, option: str, wanted: str) -> dict[str, str]:
    """SHA-256 of the files that make a model or a tokenizer. Raises: UserError where `folder` is none."""
    place = Path(folder) if folder else None
    if place is None or not place.is_dir():
        raise UserError(f"{option}={folder!r} is no folder, but its files are needed; write {option}=<{wanted}>")
    # what makes the model: not its card, its metrics or the manifest of the run that made it
    found = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix not in (".md", ".csv", ".txt"))
    found = [path for path in found if path.name not in ("manifest.json", "init.json")]
    return {path.relative_to(place).as_posix(): files.sha256_file(path) for path in found}
